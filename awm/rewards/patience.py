"""How much waiting one call to a reward may still do: exponential back-off with jitter, inside a deadline.

Jitter keeps many clients of one server from coming back in step:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter
"""

from __future__ import annotations

import math
import random
import threading
import time
from dataclasses import dataclass

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
POLL_S = 0.2  # between looks at the events that end a pause: a thread can sleep on one event only


@dataclass(slots=True)
class Patience:
    """What is left of one call's patience.

    Attributes:
        give_up: value of time.monotonic() after which nothing is tried again.
        retries: further attempts after a refusal that may be for good.
        wait_s: seconds of pauses that are left; 0: never wait.
        stops: once one of these is set, nothing is waited for any more.
        pauses: how many there have been.
    """

    give_up: float
    retries: int
    wait_s: float = math.inf
    stops: tuple[threading.Event, ...] = ()
    pauses: int = 0

    def lasts(self) -> bool:
        """Whether there is time for another attempt, and the wish."""
        return time.monotonic() < self.give_up and not any(stop.is_set() for stop in self.stops)

    def pause(self, at_least_s: float = 0.0) -> bool:
        """Wait, longer each time and never in step with other clients; False if there is no time left, or no wish."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self.pauses)
        seconds = at_least_s + random.uniform(0.5, 1.0) * longest
        until = time.monotonic() + seconds
        if seconds > self.wait_s or until > self.give_up:
            return False
        self.pauses += 1
        self.wait_s -= seconds
        return self._sleep(until)

    def _sleep(self, until: float) -> bool:
        """Sleep until then; False if a stop came first."""
        while (left := until - time.monotonic()) > 0:
            if not self.lasts():
                return False
            self.stops[0].wait(min(left, POLL_S)) if self.stops else time.sleep(left)
        return self.lasts()
