"""The device a test runs on, and what makes a GPU's numbers repeatable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.devices import DEVICES, tf32


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def float32_products() -> Iterator[None]:
    """No TF32: comparisons would measure its ten bits."""
    with tf32(False):
        yield


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same bits in every run: the fast attention kernels add up gradients in the order their blocks finish."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
