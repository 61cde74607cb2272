"""Jobs side by side: all of them, never more than allowed, in spite of failures; and nothing is left after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from made_up import GRID, an_arm, broken, diverged, settings, tuned

from awm.bench.jobs import Job, Record, jobs_to_run, num_jobs_left
from awm.bench.schedule import STOP_S, run_all

ARMS = {"a": an_arm("awm"), "b": an_arm("simpo", GRID[:1])}
SETTINGS = settings()


class FakeRunning:
    """Takes ``length`` looks, then has a record, or never ends unless it is told to."""

    def __init__(self, job: Job, length: float, record: Record, *, deaf: bool = False) -> None:
        self.job, self.left, self.record, self.deaf = job, length, record, deaf
        self.asked = self.killed = False

    def finished(self) -> Record | None:
        self.left -= 1
        return self.record if self.left <= 0 else None

    def progress(self) -> float:
        return 0.5

    def interrupt(self, *, at_once: bool) -> None:
        self.asked = True
        self.killed = self.killed or at_once

    def ended(self) -> bool:
        return self.killed or (self.asked and not self.deaf)


class World:
    """What was started, shown and said."""

    def __init__(
        self,
        length: Callable[[Job], float] = lambda job: 2,
        *,
        diverging: str = "?",
        breaking: str = "?",
        deaf: bool = False,
    ) -> None:
        self.length, self.diverging, self.breaking, self.deaf = length, diverging, breaking, deaf
        self.known: dict[str, Record] = {}
        self.runs: list[FakeRunning] = []
        self.most = self.looks = 0
        self.left_shown: list[int] = []
        self.endings: list[str] = []

    def start(self, job: Job) -> FakeRunning:
        record: Record = tuned(job, [0.5, 0.5])
        if job.name.startswith(self.diverging):
            record = diverged(job, [0.5], epochs=2)
        if job.name.startswith(self.breaking):
            record = broken(job)
        self.runs.append(FakeRunning(job, self.length(job), record, deaf=self.deaf))
        return self.runs[-1]

    def started(self, job: Job) -> None:
        pass

    def ended(self, job: Job, record: Record) -> None:
        self.endings.append(f"{job.name} {record['status']}")

    def show(self, running: Sequence[FakeRunning], left: int) -> None:
        self.most = max(self.most, len(running))
        self.left_shown.append(left)

    def stopping(self) -> None:
        self.endings.append("stopping")

    def sleep(self, seconds: float) -> None:
        self.looks += 1

    def run(self, parallel: int = 2, sleep: Callable[[float], None] | None = None) -> list[Record]:
        return run_all(
            lambda: jobs_to_run(ARMS, SETTINGS, self.known, ("tune", "final")),
            self.start,
            self,
            self.known,
            parallel=parallel,
            left=lambda: num_jobs_left(ARMS, SETTINGS, self.known, ("tune", "final")),
            sleep=sleep or self.sleep,
        )


@pytest.mark.parametrize("parallel", [1, 2, 16])
def test_everything_runs_once_and_never_more_at_a_time_than_allowed(parallel: int):
    world = World()
    records = world.run(parallel)
    assert len(records) == len(world.known) == 10 and len({run.job.name for run in world.runs}) == 10
    assert world.most <= parallel
    assert world.left_shown[-1] == 0 and max(world.left_shown) == 10 - min(parallel, 6)


def test_a_chosen_setting_starts_while_another_arm_still_runs():
    world = World(lambda job: 50 if job.arm == "b" else 1)
    world.run(6)
    order = [run.job.name for run in world.runs]
    assert order.index("a-low-seed0") > order.index("b-low-seed3")
    assert world.endings.index("a-low-seed3 finished") < world.endings.index("b-low-seed0 finished")


def test_a_run_that_diverged_is_a_record_and_the_rest_goes_on():
    world = World(diverging="a-low")
    records = world.run()
    assert [record["name"] for record in records if record["status"] == "diverged"] == ["a-low-seed100"]
    assert {run.job.setting for run in world.runs if run.job.arm == "a" and run.job.stage == "final"} == {"high"}
    assert len(records) == 10


def test_a_broken_job_is_not_tried_again_in_the_same_call_and_its_arm_waits():
    world = World(breaking="")
    world.run()
    assert len(world.runs) == len({run.job.name for run in world.runs}) == 2 + 4


def test_finished_runs_are_only_read():
    world = World()
    world.run()
    again = World()
    again.known = world.known
    assert again.run() == [] and again.runs == []


def test_an_interruption_asks_all_to_save_and_the_next_call_makes_what_is_missing():
    world = World()

    def press(seconds: float) -> None:
        world.looks += 1
        if world.looks == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run(sleep=press)
    open_runs = [run for run in world.runs if run.job.name not in world.known]
    assert open_runs and all(run.asked and not run.killed for run in open_runs) and world.endings[-1] == "stopping"
    done = set(world.known)
    again = World()
    again.known = world.known
    again.run()
    assert len(again.known) == 10 and not done & {run.job.name for run in again.runs}


def test_a_trainer_that_does_not_end_is_killed_after_a_while():
    world = World(lambda job: 1e9, deaf=True)
    waited = 0.0

    def wait(seconds: float) -> None:
        nonlocal waited
        if not waited and not any(run.asked for run in world.runs):
            raise KeyboardInterrupt
        waited += seconds

    with pytest.raises(KeyboardInterrupt):
        world.run(sleep=wait)
    assert all(run.killed for run in world.runs) and waited == STOP_S


def test_a_second_interruption_kills_at_once():
    world = World(lambda job: 1e9, deaf=True)

    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run(sleep=press)
    assert world.runs and all(run.killed for run in world.runs)


def test_nothing_is_left_when_something_cannot_be_started():
    world = World()
    starts = world.start

    def start(job: Job) -> FakeRunning:
        if world.runs:
            raise OSError("no memory")
        return starts(job)

    world.start = start  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no memory"):
        world.run()
    assert world.runs[0].asked
