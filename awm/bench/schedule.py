"""Runs jobs side by side until none is left: start, watch, record; one thread, so that Ctrl-C is simple."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from awm.bench.jobs import Job, Record

POLL_S = 0.5
STOP_S = 90.0  # for a trainer to reach a safe point, save and end


class Running(Protocol):
    """A job that has been started."""

    job: Job

    def finished(self) -> Record | None:
        """Its record once it is over, whether or not it failed; None while it goes on."""

    def progress(self) -> float:
        """The part of it that is done, in [0, 1]."""

    def interrupt(self, *, at_once: bool) -> None:
        """Ask it to save and end; ``at_once`` does not ask."""

    def ended(self) -> bool:
        """Whether no process of it is left."""


class Display(Protocol):
    """What somebody watching is shown."""

    def started(self, job: Job) -> None:
        """A job runs."""

    def ended(self, job: Job, record: Record) -> None:
        """A job is over."""

    def show(self, running: Sequence[Running], left: int) -> None:
        """What runs now, and how many jobs are still to be started."""

    def stopping(self) -> None:
        """Somebody wants an end; the running jobs are asked to save."""


def run_all(
    waiting: Callable[[], list[Job]],
    start: Callable[[Job], Running],
    display: Display,
    known: dict[str, Record],
    *,
    parallel: int,
    left: Callable[[], int],
    watch: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Record]:
    """Run everything that ``waiting`` names, and what it names once those are over.

    A job that fails is a record like another, and the rest goes on.

    Args:
        waiting: the jobs without a record, in order; asked again after each record.
        start: starts one of them.
        display: is told.
        known: records by the name of their job; each new one is added.
        parallel: jobs at a time.
        left: number of jobs without a record, those that ``waiting`` cannot name yet included.
        watch: called now and then, for what has to be kept alive.
        sleep: between two looks.

    Returns:
        The records of this call, in the order in which they ended.

    Raises:
        KeyboardInterrupt: after all jobs have saved and ended; the next call continues them.
    """
    running: list[Running] = []
    records: list[Record] = []
    try:
        while True:
            active = {each.job.name for each in running}
            for job in [job for job in waiting() if job.name not in active][: parallel - len(running)]:
                running.append(start(job))
                display.started(job)
            if not running:
                return records
            display.show(running, left() - len(running))
            sleep(POLL_S)
            watch()
            for each in list(running):
                record = each.finished()
                if record is not None:
                    running.remove(each)
                    records.append(record)
                    known[each.job.name] = record
                    display.ended(each.job, record)
    except KeyboardInterrupt:
        display.stopping()
        raise
    finally:
        stop_all(running, sleep)


def stop_all(running: Sequence[Running], sleep: Callable[[float], None]) -> None:
    """Ask all to save and end, and wait; one more Ctrl-C, or too long a wait, ends them where they are."""
    try:
        for each in running:
            each.interrupt(at_once=False)
        waited = 0.0
        while waited < STOP_S and not all(each.ended() for each in running):
            sleep(POLL_S)
            waited += POLL_S
    finally:
        for each in running:
            if not each.ended():
                each.interrupt(at_once=True)
