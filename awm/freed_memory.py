"""Lets the C library keep the memory of freed tensors for the next ones."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
MIB = 2**20
LARGEST = 32 * MIB  # that glibc accepts as MMAP_THRESHOLD


def keep_freed_memory() -> bool:
    """Let tensors up to 32 MiB reuse freed memory, for computing on a CPU.

    By default glibc gives memory back whenever some tens of MiB are free, as at the end of a layer, and the kernel
    clears every page of it anew: a tenth to a fifth of a forward pass of the tiny model. Here up to 1 GiB stays.

    Returns:
        Whether the C library took it; one other than glibc is left as it is.
    """
    return _set({MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: 1024 * MIB, TOP_PAD: 64 * MIB})


def return_freed_memory() -> bool:
    """Undo ``keep_freed_memory``: about what glibc's values become by themselves once tensors of 16 MiB were freed."""
    return _set({MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: LARGEST, TOP_PAD: 128 * 1024})


def _set(values: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in values.items())
