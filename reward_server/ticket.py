"""One admitted request: its outcomes as they come in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from reward_server.scorers.base import ItemError, Outcome
from reward_server.wire import ItemResult, ScoreRequest


class Ticket:
    """The outcomes of one request.

    Args:
        request: what was asked.
    """

    def __init__(self, request: ScoreRequest) -> None:
        self.request = request
        self.size = sum(len(item.image.data) for item in request.items)  # bytes of the images
        self.created = time.monotonic()
        self.done: Future[None] = Future()
        self.done.set_running_or_notify_cancel()  # nobody can cancel it from outside any more
        self._lock = threading.Lock()
        self._outcomes: dict[tuple[int, str], Outcome] = {}

    def deliver(self, index: int, reward: str, outcome: Outcome) -> bool:
        """Note the outcome of item number ``index``; True if it was the last one."""
        with self._lock:
            self._outcomes[index, reward] = outcome
            return len(self._outcomes) == len(self.request.items) * len(self.request.rewards)

    def finish(self) -> None:
        """Wake who waits, all outcomes being there."""
        self.done.set_result(None)

    def results(self) -> tuple[ItemResult, ...]:
        """A result for every item; what is still missing is a retryable error."""
        late = ItemError("deadline", "the deadline passed before the image was scored", retryable=True)
        with self._lock:
            return tuple(
                ItemResult(item.id, {name: self._outcomes.get((i, name), late) for name in self.request.rewards})
                for i, item in enumerate(self.request.items)
            )
