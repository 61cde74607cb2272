"""The server's side of one worker: start it, hand it batches, and know at once when it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.images import WireImage
from reward_server.outcomes import unpack_outcome
from reward_server.scorers.base import Outcome
from reward_server.settings import TOKEN_VARIABLE, ScorerSettings
from reward_server.worker import frames

STDERR = 2
DEVICE_VARIABLE = "AWM_REWARD_DEVICE"
"""Tells a worker which kind of device it was promised, "cpu" or "cuda"."""
PROGRAM = Path(__file__).with_name("main.py")
KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


class WorkerError(Exception):
    """A worker cannot go on; its process is dead.

    Attributes:
        cause: ``start`` (it never got ready), ``crash``, ``kill`` (an outsider ended it, such as the kernel for
            want of memory) or ``hang``.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker says once its warm-up image is scored.

    Attributes:
        metrics: names of the scorer's numbers beside the score.
        versions: what its scores depend on.
        example: prompt and metadata it accepts.
    """

    metrics: tuple[str, ...]
    versions: Mapping[str, str]
    example: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RawItem:
    """An item as it arrived, its image not yet decoded."""

    image: WireImage
    prompt: str
    metadata: Mapping[str, Any]


class Worker:
    """One process with one scorer. Not thread-safe, but ``kill`` may be called from any thread.

    Args:
        name: the reward's name.
        settings: what to run, and in which interpreter.
        device: "cpu", or "cuda:N", which becomes the only GPU the process sees.
        max_pixels: largest image it decodes.
    """

    def __init__(self, name: str, settings: ScorerSettings, device: str, max_pixels: int) -> None:
        self.name = name
        self._settings = settings
        environment = _environment(settings, device)
        self._connection, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [settings.python or sys.executable, str(PROGRAM), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=STDERR,  # what a library prints must not mix with what the server prints
                start_new_session=True,  # a Ctrl-C in the terminal stops the server, which stops its workers
            )
        except (OSError, ValueError) as error:
            self._connection.close()
            raise WorkerError("start", f"cannot run {settings.python or sys.executable}: {error}") from None
        finally:
            theirs.close()
        self._max_pixels = max_pixels

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def start(self) -> Hello:
        """Wait until the scorer is loaded and warm.

        Raises:
            WorkerError: ``start``, with the scorer's own message.
        """
        order = {
            "name": self.name,
            "scorer": self._settings.scorer,
            "options": dict(self._settings.options),
            "max_pixels": self._max_pixels,
        }
        try:
            reply, _ = self._ask(order, (), self._settings.start_timeout_s)
        except WorkerError as error:
            raise WorkerError("start", str(error)) from None
        if reply["error"] is not None:
            self.kill()
            raise WorkerError("start", reply["error"])
        return Hello(tuple(reply["metrics"]), reply["versions"], reply["example"])

    def score(self, items: Sequence[RawItem]) -> tuple[list[Outcome], Mapping[str, float]]:
        """Outcomes of a batch, in order, and the worker's times in seconds by stage.

        Raises:
            WorkerError: ``crash``, ``kill`` or ``hang``; the process is dead afterwards.
        """
        about = [
            {"prompt": item.prompt, "metadata": item.metadata, "format": item.image.format, "shape": item.image.shape}
            for item in items
        ]
        reply, _ = self._ask({"items": about}, [item.image.data for item in items], self._settings.timeout_s)
        try:
            outcomes = [unpack_outcome(outcome) for outcome in reply["outcomes"]]
            timing = {stage: float(seconds) for stage, seconds in reply["timing"].items()}
            if len(outcomes) != len(items):
                raise ValueError(f"{len(outcomes)} outcomes for {len(items)} items")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._nonsense(error) from error
        return outcomes, timing

    def kill(self) -> int:
        """End the process and all it has started, wait for it, and return its exit status; harmless if it has ended.

        A thread that waits for the worker's answer notices by itself: the socket's other end closes.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own: what it forked dies with it
        return self._process.wait()

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Return when the process is gone; an answer that somebody still waits for then fails at once."""
        self._process.wait()
        with contextlib.suppress(OSError):  # closed meanwhile
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the process and free its socket; only for the thread that uses this object."""
        self.kill()
        self._connection.close()

    def _ask(self, header: Mapping[str, Any], blobs: Sequence[bytes], timeout_s: float) -> tuple[Any, list[bytearray]]:
        try:
            self._connection.settimeout(timeout_s)
            deadline = time.monotonic() + timeout_s
            frames.send(self._connection, header, blobs)
            return frames.receive(self._connection, deadline)
        except TimeoutError:
            self.kill()
            raise WorkerError("hang", f"no answer within {timeout_s:g} s; its process was ended") from None
        except OSError:
            status = self._wait_for_death()
            outside = status < 0 and -status in KILLED_FROM_OUTSIDE
            raise WorkerError("kill" if outside else "crash", f"its process {_ended(status)}") from None
        except Exception as error:
            raise self._nonsense(error) from error

    def _nonsense(self, error: Exception) -> WorkerError:
        """For what is not this protocol; something in the scorer may write to every file descriptor it finds."""
        self.kill()
        return WorkerError("crash", f"its answer makes no sense ({type(error).__name__}: {error}); it was ended")

    def _wait_for_death(self) -> int:
        """Exit status; the socket closes a moment before the process is gone, and kill() would hide the reason."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5.0)
        return self.kill()


def _environment(settings: ScorerSettings, device: str) -> dict[str, str]:
    # The server's token is none of a scorer's business.
    inherited = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
    seen = {"CUDA_VISIBLE_DEVICES": _visible_gpu(device), DEVICE_VARIABLE: device.partition(":")[0]}
    return inherited | seen | dict(settings.env)


def _visible_gpu(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES must be for the process to see just this device.

    "cuda:1" is the second GPU the server itself sees, which a scheduler may have chosen for it.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return number
    own = [name.strip() for name in visible.split(",") if name.strip()]
    if int(number) >= len(own):
        raise WorkerError("start", f"there is no {device}: CUDA_VISIBLE_DEVICES={visible}, counted from cuda:0")
    return own[int(number)]


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}; see the log above"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
