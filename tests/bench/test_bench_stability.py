"""When a ranking counts as stable."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_up import GRID, an_arm, finished, settings

from awm.bench.comparison import compare
from awm.bench.jobs import final_jobs
from awm.bench.rows import Row
from awm.bench.stability import Stability, stability

SETTINGS = settings(seeds=(0, 1, 2), second_seeds=(3, 4, 5))


def rows(scores: dict[str, tuple[list[float], list[float]]]) -> list[Row]:
    arms = {name: an_arm(name, GRID[:1]) for name in scores}
    records = {}
    for name, (first, second) in scores.items():
        for job, score in zip(final_jobs(name, arms[name], GRID[0], SETTINGS), [*first, *second], strict=True):
            records[job.name] = finished(job, [score])
    return list(compare(arms, SETTINGS, records).rows)


def stable_rows(scores: dict[str, tuple[list[float], list[float]]]) -> Stability:
    return stability(rows(scores), SETTINGS)


def ranked(**scores: tuple[float, float]) -> Stability:
    """Each arm's mean in the first and the second set, seeds 0.01 apart."""
    around = (-0.01, 0.0, 0.01)
    return stable_rows({name: tuple([mean + x for x in around] for mean in both) for name, both in scores.items()})


def test_the_same_order_twice_is_stable():
    result = ranked(a=(0.7, 0.72), b=(0.6, 0.61), c=(0.5, 0.49), d=(0.4, 0.41))
    assert result.is_stable is True and result.correlation == pytest.approx(1.0)
    assert result.swapped == () and result.sentence.startswith("The ranking is stable")


def test_neighbours_that_are_alike_may_change_places():
    result = ranked(a=(0.7, 0.7), b=(0.600, 0.598), c=(0.598, 0.600), d=(0.4, 0.4), e=(0.3, 0.3))
    assert len(result.swapped) == 1 and result.serious == () and result.is_stable is True


def test_a_change_of_places_beyond_the_errors_is_not_stable_however_high_the_correlation():
    arms = {f"x{number}": (0.1 * number, 0.1 * number) for number in range(1, 8)}
    result = ranked(**arms, y=(0.85, 0.75), z=(0.75, 0.85))
    assert result.correlation > 0.9 and len(result.serious) == 1 and result.is_stable is False
    assert "NOT stable" in result.sentence


def test_many_small_changes_of_places_are_not_stable_either():
    result = ranked(a=(0.503, 0.5), b=(0.502, 0.501), c=(0.501, 0.502), d=(0.5, 0.503))
    assert result.correlation == pytest.approx(-1.0) and result.serious == () and result.is_stable is False


def test_two_arms_or_one_set_of_seeds_say_nothing():
    assert ranked(a=(0.7, 0.7), b=(0.6, 0.6)).is_stable is None
    alone = stability(rows({name: ([0.5] * 3, [0.5] * 3) for name in "abc"}), replace(SETTINGS, second_seeds=()))
    assert alone.is_stable is None and not alone.means and "not known: 0 arms have" in alone.sentence


def test_errors_come_from_the_spread_within_a_set():
    # All seeds of an arm together spread by 0.1 because its sets differ by 0.2: that must not excuse the difference.
    result = ranked(a=(0.7, 0.5), b=(0.5, 0.7), c=(0.3, 0.3))
    assert result.errors["a"] == pytest.approx((0.01 / math.sqrt(3),) * 2)
    assert len(result.serious) == 1 and result.is_stable is False


def test_the_better_half_is_looked_at_by_itself():
    # Five places below the top three are clear; among the three nothing is.
    scores = {f"x{number}": (0.1 * number, 0.1 * number) for number in range(1, 4)}
    result = ranked(a=(0.903, 0.9), b=(0.902, 0.901), c=(0.9, 0.903), **scores)
    assert result.top_correlation == pytest.approx(-1.0) and result.correlation > 0.7
    assert "(-1.00 in the better half)" in result.sentence


def test_arms_that_all_score_alike_have_no_ranking():
    assert ranked(a=(0.5, 0.5), b=(0.5, 0.5), c=(0.5, 0.5)).is_stable is None


def test_single_seeds_have_no_errors_and_so_no_serious_changes():
    one = settings(seeds=(0,), second_seeds=(1,))
    arms = {name: an_arm(name, GRID[:1]) for name in "abc"}
    scores = {"a": (0.9, 0.1), "b": (0.5, 0.5), "c": (0.1, 0.9)}
    records = {
        job.name: finished(job, [score])
        for name in arms
        for job, score in zip(final_jobs(name, arms[name], GRID[0], one), scores[name], strict=True)
    }
    result = stability(compare(arms, one, records).rows, one)
    assert len(result.swapped) == 3 and result.serious == () and result.is_stable is False
