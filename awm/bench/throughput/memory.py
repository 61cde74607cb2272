"""The most memory that was held since the last look."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

RESET_PEAK = "5"  # see proc(5), /proc/pid/clear_refs


class PeakMemory:
    """Peak bytes on a device: what torch's allocator handed out on a GPU, the process's resident set on a CPU.

    Args:
        device: where the model computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def held(self) -> int:
        """Bytes on a GPU now; 0 on a CPU, where nobody can say whose a page is."""
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def reset(self) -> None:
        """Forget the peak so far; where the system cannot, later peaks are those since the process began."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        except OSError:
            return

    def peak(self) -> int:
        """Bytes since the reset."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            unit = 1 if sys.platform == "darwin" else 1024
            return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
