"""The queue between requests and workers: images of several requests are scored together.

Batches count images, not requests. A job that was in a worker's hands when it died is a suspect and is given out
alone, so that what killed one worker cannot take a second batch with it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reward_server.scorers.base import ItemError, Outcome
from reward_server.worker.handle import RawItem


@dataclass(slots=True, eq=False)
class Job:
    """One image for one scorer.

    Attributes:
        item: image, prompt and metadata.
        deadline: value of time.monotonic() after which nobody waits for the outcome.
        deliver: called once, with the outcome, from a worker's thread.
        queued: value of time.monotonic() when it was put into the queue.
        deaths: workers that died with this job in hand.
    """

    item: RawItem
    deadline: float
    deliver: Callable[[Outcome], None]
    queued: float
    deaths: int = 0


class JobQueue:
    """Jobs of one scorer, shared by its workers.

    Args:
        max_images: largest batch.
        max_wait_s: how long an incomplete batch waits for more images.
    """

    def __init__(self, max_images: int, max_wait_s: float) -> None:
        self._max_images = max_images
        self._max_wait_s = max_wait_s
        self._jobs: deque[Job] = deque()
        self._suspects: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._jobs) + len(self._suspects)

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; the caller bounds how many wait."""
        with self._changed:
            self._jobs.extend(jobs)
            self._changed.notify_all()

    def put_suspects(self, jobs: Sequence[Job]) -> None:
        """Queue jobs again that must not share a batch any more."""
        with self._changed:
            self._suspects.extend(jobs)
            self._changed.notify_all()

    def take(self, leave: Callable[[], bool] = lambda: False) -> list[Job] | None:
        """The next batch, waiting for one; late jobs get their error here.

        Args:
            leave: asked whenever the queue wakes; True ends the waiting.

        Returns:
            A batch, or None once the queue is closed or ``leave`` says so.
        """
        while (batch := self._take(leave)) is not None:
            now = time.monotonic()
            for job in batch:
                if now > job.deadline:
                    job.deliver(
                        ItemError("deadline", "the deadline passed while the image waited for its turn", retryable=True)
                    )
            if in_time := [job for job in batch if now <= job.deadline]:
                return in_time
        return None

    def close(self) -> None:
        """Make ``take`` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Make everybody who waits ask ``leave`` again."""
        with self._changed:
            self._changed.notify_all()

    def drain(self) -> list[Job]:
        """Everything that waits, for an error instead of a score."""
        with self._changed:
            jobs = [*self._suspects, *self._jobs]
            self._suspects.clear()
            self._jobs.clear()
            return jobs

    def _take(self, leave: Callable[[], bool]) -> list[Job] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or leave() or self._jobs or self._suspects)
            if self._closed or leave():
                return None
            if self._suspects:
                return [self._suspects.popleft()]
            until = self._jobs[0].queued + self._max_wait_s
            while not self._closed and 0 < len(self._jobs) < self._max_images:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            # Another worker may have taken them meanwhile: then this is an empty batch, and the caller asks again.
            return [self._jobs.popleft() for _ in range(min(self._max_images, len(self._jobs)))]
