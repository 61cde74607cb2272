"""Ctrl-C and SIGTERM: at once while there is nothing to save, at the next safe point once the run is going."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported late by the entry points: signals are to be caught before torch is loaded
    from awm.training.distributed import Distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST_S = 1.0  # a terminal and a launcher may both deliver the same request


def signal_numbers() -> int:
    """A file to read from, which gets one byte, the number, for every signal that has a handler in Python.

    The handler itself waits until the main thread comes back to Python: not while it is in a collective operation.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
    return reading


class StopRequestedError(Exception):
    """The run was asked to stop and has saved what it had.

    Attributes:
        exit_code: 0 after SIGTERM (a scheduler's polite request), 130 after Ctrl-C.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; Ctrl-C once more ends the process where it is.

    Args:
        distributed: ranks agree before any of them acts, or the others would wait for it forever; None until the
            ranks know each other.

    Attributes:
        requested: set once this rank has received a signal, or agreed with one that has; ends what this rank alone
            waits for.
        received: the first signal that this process was sent.
        silenced: set when the run is lost anyway, so that nothing is promised any more.
        at_once: whether a signal ends the process where it is, there being nothing to save.
    """

    def __init__(self, distributed: Distributed | None = None) -> None:
        self.distributed = distributed
        self.requested = threading.Event()
        self.received: int | None = None
        self.silenced = threading.Event()
        self._interrupted = self._agreed = self._relaying = self._confirmed = False
        self.at_once = False
        self._first = math.inf  # time of the first signal that was not passed on by another rank
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}

    def install(self, *, at_once: bool = False) -> None:
        """Catch the signals from now on.

        Args:
            at_once: end the process with SystemExit, there being nothing to save; otherwise wait for ``agreed``.
        """
        self.at_once = at_once
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put back the handlers found at construction."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def relay(self, number: int) -> None:
        """Act as if this process had been sent a signal that another one received; from any thread."""
        self.note(number)
        self._relaying = True
        os.kill(os.getpid(), number)

    def note(self, number: int) -> None:
        """A signal has come, whose handler may have to wait for the main thread; from any thread."""
        self.requested.set()
        self._interrupted |= number == signal.SIGINT
        self._confirm(number)

    def agreed(self) -> bool:
        """True on every rank if any rank was asked to stop. A collective."""
        distributed = self.distributed
        if distributed is None:
            return self.requested.is_set()
        if not distributed.any(self.requested.is_set()):
            return False
        self._interrupted |= distributed.any(self.exit_code != 0)
        self._agreed = True
        self.requested.set()
        return True

    @property
    def exiting(self) -> bool:
        """Whether this process was told to end where it is: an error is then what C code made of its SystemExit."""
        return self.at_once and self.received is not None

    @property
    def exit_code(self) -> int:
        """Exit status of all ranks after a stop they agreed on: a person's Ctrl-C counts more than a SIGTERM."""
        return 130 if self._interrupted or self.received == signal.SIGINT else 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        passed_on, self._relaying = self._relaying, False
        now = time.monotonic()
        if number == signal.SIGINT and now - self._first > SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not passed_on:
            self._first = min(self._first, now)
        if self.received is not None:
            return
        self.received = number
        self.requested.set()
        self._confirm(number)
        if self.at_once:
            raise SystemExit(self.exit_code)

    def _confirm(self, number: int) -> None:
        """Say on the main rank, once, that the request was received."""
        if self._confirmed or not self._is_main or self._agreed or self.silenced.is_set():
            return
        self._confirmed = True
        what = "nothing to save yet" if self.at_once else "stopping and saving; Ctrl-C once more stops at once"
        print(f"\n{signal.Signals(number).name}: {what}.", file=sys.stderr, flush=True)

    @property
    def _is_main(self) -> bool:
        """As far as is known."""
        if self.distributed is None:
            return os.environ.get("RANK", "0") == "0"
        return self.distributed.is_main
