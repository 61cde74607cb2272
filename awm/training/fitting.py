"""The largest of a few sizes whose work fits into memory, found with few trials.

What a forward and its backward need is close to affine in their rows, so two small trials predict the largest size,
and one more confirms it. Where memory is not affine, or the allocator's fragments leave less than they should, further
trials close in on the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer.

    Attributes:
        size: the largest that fits; the smallest one if that ran but left too little; 0 if it did not even run.
        limit: bytes that may be in use.
        tried: size -> bytes in use at its worst moment, None where memory ran out, in the order of the trials.
    """

    size: int
    limit: int
    tried: Mapping[int, int | None] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes that ``size`` needed; 0 if there is none."""
        return self.tried.get(self.size) or 0

    @property
    def is_tight(self) -> bool:
        """Whether the smallest size was taken although it needs more than the limit."""
        return self.peak > self.limit


def largest_that_fits(sizes: Sequence[int], peak: Callable[[int], int | None], limit: int) -> Fit:
    """Try sizes, few of them, and never one above a size that did not fit.

    Args:
        sizes: one or more, in any order.
        peak: does the work of a size: bytes in use at its worst moment, or None if memory ran out.
        limit: bytes that may be in use.
    """
    sizes = sorted(set(sizes))
    tried: dict[int, int | None] = {}

    def fits(number: int) -> bool:
        needed = tried[sizes[number]] = peak(sizes[number])
        return needed is not None and needed <= limit

    if not fits(0):
        return Fit(0 if tried[sizes[0]] is None else sizes[0], limit, tried)
    best, end = 0, len(sizes)  # sizes[best] fits, sizes[end] does not or is not there
    while (number := _next_trial(sizes, tried, limit, best, end)) > best:
        if fits(number):
            best = number
        else:
            end = number
    return Fit(sizes[best], limit, tried)


def divisors(number: int) -> list[int]:
    """All of them, ascending: batches of such a size are all equally large."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _next_trial(sizes: Sequence[int], tried: Mapping[int, int | None], limit: int, best: int, end: int) -> int:
    """Number of the largest size predicted to fit, or of a nearer one; ``best`` if none above it is."""
    if best + 1 == end or len(tried) == 1:
        return min(best + 1, end - 1)
    known = sorted((size, needed) for size, needed in tried.items() if needed is not None)
    needed = dict(known)[sizes[best]]
    at = known.index((sizes[best], needed))

    def predicted(line: list[tuple[int, int]]) -> list[int]:
        (low, less), (high, more) = line
        slope = (more - less) / (high - low)
        return [n for n in range(best + 1, end) if needed + slope * (sizes[n] - sizes[best]) <= limit]

    below = predicted(known[at - 1 : at + 1]) if at > 0 else []
    above = predicted(known[at : at + 2]) if at + 1 < len(known) else below
    if not above:  # a line to a size far above lies over a curve that bends upwards
        return best + 1 if below else best
    # Memory that ran out below the limit says that the line is wrong: halve what is left instead.
    ran_out = end < len(sizes) and tried.get(sizes[end], 0) is None
    return min(above[-1], (best + end) // 2) if ran_out else above[-1]
