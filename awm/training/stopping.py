"""Ctrl-C and SIGTERM become a request that the run honours at its next safe point."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

from awm.training.distributed import Distributed


class StopRequestedError(Exception):
    """The run was asked to stop and has saved what it had.

    Attributes:
        exit_code: 0 after SIGTERM (a scheduler's polite request), 130 after Ctrl-C.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; a second one takes effect at once.

    Args:
        distributed: ranks agree before any of them acts, or the others would wait for it forever.

    Attributes:
        requested: set once this rank has received a signal; ends what this rank alone waits for.
    """

    def __init__(self, distributed: Distributed) -> None:
        self._distributed = distributed
        self._signal: int | None = None
        self.requested = threading.Event()
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def install(self) -> None:
        """Catch the signals from now on."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put back the handlers found at construction."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """True on every rank if any rank was asked to stop. A collective."""
        return self._distributed.any(self.requested.is_set())

    @property
    def exit_code(self) -> int:
        """Exit status of a process stopped by the received signal."""
        return 130 if self._signal == signal.SIGINT else 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.restore()  # a second signal takes effect at once
        self._signal = number
        self.requested.set()
        if self._distributed.is_main:
            name = signal.Signals(number).name
            print(f"\n{name}: stopping at the next safe point and saving; once more stops at once.", file=sys.stderr)
