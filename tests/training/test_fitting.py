"""What the search for the largest size promises, on meters that are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from awm.training.fitting import divisors, largest_that_fits

SIZES = divisors(216)
Peak = Callable[[int], int | None]


def affine(fixed: int, slope: int, runs_out_at: int = 10**9) -> Peak:
    def peak(size: int) -> int | None:
        needed = fixed + slope * size
        return needed if needed < runs_out_at else None

    return peak


def truth(peak: Peak, limit: int, sizes: list[int] = SIZES) -> int:
    fitting = [size for size in sizes if (needed := peak(size)) is not None and needed <= limit]
    return fitting[-1] if fitting else 0


def test_divisors_cut_into_equal_parts():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(7) == [1, 7]
    assert divisors(1) == [1]


@pytest.mark.parametrize("limit", [130, 500, 940, 2_000, 5_000, 10**6])
def test_affine_memory_takes_two_small_trials_and_one_that_confirms(limit: int):
    fit = largest_that_fits(SIZES, affine(100, 21), limit)
    assert fit.size == truth(affine(100, 21), limit)
    assert list(fit.tried)[:2] == [1, 2]
    assert len(fit.tried) <= 3
    assert fit.peak == 100 + 21 * fit.size <= limit


def test_noise_of_the_allocator_does_not_change_the_answer():
    def noisy(size: int) -> int:
        return 100_000 + 2_100 * size + 37 * (size % 5)  # rounded blocks: 7 % of a step

    for limit in range(105_000, 600_000, 7_919):
        fit = largest_that_fits(SIZES, noisy, limit)
        assert fit.size == truth(noisy, limit), limit
        assert len(fit.tried) <= 5


def test_memory_that_runs_out_below_the_limit_is_survived():
    # Fragments: no more than 500 can be had, whatever is said to be free.
    fit = largest_that_fits(SIZES, affine(100, 10, runs_out_at=500), 1_500)
    assert fit.size == 36 and fit.tried[54] is None
    assert len(fit.tried) <= 7
    everything_else_fails = largest_that_fits(SIZES, affine(0, 1, runs_out_at=3), 10**6)
    assert everything_else_fails.size == 2


def test_memory_that_bends_is_followed():
    def bending(size: int) -> int:
        return 100 + size * size  # attention written out

    def flattening(size: int) -> int:
        return 100 + int(50 * size**0.5)

    for limit in (150, 420, 1_000, 12_000, 60_000):
        for peak in (bending, flattening):
            fit = largest_that_fits(SIZES, peak, limit)
            assert fit.size == truth(peak, limit), (peak, limit)
            assert len(fit.tried) <= 10


def test_memory_that_does_not_grow_allows_the_largest():
    assert largest_that_fits(SIZES, affine(100, 0), 200).size == 216
    shrinking = largest_that_fits(SIZES, lambda size: 100 - size // 4, 200)
    assert shrinking.size == 216


def test_no_size_is_tried_above_one_that_failed():
    seen: list[int] = []
    failed: list[int] = []

    def peak(size: int) -> int | None:
        assert not failed or size < min(failed)
        seen.append(size)
        needed = None if size > 30 else 10 * size
        if needed is None:
            failed.append(size)
        return needed

    assert largest_that_fits(SIZES, peak, 10**6).size == 27
    assert len(seen) == len(set(seen))


def test_the_smallest_size_may_be_tight_or_impossible():
    tight = largest_that_fits(SIZES, affine(100, 10), 50)
    assert tight.size == 1 and tight.is_tight and list(tight.tried) == [1]
    impossible = largest_that_fits(SIZES, affine(100, 10, runs_out_at=50), 50)
    assert impossible.size == 0 and not impossible.is_tight and impossible.peak == 0
    only = largest_that_fits([5], affine(0, 1), 50)
    assert only.size == 5 and list(only.tried) == [5]
