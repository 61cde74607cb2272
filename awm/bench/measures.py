"""The few numbers a learning curve and a ranking come to; pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

Numbers = Sequence[float]
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % points of Student's t with 1 to 10 degrees of freedom; for more, the last is a little too cautious."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean of n independent values and its standard error, NaN for fewer than two."""

    n: int
    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Swap:
    """Two names whose order differs between two sets of scores.

    Attributes:
        ahead: the one ahead in the first set.
        behind: the other.
        first: how far it is ahead there, positive.
        second: how far it is ahead in the second set, negative.
    """

    ahead: str
    behind: str
    first: float
    second: float


def estimate(values: Numbers) -> Estimate:
    """Mean and sd / sqrt(n), sd with n - 1 in its denominator."""
    n = len(values)
    if n == 0:
        return Estimate(0, math.nan, math.nan)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, math.nan)
    return Estimate(n, mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n))


def is_above_zero(values: Numbers) -> bool:
    """Whether the 95 % interval of the mean, mean +- t_{n - 1} sd / sqrt(n), lies above 0; never with one value."""
    value = estimate(values)
    return value.n > 1 and value.mean > T_975[min(value.n - 1, len(T_975)) - 1] * value.standard_error


def pooled_deviation(groups: Sequence[Numbers]) -> float:
    """Standard deviation within groups that share it: sqrt(sum_g sum_i (x_gi - mean_g)^2 / sum_g (n_g - 1)).

    NaN if no group has two values.
    """
    degrees = sum(len(group) - 1 for group in groups if group)
    means = [estimate(group).mean for group in groups]
    squares = math.fsum((v - mean) ** 2 for group, mean in zip(groups, means, strict=True) for v in group)
    return math.sqrt(squares / degrees) if degrees else math.nan


def mean_height(x: Numbers, y: Numbers) -> float:
    """Area under the piecewise linear curve over the width of x: (1 / (x_n - x_0)) sum (y_i + y_{i+1}) / 2 dx.

    Raises:
        ValueError: fewer than two points, or x that does not grow.
    """
    _check(x, y)
    area = math.fsum((b - a) * (p + q) / 2 for (a, b), (p, q) in zip(pairwise(x), pairwise(y), strict=True))
    return area / (x[-1] - x[0])


def value_at(x: Numbers, y: Numbers, at: float) -> float:
    """The piecewise linear curve at ``at``; NaN outside of x."""
    _check(x, y)
    if not x[0] <= at <= x[-1]:
        return math.nan
    for (a, b), (p, q) in zip(pairwise(x), pairwise(y), strict=True):
        if at <= b:
            return p + (q - p) * (at - a) / (b - a)
    return y[-1]


def first_reach(x: Numbers, y: Numbers, threshold: float) -> float:
    """Smallest x at which the piecewise linear curve is at least ``threshold``; infinite if it never is."""
    _check(x, y)
    if y[0] >= threshold:
        return x[0]
    for (a, b), (p, q) in zip(pairwise(x), pairwise(y), strict=True):
        if q >= threshold:
            return a + (b - a) * (threshold - p) / (q - p)
    return math.inf


def median(values: Numbers) -> float:
    """The middle one, or the mean of the two in the middle; infinities count, NaN if there is none."""
    ordered, n = sorted(values), len(values)
    if n == 0:
        return math.nan
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return low if low == high else (low + high) / 2


def average_ranks(values: Numbers) -> list[float]:
    """1 for the smallest; equal values share the mean of their places."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def spearman(first: Numbers, second: Numbers) -> float:
    """Correlation of the ranks; NaN for fewer than two values, or if all of a side are equal."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be compared with {len(second)}.")
    a, b = average_ranks(first), average_ranks(second)
    if len(a) < 2 or len(set(a)) == 1 or len(set(b)) == 1:
        return math.nan
    middle = (len(a) + 1) / 2
    product = math.fsum((p - middle) * (q - middle) for p, q in zip(a, b, strict=True))
    squares = math.fsum((p - middle) ** 2 for p in a) * math.fsum((q - middle) ** 2 for q in b)
    return product / math.sqrt(squares)


def swaps(first: Mapping[str, float], second: Mapping[str, float]) -> list[Swap]:
    """Pairs whose order differs between two scores of the same names, the clearest first; ties are no order."""
    found = []
    for a, b in combinations(first, 2):
        ahead, behind = (a, b) if first[a] > first[b] else (b, a)
        swap = Swap(ahead, behind, first[ahead] - first[behind], second[ahead] - second[behind])
        if swap.first > 0 > swap.second:
            found.append(swap)
    return sorted(found, key=lambda swap: -min(swap.first, -swap.second))


def _check(x: Numbers, y: Numbers) -> None:
    if len(x) != len(y) or len(x) < 2 or any(b <= a for a, b in pairwise(x)):
        raise ValueError(
            f"a curve needs at least two points with growing x and as many y; got x={list(x)}, y={list(y)}"
        )
