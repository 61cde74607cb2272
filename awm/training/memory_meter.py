"""How much memory a device has left, how much work takes of it, and which errors say that it ran out."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Protocol

import torch

HEADROOM = 0.1  # of a GPU's memory: fragments, NCCL's and cuBLAS's own, a reward server that grows
PHRASES = (
    "out of memory",  # CUDA and its allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle could not be allocated
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN without memory for any convolution's workspace
    "Unable to find a valid cuDNN algorithm to run convolution",
    "can't allocate memory",  # torch's allocator on CPUs
)


class MemoryMeter(Protocol):
    """Measures work on one device."""

    def free(self) -> int:
        """Bytes that may be in use at once, what is in use already included."""

    def start(self) -> None:
        """What is in use from now on counts."""

    def peak(self) -> int:
        """Most bytes in use since ``start``."""

    def clear(self) -> None:
        """Give back what is held in reserve, and forget peaks."""


class CudaMeter:
    """PyTorch's allocator on a GPU, which other processes may use, too.

    Args:
        device: the GPU.
        headroom: share of its memory that is left alone.
    """

    def __init__(self, device: torch.device, headroom: float = HEADROOM) -> None:
        self._device, self._headroom = device, headroom

    def free(self) -> int:
        """What the driver says is free, and what this process has, without the headroom."""
        free, total = torch.cuda.mem_get_info(self._device)
        return int(free + torch.cuda.memory_reserved(self._device) - self._headroom * total)

    def start(self) -> None:
        """Forget the peak before."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Bytes in tensors; kernels that still run have theirs already."""
        return int(torch.cuda.max_memory_allocated(self._device))

    def clear(self) -> None:
        """Empty the allocator's cache; a kernel that failed for want of memory may still hold some."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        self.start()


def available_memory() -> int:
    """Bytes of the machine's memory that processes may still take, by Linux's estimate; elsewhere half of all."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device or the machine had no memory left, under any of its names."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


def collect(meter: MemoryMeter) -> None:
    """Drop what only cycles of references still hold, such as the frames of an error, then clear the meter."""
    gc.collect()
    meter.clear()
