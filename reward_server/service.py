"""The scoring service without HTTP: starts the workers, admits requests, collects their results."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from reward_server import __version__, wire
from reward_server.jobs import Job
from reward_server.pool import WorkerPool
from reward_server.scorers.base import Outcome
from reward_server.settings import Settings
from reward_server.telemetry import Telemetry
from reward_server.ticket import Ticket
from reward_server.wire import ScoreRequest
from reward_server.worker.handle import Hello, RawItem

log = logging.getLogger(__name__)

QUEUED_BODIES = 16  # of the largest allowed size, or more of smaller ones, may wait with their images in memory


class BusyError(Exception):
    """The request cannot be taken now, but later.

    Attributes:
        code: ``overloaded`` or ``not_ready``; the client waits longer for a server that is starting.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Service:
    """Scores requests with the scorers named in ``settings``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failure: str | None = None
        self.telemetry = Telemetry()
        self._hellos: dict[str, Hello] = {}
        self._pools: dict[str, WorkerPool] = {}
        for name, scorer in settings.scorers.items():
            self.telemetry.declare(name)
            self._pools[name] = WorkerPool(name, scorer, settings.limits.max_pixels, self.telemetry)
        self._lock = threading.Lock()
        self._queued = 0
        self._bytes = 0
        self._in_work: dict[str, Ticket] = {}

    @property
    def ready(self) -> bool:
        """True while every reward has a worker that has scored its warm-up image."""
        return self.not_ready_because() is None

    @property
    def loaded(self) -> bool:
        """True once every reward has been ready; what ``info`` says is complete from then on."""
        return len(self._hellos) == len(self._pools)

    @property
    def gave_up(self) -> bool:
        """True once no reward is left whose workers have not failed to start too often to be tried again."""
        return all(pool.failure for pool in self._pools.values())

    def not_ready_because(self, rewards: Iterable[str] | None = None) -> str | None:
        """Why these rewards, or any, cannot be scored just now, or None."""
        if self.failure:
            return self.failure
        if not self.loaded:
            return f"the scorers are loading: {', '.join(name for name in self._pools if name not in self._hellos)}"
        for name in self._pools if rewards is None else rewards:
            if self._pools[name].num_alive == 0:
                return f"reward {name} has no worker: {self._pools[name].failure or 'it is being started anew'}"
        return None

    def load(self) -> None:
        """Start all workers and wait until they are warm. A failure is kept in ``failure`` and raised."""
        try:
            for pool in self._pools.values():
                pool.start()
            for name, pool in self._pools.items():
                self._hellos[name] = pool.wait_until_warm()
        except Exception as error:
            self.failure = str(error)
            raise

    def submit(self, request: ScoreRequest, deadline_s: float) -> Ticket:
        """Queue a request, all of it or nothing; one that is sent again while in work joins the first.

        Raises:
            BusyError: not ready, or no room.
        """
        if reason := self.not_ready_because(request.rewards):
            raise BusyError("not_ready", f"{reason}; wait for /readyz")
        needed = len(request.items) * len(request.rewards)
        ticket = Ticket(request)
        with self._lock:
            # An id is the client's word only: two requests are the same if they are equal.
            if (first := self._in_work.get(request.request_id)) and first.request == request:
                self.telemetry.joined()
                return first
            if self._queued + needed > self.settings.max_queued:
                raise BusyError("overloaded", f"{self._queued} images are waiting; no room for {needed} more")
            # Requests whose deadline has passed still hold their images until a worker has got to them.
            if self._bytes + ticket.size > QUEUED_BODIES * self.settings.limits.max_body_bytes:
                raise BusyError("overloaded", f"images of {self._bytes >> 20} MB are waiting; no room for more")
            self._queued += needed
            self._bytes += ticket.size
            if request.request_id:
                self._in_work.setdefault(request.request_id, ticket)
        self._enqueue(ticket, deadline_s)
        return ticket

    def unknown_rewards(self, request: ScoreRequest) -> list[str]:
        """Rewards the request names and this server does not have."""
        return [name for name in request.rewards if name not in self._pools]

    def info(self) -> dict[str, Any]:
        """Versions, limits, and what is known about each reward; complete once ready."""
        return {
            "version": __version__,
            "wire_version": wire.VERSION,
            "limits": asdict(self.settings.limits),
            "rewards": {
                name: {
                    "metrics": list(hello.metrics),
                    "fingerprint": self.fingerprint(name),
                    "versions": dict(hello.versions),
                    "example": dict(hello.example),
                    "workers": self._pools[name].num_alive,
                }
                for name, hello in self._hellos.items()
            },
        }

    def fingerprint(self, name: str) -> str:
        """Hash of everything the scores of one reward depend on."""
        versions = dict(self._hellos[name].versions)
        return hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]

    def metrics(self) -> bytes:
        """Prometheus' text."""
        for name, pool in self._pools.items():
            self.telemetry.queued(name, pool.num_queued)
        return self.telemetry.text()

    def worker_pids(self) -> dict[str, list[int]]:
        """Reward name -> processes of its workers that can score."""
        return {name: pool.pids() for name, pool in self._pools.items()}

    def stop(self) -> None:
        """End the workers."""
        self.failure = self.failure or "the server is stopping"
        for pool in self._pools.values():
            pool.stop()

    def _enqueue(self, ticket: Ticket, deadline_s: float) -> None:
        deadline = ticket.created + min(deadline_s, self.settings.deadline_s)
        for name in ticket.request.rewards:
            jobs = []
            for index, item in enumerate(ticket.request.items):
                deliver = partial(self._deliver, ticket, index, name)
                jobs.append(
                    Job(RawItem(item.image, item.prompt, item.metadata), deadline, deliver, queued=ticket.created)
                )
            self._pools[name].submit(jobs)

    def _deliver(self, ticket: Ticket, index: int, reward: str, outcome: Outcome) -> None:
        with self._lock:
            self._queued -= 1
        self.telemetry.outcome(reward, outcome)
        if ticket.deliver(index, reward, outcome):
            self._forget(ticket)
            ticket.finish()

    def _forget(self, ticket: Ticket) -> None:
        # Not as a callback of ticket.done: the ticket, which holds the images, would be part of a cycle and stay until
        # the garbage collector comes by.
        with self._lock:
            self._bytes -= ticket.size
            if self._in_work.get(ticket.request.request_id) is ticket:
                del self._in_work[ticket.request.request_id]
