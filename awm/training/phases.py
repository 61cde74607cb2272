"""Where an epoch's time goes, measured without making the host wait for a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from awm.training.distributed import Distributed


class PhaseTimer:
    """Wall-clock seconds of the phases that follow each other in an epoch.

    Each ends with something that waits for the device anyway: scores of its images, or the metrics of its updates.

    Attributes:
        seconds: phase -> seconds, of those that are over.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._processor = time.process_time()

    def lap(self, phase: str) -> None:
        """The time since the previous lap, or since construction, was ``phase``."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now

    def processor_seconds(self) -> float:
        """Seconds that the processor's cores spent on this process, in all its threads, since construction.

        Where the network computes on the processor, other work on the machine lengthens laps, but hardly these.
        """
        return time.process_time() - self._processor


class DeviceStopwatch:
    """Adds up the seconds a device spends in one kind of section, many times an epoch.

    On a GPU the sections are bracketed by events in its queue, so that taking the time waits for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sections: list[tuple[Any, Any]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Count what the block gives the device to do."""
        start = self._mark()
        yield
        self._sections.append((start, self._mark()))

    def seconds(self) -> float:
        """The sum of all sections; call it when the device is done with them, or it waits until then."""
        if self._device.type != "cuda":
            return float(sum(end - start for start, end in self._sections))
        for _, end in self._sections[-1:]:
            end.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in self._sections)) / 1000

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def timing_metrics(seconds: Mapping[str, float], images: int, distributed: Distributed) -> dict[str, float]:
    """``time/<phase>_s`` of the slowest rank, and images per second; a collective.

    Args:
        seconds: this rank's phases, the same on all ranks; rollout and train make up the epoch, the others are
            parts of these.
        images: sampled in the epoch over all ranks.
        distributed: the ranks.

    Returns:
        Seconds by phase with ``time/epoch_s`` (without evaluation and saving), ``images_per_s`` over all ranks and
        ``images_per_s_per_device``.
    """
    mine = torch.tensor(list(seconds.values()), dtype=torch.float64)
    slowest = distributed.gather(mine).reshape(distributed.world_size, -1).amax(0).tolist()
    times = dict(zip(seconds, slowest, strict=True))
    epoch = times["rollout"] + times["train"]
    return {f"time/{phase}_s": value for phase, value in times.items()} | {
        "time/epoch_s": epoch,
        "images_per_s": images / epoch,
        "images_per_s_per_device": images / epoch / distributed.world_size,
    }
