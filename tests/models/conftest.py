"""The tests' random checkpoint, loaded."""

from pathlib import Path

import pytest
import torch

from awm.models.sd3 import SD3


@pytest.fixture
def model(checkpoint: Path) -> SD3:
    return SD3.load(str(checkpoint), dtype=torch.float32)
