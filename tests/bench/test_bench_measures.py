"""Hand-computed values, limits and refusals of the measures of a comparison."""

from __future__ import annotations

import math

import pytest

from awm.bench.measures import (
    average_ranks,
    estimate,
    first_reach,
    is_above_zero,
    mean_height,
    median,
    pooled_deviation,
    spearman,
    swaps,
    value_at,
)

X, Y = [0.0, 2.0, 3.0], [0.0, 1.0, 3.0]


def test_area_by_hand():
    assert mean_height(X, Y) == pytest.approx((1.0 + 2.0) / 3.0, abs=1e-12)


def test_the_height_of_a_constant_is_the_constant_wherever_its_points_are():
    assert mean_height([0, 1, 10], [0.3] * 3) == pytest.approx(0.3, abs=1e-12)


def test_a_curve_that_rises_sooner_is_higher():
    assert mean_height([0, 1, 2], [0, 1, 1]) > mean_height([0, 1, 2], [0, 0, 1])


@pytest.mark.parametrize("x, y", [([0.0], [1.0]), ([0.0, 0.0], [1.0, 2.0]), ([0.0, 1.0], [1.0])])
def test_what_is_no_curve_is_refused(x: list[float], y: list[float]):
    for measure in (lambda: mean_height(x, y), lambda: value_at(x, y, 0.0), lambda: first_reach(x, y, 0.5)):
        with pytest.raises(ValueError, match="at least two points"):
            measure()


@pytest.mark.parametrize("at, value", [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0), (2.5, 2.0), (3.0, 3.0)])
def test_value_between_and_at_the_points(at: float, value: float):
    assert value_at(X, Y, at) == pytest.approx(value, abs=1e-12)


def test_nothing_is_known_outside_of_a_curve():
    assert math.isnan(value_at(X, Y, 3.1)) and math.isnan(value_at(X, Y, -0.1))


def test_reach_by_hand():
    assert first_reach(X, Y, 0.5) == pytest.approx(1.0)
    assert first_reach(X, Y, 2.0) == pytest.approx(2.5)
    assert first_reach(X, Y, 0.0) == 0.0
    assert first_reach(X, Y, 3.5) == math.inf


def test_reach_is_the_first_time_even_if_the_curve_falls_again():
    assert first_reach([0, 1, 2, 3], [0, 1, 0, 1], 0.5) == pytest.approx(0.5)


def test_reach_and_value_are_inverse_on_a_rising_curve():
    for threshold in (0.1, 0.9, 1.7, 2.9):
        assert value_at(X, Y, first_reach(X, Y, threshold)) == pytest.approx(threshold, abs=1e-12)


def test_median_counts_those_that_never_arrive():
    assert median([1.0, math.inf, 2.0]) == 2.0
    assert median([1.0, math.inf]) == math.inf
    assert median([math.inf, math.inf]) == math.inf
    assert median([4.0, 1.0]) == 2.5
    assert math.isnan(median([]))


def test_estimate_by_hand():
    value = estimate([1.0, 2.0, 6.0])
    assert (value.n, value.mean) == (3, 3.0)
    assert value.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3), abs=1e-12)


def test_one_value_has_no_error_and_none_no_mean():
    assert estimate([2.0]).mean == 2.0 and math.isnan(estimate([2.0]).standard_error)
    assert math.isnan(estimate([]).mean)


def test_above_zero_follows_students_t():
    # Mean 2, sd 1, n = 3: t = 2 sqrt 3 = 3.46 < 4.303; with mean 3 it is 5.2.
    assert not is_above_zero([1.0, 2.0, 3.0]) and is_above_zero([2.0, 3.0, 4.0])
    assert not is_above_zero([-2.0, -3.0, -4.0]) and not is_above_zero([0.0, 0.0])


def test_one_value_is_not_clearly_above_zero_and_many_need_little_more_than_two_errors():
    assert not is_above_zero([5.0]) and not is_above_zero([])
    many = [-1.0, 1.0] * 50  # standard error 0.1005
    assert is_above_zero([v + 0.23 for v in many]) and not is_above_zero([v + 0.22 for v in many])


def test_pooled_deviation_by_hand():
    # Squares 2 and 8 with 2 and 1 degrees of freedom; how far the groups lie apart does not count.
    assert pooled_deviation([[1.0, 2.0, 3.0], [100.0, 104.0], [7.0]]) == pytest.approx(math.sqrt(10 / 3), abs=1e-12)
    assert math.isnan(pooled_deviation([[1.0], []]))


def test_equal_values_share_their_ranks():
    assert average_ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]


def test_spearman_by_hand():
    # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15)
    assert spearman([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(0.6, abs=1e-12)


def test_spearman_sees_only_the_order():
    values = [0.1, 0.5, 0.2, 0.9]
    assert spearman(values, [math.exp(9 * v) for v in values]) == pytest.approx(1.0, abs=1e-12)
    assert spearman(values, [-v for v in values]) == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize("first, second", [([1.0], [1.0]), ([], []), ([1.0, 1.0], [1.0, 2.0])])
def test_without_an_order_there_is_no_correlation(first: list[float], second: list[float]):
    assert math.isnan(spearman(first, second))


def test_spearman_of_lists_that_do_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="3 values"):
        spearman([1, 2, 3], [1, 2])


def test_swaps_are_sorted_by_how_clear_they_are_and_ties_are_none():
    first = {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.3}
    second = {"a": 0.38, "b": 0.4, "c": 0.45, "d": 0.1}
    found = swaps(first, second)
    assert [(swap.ahead, swap.behind) for swap in found] == [("a", "c"), ("b", "c"), ("a", "b")]
    assert found[0].first == pytest.approx(0.2) and found[0].second == pytest.approx(-0.07)
    assert swaps(first, first) == []
