"""Scorers that misbehave on request. A worker process loads this file by its path, as it would a user's own."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward_server.scorers.base import Item, ItemError, Outcome, Scores


class Fake:
    """Score = red of the first pixel, over 255; the prompt can ask for trouble.

    Args:
        version: of the fingerprint.
        folder: for ``batches``, the sizes of the batches so far, and for the gate of the prompt "wait", which the
            test opens by making the file ``open``; ``entered`` says that the scorer stands before it.
        seconds: taken by each batch.
    """

    def __init__(self, version: str = "1", folder: str | None = None, seconds: float = 0.0) -> None:
        self.version = version
        self.folder = Path(folder) if folder else None
        self.seconds = seconds
        self.flaky_calls = 0

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        prompts = [item.prompt for item in items]
        if self.folder:
            with (self.folder / "batches").open("a") as log:
                log.write(f"{len(items)}\n")
        if "crash" in prompts:
            os.abort()
        if "kill" in prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in prompts:
            time.sleep(3600)
        if "wait" in prompts:
            self._wait_for_gate()
        if "garbage" in prompts:
            write_to_every_socket(b"\x00\x00\x00\x05hello")
        if "fork" in prompts:
            subprocess.Popen(["sleep", "3600"])
        if "poison" in prompts:
            raise RuntimeError("swallowed poison")
        time.sleep(self.seconds)
        return [self._outcome(item) for item in items]

    def fingerprint(self) -> Mapping[str, str]:
        return {"version": self.version}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        return "", {}

    def _outcome(self, item: Item) -> Outcome:
        if item.prompt == "none":
            return None  # type: ignore[return-value]
        if item.prompt == "message":
            return ItemError("odd", ValueError("\ud800" + "x" * 10_000), np.True_)  # type: ignore[arg-type]
        if item.prompt in ("nan", "text"):
            return Scores(float("nan") if item.prompt == "nan" else "high")  # type: ignore[arg-type]
        if item.prompt == "flaky":
            self.flaky_calls += 1
            if self.flaky_calls % 2:
                return ItemError("flaky", "not this time", retryable=True)
        return Scores(float(item.image[0, 0, 0]) / 255, {"twice": float(item.image[0, 0, 0]) / 127.5})

    def _wait_for_gate(self) -> None:
        assert self.folder is not None
        (self.folder / "entered").touch()
        while not (self.folder / "open").exists():
            time.sleep(0.01)


def write_to_every_socket(data: bytes) -> None:
    """What a library with a bug may do to the socket between worker and server."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.write(int(name), data)
        except OSError:
            pass


class Broken(Fake):
    """Cannot be warmed up."""

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        raise RuntimeError("the weights are upside down")


class Moody(Fake):
    """Starts only as often as the file ``starts`` in its folder says."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder=folder)
        counter = Path(folder) / "starts"
        left = int(counter.read_text())
        if left == 0:
            raise RuntimeError("not today")
        counter.write_text(str(left - 1))


class Sick(Fake):
    """Scores nothing any more after the prompt "sick", as after a CUDA error, until its process is a new one."""

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        if any(item.prompt == "sick" for item in items):
            self.flaky_calls = -1
        if self.flaky_calls < 0:
            raise RuntimeError("an illegal memory access was encountered")
        return super().__call__(items)


class Unsayable(Fake):
    """Its fingerprint is no plain text."""

    def fingerprint(self) -> Mapping[str, str]:
        return {"weights": Path("/models")}  # type: ignore[dict-item]


class Changing(Fake):
    """Another version each time it starts."""

    def __init__(self) -> None:
        super().__init__(version=str(os.getpid()))


class FailsLater(Fake):
    """Scores images of the warm-up's size and no larger ones."""

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        if any(len(item.image) > 64 for item in items):
            raise RuntimeError("too large for me")
        return super().__call__(items)
