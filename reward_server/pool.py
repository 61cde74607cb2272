"""The workers of one reward: kept alive, fed from one queue, and isolated from each other's accidents.

What happens to the images a worker had in hand when it died:

* they are scored again, once each and alone, by whichever worker is free: batch mates of a poisonous image get
  their scores;
* an image that was alone when its worker crashed again is the culprit and gets an error that says so;
* where the process was ended from outside (the kernel's OOM killer, an operator), or an image alone is too slow,
  the error is retryable: it may be different next time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from reward_server.jobs import Job, JobQueue
from reward_server.scorers.base import ItemError
from reward_server.settings import ScorerSettings
from reward_server.telemetry import Telemetry
from reward_server.worker.handle import Hello, Worker, WorkerError

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
FIRST_START_PAUSE_S = 1.0  # after a failed start: memory of a dead process takes a moment to be free again
LONGEST_PAUSE_S = 30.0
MAX_FAILED_STARTS = 5  # in a row; then the scorer is given up until the server is started anew
STOP_TIMEOUT_S = 5.0


class WorkerPool:
    """See the module docstring.

    Args:
        name: the reward's name.
        settings: what its workers run.
        max_pixels: largest image they decode.
        telemetry: told of batches, restarts and how many workers live.
    """

    def __init__(self, name: str, settings: ScorerSettings, max_pixels: int, telemetry: Telemetry) -> None:
        self.name = name
        self.hello: Hello | None = None
        self.failure: str | None = None
        self._settings = settings
        self._max_pixels = max_pixels
        self._telemetry = telemetry
        self._queue = JobQueue(settings.batch_images, settings.batch_wait_s)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._alive: dict[int, Worker] = {}  # those that are warm, by seat
        self._processes: dict[int, Worker] = {}  # all that run, by seat
        devices = [device for device in settings.devices for _ in range(settings.workers_per_device)]
        self._threads = [
            threading.Thread(target=self._run, args=(seat, device), name=f"{name}-{seat}", daemon=True)
            for seat, device in enumerate(devices)
        ]
        self._known = threading.Condition(self._lock)
        self._warm = False  # all workers have been ready at the same time once
        self._num_lost = 0  # seats that were given up

    @property
    def num_alive(self) -> int:
        """Workers that can score."""
        return len(self._alive)

    @property
    def num_queued(self) -> int:
        """Images that wait."""
        return len(self._queue)

    def pids(self) -> list[int]:
        """Processes of the workers that can score."""
        with self._lock:
            return [worker.pid for worker in self._alive.values()]

    def start(self) -> None:
        """Start every worker; they get ready in the background."""
        for thread in self._threads:
            thread.start()

    def wait_until_warm(self) -> Hello:
        """What the workers said, once all of them are warm.

        Raises:
            WorkerError: the first of them that could not start.
        """
        with self._known:
            self._known.wait_for(
                lambda: self.failure or self._stopping.is_set() or self.num_alive == len(self._threads)
            )
            if self.hello is None or self.failure or self._stopping.is_set():
                raise WorkerError("start", f"scorer {self.name}: {self.failure or 'the server is stopping'}")
            self._warm = True
            return self.hello

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; the caller bounds how many wait."""
        self._queue.put(jobs)
        # Given up, or stopped, between the caller's check and now: nobody would ever take them.
        if self.failure or self._stopping.is_set():
            self._fail(self._queue.drain(), "worker_down", self.failure or "the server is stopping")

    def stop(self) -> None:
        """End the workers; what is still in hand or waits gets an error."""
        self._stopping.set()
        self._queue.close()
        with self._known:
            processes = list(self._processes.values())
            self._known.notify_all()
        for worker in processes:
            worker.kill()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(STOP_TIMEOUT_S)
        self._fail(self._queue.drain(), "stopping", "the server is stopping")

    def _run(self, seat: int, device: str) -> None:
        """One worker's life, and its successors'; a defect of ours must not leave the seat silently empty."""
        try:
            self._keep_alive(seat, device)
        except Exception as error:
            log.exception("reward %s: defect in the server, worker %d is given up", self.name, seat)
            if worker := self._processes.get(seat):
                self._buried(seat, worker)
            self._give_up(f"worker {seat}: {type(error).__name__}: {error}")

    def _keep_alive(self, seat: int, device: str) -> None:
        pauses = failed_starts = 0
        while not self._stopping.is_set():
            try:
                worker = self._start(seat, device)
            except WorkerError as error:
                if self._stopping.is_set():
                    return
                failed_starts += 1
                log.error("reward %s: worker %d did not start: %s", self.name, seat, error)
                # Before the server is ready a failure is a wrong setting: say so at once.
                if not self._warm or failed_starts == MAX_FAILED_STARTS:
                    self._give_up(f"worker {seat} did not start: {error}")
                    return
            else:
                failed_starts = 0
                if self._serve(worker):
                    pauses = 0
                self._buried(seat, worker)
            pauses += 1
            first = FIRST_START_PAUSE_S if failed_starts else FIRST_PAUSE_S
            if not self._stopping.wait(min(LONGEST_PAUSE_S, first * 2 ** min(pauses - 1, 10))):
                self._telemetry.restarted(self.name)

    def _start(self, seat: int, device: str) -> Worker:
        worker = Worker(self.name, self._settings, device, self._max_pixels)
        with self._lock:
            self._processes[seat] = worker
        try:
            if self._stopping.is_set():
                raise WorkerError("start", "the server is stopping")
            started = time.monotonic()
            hello = worker.start()
            with self._known:
                if self.hello is not None and self.hello.versions != hello.versions:
                    raise WorkerError(
                        "start", f"its scores would not be comparable: {dict(hello.versions)} is not what the first "
                        f"worker reported, {dict(self.hello.versions)}"
                    )  # fmt: skip
                self.hello = hello
                self._alive[seat] = worker
                self._known.notify_all()
        except WorkerError:
            self._buried(seat, worker)
            raise
        log.info("reward %s: worker %d (%s) is ready after %.1f s", self.name, seat, device, time.monotonic() - started)
        self._telemetry.alive(self.name, self.num_alive)
        return worker

    def _serve(self, worker: Worker) -> bool:
        """Score batches until the worker dies or the queue closes; True if it scored any."""
        threading.Thread(target=self._watch, args=(worker,), name=f"{self.name}-watch", daemon=True).start()
        useful = False
        while self._serve_batch(worker):
            useful = True
        return useful

    def _serve_batch(self, worker: Worker) -> bool:
        """Score the next batch; False if there is none, or the worker died of it.

        A function of its own, so that nothing holds the batch's images while the next one is waited for.
        """
        batch = self._queue.take(leave=worker.ended)
        if batch is None:
            if not self._stopping.is_set():
                log.error("reward %s: a worker died while it had nothing to do", self.name)
            return False
        taken = time.monotonic()
        try:
            outcomes, stages = worker.score([job.item for job in batch])
        except WorkerError as error:
            if not self._stopping.is_set():
                log.error("reward %s: a worker died with %d images in hand: %s", self.name, len(batch), error)
            self._after_death(batch, error)
            return False
        except Exception:
            self._fail(batch, "internal", "a defect in the server; its log has the traceback", retryable=False)
            raise
        for job, outcome in zip(batch, outcomes, strict=True):
            job.deliver(outcome)
        self._telemetry.batch(self.name, [taken - job.queued for job in batch], stages)
        return True

    def _watch(self, worker: Worker) -> None:
        """Nobody talks to an idle worker, so nobody would notice its death."""
        worker.wait()
        self._queue.wake()

    def _after_death(self, batch: Sequence[Job], error: WorkerError) -> None:
        if self._stopping.is_set():
            self._fail(batch, "stopping", "the server is stopping")
            return
        alone = len(batch) == 1
        for job in batch:
            job.deaths += 1
        if not alone or batch[0].deaths < 2:
            self._queue.put_suspects(batch)
        elif error.cause == "crash":
            message = f"scoring this image crashed its worker, {batch[0].deaths} times: {error}"
            self._fail(batch, "worker_crashed", message, retryable=False)
        else:
            self._fail(batch, {"hang": "timeout"}.get(error.cause, "worker_killed"), str(error))

    def _fail(self, jobs: Sequence[Job], code: str, message: str, retryable: bool = True) -> None:
        for job in jobs:
            job.deliver(ItemError(code, message, retryable))

    def _give_up(self, reason: str) -> None:
        with self._known:
            self._num_lost += 1
            if self._warm and self._num_lost < len(self._threads):
                return  # the others carry on
            self.failure = reason
            self._known.notify_all()
        self._fail(self._queue.drain(), "worker_down", reason)

    def _buried(self, seat: int, worker: Worker) -> None:
        worker.close()
        with self._lock:
            self._processes.pop(seat, None)
            self._alive.pop(seat, None)
        self._telemetry.alive(self.name, self.num_alive)
