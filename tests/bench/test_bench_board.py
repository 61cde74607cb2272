"""What somebody watching the terminal reads."""

from __future__ import annotations

import io

from made_up import GRID, an_arm, broken, diverged, finished, settings, tuned

from awm.bench.board import QUIET_S, Board
from awm.bench.jobs import Job, final_jobs, tuning_jobs

ARM = an_arm("awm")
TUNE = tuning_jobs("a", ARM, settings())
FINAL = final_jobs("a", ARM, GRID[0], settings())


class Screen(io.StringIO):
    def __init__(self, live: bool) -> None:
        super().__init__()
        self.live = live

    def isatty(self) -> bool:
        return self.live


class Part:
    """A running job."""

    def __init__(self, job: Job, part: float) -> None:
        self.job, self.part = job, part

    def progress(self) -> float:
        return self.part


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def board(live: bool, total: int = 4) -> tuple[Board, Screen, Clock]:
    screen, clock = Screen(live), Clock()
    return Board(total, screen, clock), screen, clock


def test_events_say_what_came_out():
    shown, screen, _ = board(live=False)
    shown.started(TUNE[0])
    shown.ended(TUNE[0], tuned(TUNE[0], [0.1, 0.5]))
    shown.ended(FINAL[0], finished(FINAL[0], [0.5, 0.625]))
    shown.ended(FINAL[1], broken(FINAL[1], "no more memory"))
    shown.ended(FINAL[2], diverged(FINAL[2], [0.5], epochs=2))
    assert screen.getvalue().splitlines() == [
        "started  a-low-seed100",
        "tuned    a-low-seed100: training reward 0.500",
        "finished a-low-seed0: held-out geneval.strict 0.400 -> 0.625",
        "BROKEN   a-low-seed1: no more memory",
        "DIVERGED a-low-seed2: non-finite loss",
    ]


def test_a_log_file_gets_a_line_a_minute():
    shown, screen, clock = board(live=False)
    for _ in range(100):
        shown.show([Part(FINAL[0], 0.5)], 3)
    assert len(screen.getvalue().splitlines()) == 1 and "\x1b" not in screen.getvalue()
    clock.now = QUIET_S
    shown.show([Part(FINAL[0], 0.75)], 3)
    assert screen.getvalue().splitlines()[-1].endswith("now a-low-seed0 75%")


def test_a_terminal_gets_a_bar_for_each_run_which_the_next_look_replaces():
    shown, screen, _ = board(live=True)
    shown.show([Part(FINAL[0], 0.5), Part(FINAL[1], 0.0)], 2)
    first = screen.getvalue()
    assert "██████░░░░░░  50%  a-low-seed0\n" in first and "░░░░░░░░░░░░   0%  a-low-seed1\n" in first
    shown.show([Part(FINAL[0], 0.75)], 2)
    assert screen.getvalue()[len(first) :].startswith("\x1b[3A\x1b[J")
    shown.started(FINAL[2])
    assert screen.getvalue().endswith("\x1b[2A\x1b[Jstarted  a-low-seed2\n")


def test_the_time_left_follows_from_what_this_call_has_done():
    shown, screen, clock = board(live=False, total=4)
    # Half of it was done by an earlier call, which says nothing about the speed.
    shown.show([Part(FINAL[0], 0.5)], 3)
    assert "started" in screen.getvalue()
    clock.now = 100.0
    shown.show([Part(FINAL[0], 0.75)], 3)
    # A quarter of a run in 100 s; 3 and a quarter are left.
    assert "0 of 4 runs done, about 21 min 40 s left" in screen.getvalue()
    shown.ended(FINAL[0], finished(FINAL[0], [0.5]))
    clock.now = 200.0
    shown.show([Part(FINAL[1], 0.5)], 2)
    # A run's half and another's half in 200 s; 2 and a half are left.
    assert "1 of 4 runs done" in screen.getvalue().splitlines()[-1]
