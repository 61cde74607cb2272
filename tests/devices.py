"""Where a test runs: on the CPU everywhere, and in the same words on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from awm.models.float8 import CAPABILITY

HAS_CUDA = torch.cuda.is_available()
CUDA = pytest.param("cuda", marks=(pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")))
DEVICES = ("cpu", CUDA)


def require_float8(device: torch.device) -> None:
    """Skip on GPUs without kernels for eight-bit floats; asked in the test, for the answer starts the driver."""
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        pytest.skip(f"float8 needs compute capability {CAPABILITY}, and this GPU has {found}")


def require_device_of_runs(device: torch.device) -> None:
    """Skip the CPU where a run would take the GPU."""
    if device.type == "cpu" and HAS_CUDA:
        pytest.skip("a run computes on the GPU of this machine, which the test's other half does")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products and convolutions of a GPU keep ten bits only, whatever a run before has set."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = allowed
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.allow_tf32 = value
