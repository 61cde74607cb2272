"""Would other seeds have ranked the arms alike? Decided by a rule that stands here before there are results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from awm.bench.measures import Swap, spearman, swaps
from awm.bench.rows import Row

MIN_CORRELATION = 0.8
CLEAR = 2.0  # standard errors
RULE = (
    f"The ranking counts as stable if the two rankings' Spearman correlation is at least {MIN_CORRELATION:g} and no "
    f"two arms change places that are {CLEAR:g} or more standard errors apart in both."
)


@dataclass(frozen=True, slots=True)
class Stability:
    """Two rankings of the same arms, by independent seeds.

    Attributes:
        arms: that have runs with seeds of both sets.
        correlation: Spearman's, of the sets' mean scores; NaN if there is none.
        swapped: pairs that change places.
        serious: those of them that the spread of the seeds does not explain.
        is_stable: by ``RULE``; None if that cannot be said.
        sentence: for the page.
    """

    arms: tuple[str, ...]
    correlation: float
    swapped: tuple[Swap, ...]
    serious: tuple[Swap, ...]
    is_stable: bool | None
    sentence: str


def stability(rows: Sequence[Row]) -> Stability:
    """Compare the ranking by the first seeds with that by the second."""
    both = [row for row in rows if all(math.isfinite(score) for score in row.sets)]
    first, second = ({row.arm: row.sets[i] for row in both} for i in (0, 1))
    correlation = spearman(list(first.values()), list(second.values()))
    changed = tuple(swaps(first, second))
    errors = {row.arm: row.set_errors for row in both}
    serious = tuple(swap for swap in changed if _is_clear(swap, errors[swap.ahead], errors[swap.behind]))
    is_stable: bool | None = None
    if len(both) >= 3 and not math.isnan(correlation):
        is_stable = correlation >= MIN_CORRELATION and not serious
    return Stability(
        arms=tuple(row.arm for row in both),
        correlation=correlation,
        swapped=changed,
        serious=serious,
        is_stable=is_stable,
        sentence=_sentence(len(both), correlation, changed, serious, is_stable),
    )


def _is_clear(swap: Swap, ahead: tuple[float, float], behind: tuple[float, float]) -> bool:
    """Whether both differences are clear; an unknown error, from a single run, is no evidence."""
    return all(
        abs(difference) >= CLEAR * math.hypot(a, b)
        for difference, a, b in zip((swap.first, swap.second), ahead, behind, strict=True)
    )


def _sentence(
    arms: int, correlation: float, changed: Sequence[Swap], serious: Sequence[Swap], is_stable: bool | None
) -> str:
    if arms < 3:
        have = "1 arm has" if arms == 1 else f"{arms} arms have"
        return f"Whether the ranking is stable is not known: {have} runs with seeds of both sets, and it takes 3."
    if is_stable is None:
        return "Whether the ranking is stable is not known: all arms score alike."
    facts = (
        f"Spearman correlation {correlation:.2f}, {len(changed)} of {math.comb(arms, 2)} pairs change places, "
        f"{len(serious)} of them by more than their errors."
    )
    return f"The ranking is {'stable' if is_stable else 'NOT stable'} between the two sets of seeds: {facts}"
