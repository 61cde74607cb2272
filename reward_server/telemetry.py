"""What the server counts and times, for ``GET /metrics`` in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from reward_server.scorers.base import ItemError, Outcome

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """The server's metrics, in a registry of their own, so that a process may hold several servers."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("awm_reward_requests", "answered requests", ["status"], registry=registry)
        self._joined = Counter(
            "awm_reward_requests_joined", "requests sent again while the first was in work", registry=registry
        )
        self._latency = Histogram(
            "awm_reward_request_seconds", "time to answer a scoring request", buckets=_SECONDS, registry=registry
        )
        self._outcomes = Counter(
            "awm_reward_images", "images by outcome: ok, or the error's code", ["reward", "outcome"], registry=registry
        )
        self._queued = Gauge("awm_reward_queued_images", "images waiting for a worker", ["reward"], registry=registry)
        self._batches = Histogram(
            "awm_reward_batch_images", "images per batch", ["reward"], buckets=_IMAGES, registry=registry
        )
        self._stages = Histogram(
            "awm_reward_stage_seconds",
            "per image: wait in the queue; per batch: decode, score",
            ["reward", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._alive = Gauge("awm_reward_workers_alive", "workers that can score", ["reward"], registry=registry)
        self._restarts = Counter("awm_reward_worker_restarts", "workers started anew", ["reward"], registry=registry)

    def declare(self, reward: str) -> None:
        """Show a reward with zeros before anything has happened to it."""
        self._outcomes.labels(reward, "ok")
        self._restarts.labels(reward)
        self._alive.labels(reward).set(0)
        self._queued.labels(reward).set(0)

    def request(self, status: int, seconds: float) -> None:
        """A scoring request was answered."""
        self._requests.labels(str(status)).inc()
        self._latency.observe(seconds)

    def joined(self) -> None:
        """A request was sent again while in work, and waits for the first one's result."""
        self._joined.inc()

    def outcome(self, reward: str, outcome: Outcome) -> None:
        """An image got its score or its error."""
        self._outcomes.labels(reward, outcome.code if isinstance(outcome, ItemError) else "ok").inc()

    def batch(self, reward: str, waits: Sequence[float], stages: Mapping[str, float]) -> None:
        """A worker scored a batch: seconds each image had waited, and the worker's own times."""
        self._batches.labels(reward).observe(len(waits))
        wait = self._stages.labels(reward, "wait")
        for seconds in waits:
            wait.observe(seconds)
        for stage, seconds in stages.items():
            self._stages.labels(reward, stage.removesuffix("_s")).observe(seconds)

    def queued(self, reward: str, images: int) -> None:
        """So many images wait."""
        self._queued.labels(reward).set(images)

    def alive(self, reward: str, workers: int) -> None:
        """So many workers can score."""
        self._alive.labels(reward).set(workers)

    def restarted(self, reward: str) -> None:
        """A worker is about to be started in the place of a dead one."""
        self._restarts.labels(reward).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return bytes(generate_latest(self._registry))
