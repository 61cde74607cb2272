"""What float32 cannot hold is an error that is said; one failed call ends the others."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from awm.rewards.collect import representable, run_all
from reward_server.scorers.base import ItemError, Outcome, Scores


def test_numbers_beyond_float32_are_errors() -> None:
    good: list[Outcome] = [Scores(3.4e38, {"m": -3.4e38}), ItemError("code", "message")]
    bad = [Scores(3.5e38), Scores(0.0, {"m": -1e39}), Scores(float("nan")), Scores(float("inf"))]
    outcomes = representable([*good, *bad])
    assert outcomes[:2] == good
    for outcome in outcomes[2:]:
        assert isinstance(outcome, ItemError) and outcome.code == "not_finite" and not outcome.retryable


def slept(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_results_come_in_order() -> None:
    assert run_all(slept, [0.1, 0.0, 0.05], 3) == [0.1, 0.0, 0.05]


def test_a_failure_ends_the_others_and_is_the_one_raised(caplog: pytest.LogCaptureFixture) -> None:
    ended, began = threading.Event(), []

    def work(name: str) -> None:
        began.append(name)
        if name == "waits":
            assert ended.wait(20)
            raise RuntimeError("was told to stop")
        raise KeyError("the cause")

    with caplog.at_level(logging.WARNING), pytest.raises(KeyError, match="the cause"):
        run_all(work, ["waits", "fails"] + ["late"] * 20, 2, ended)
    assert ended.is_set() and len(began) < 22
