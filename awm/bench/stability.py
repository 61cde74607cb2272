"""Would other seeds have ranked the arms alike? Decided by a rule that stands here before there are results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from awm.bench.measures import Swap, estimate, pooled_deviation, spearman, swaps
from awm.bench.rows import Row
from awm.bench.settings import Settings

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
        means: arm -> mean scores of the first and of the second seeds, of those with runs of both.
        errors: arm -> their standard errors, from one spread: of the seeds within a set, pooled over sets and arms.
        correlation: Spearman's, of the sets' mean scores; NaN if there is none.
        top_correlation: of the better half of the arms, by both sets together.
        swapped: pairs that change places.
        serious: those of them that the spread of the seeds does not explain.
        is_stable: by ``RULE``; None if that cannot be said.
        sentence: for the page.
    """

    means: Mapping[str, tuple[float, float]]
    errors: Mapping[str, tuple[float, float]]
    correlation: float
    top_correlation: float
    swapped: tuple[Swap, ...]
    serious: tuple[Swap, ...]
    is_stable: bool | None
    sentence: str


def stability(rows: Sequence[Row], settings: Settings) -> Stability:
    """Compare the ranking by the first seeds with that by the second."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        first, second = (
            [row.scores[seed] for seed in seeds if seed in row.scores]
            for seeds in (settings.seeds, settings.second_seeds)
        )
        if first and second:
            scores[row.arm] = first, second
    means = {arm: (estimate(a).mean, estimate(b).mean) for arm, (a, b) in scores.items()}
    # The spread of the six together would hold the very difference between the sets that is in question.
    spread = pooled_deviation([values for both in scores.values() for values in both])
    errors = {arm: (spread / math.sqrt(len(a)), spread / math.sqrt(len(b))) for arm, (a, b) in scores.items()}
    correlation = _correlation(means)
    top = sorted(means, key=lambda arm: -sum(means[arm]))[: (len(means) + 1) // 2]
    changed = tuple(swaps(*({arm: both[i] for arm, both in means.items()} for i in (0, 1))))
    serious = tuple(swap for swap in changed if _is_clear(swap, errors[swap.ahead], errors[swap.behind]))
    is_stable: bool | None = None
    if len(means) >= 3 and not math.isnan(correlation):
        is_stable = correlation >= MIN_CORRELATION and not serious
    result = Stability(
        means=means,
        errors=errors,
        correlation=correlation,
        top_correlation=_correlation({arm: means[arm] for arm in top}),
        swapped=changed,
        serious=serious,
        is_stable=is_stable,
        sentence="",
    )
    return replace(result, sentence=_sentence(result))


def _correlation(means: Mapping[str, tuple[float, float]]) -> float:
    return spearman([first for first, _ in means.values()], [second for _, second in means.values()])


def _is_clear(swap: Swap, ahead: tuple[float, float], behind: tuple[float, float]) -> bool:
    """Whether both differences are clear; an unknown error, from a single run, is no evidence."""
    return all(
        abs(difference) >= CLEAR * math.hypot(a, b)
        for difference, a, b in zip((swap.first, swap.second), ahead, behind, strict=True)
    )


def _sentence(result: Stability) -> str:
    arms = len(result.means)
    if arms < 3:
        have = "1 arm has" if arms == 1 else f"{arms} arms have"
        return f"Whether the ranking is stable is not known: {have} runs with seeds of both sets, and it takes 3."
    if result.is_stable is None:
        return "Whether the ranking is stable is not known: all arms score alike."
    top = "" if math.isnan(result.top_correlation) else f" ({result.top_correlation:.2f} in the better half)"
    facts = (
        f"Spearman correlation {result.correlation:.2f}{top}, {len(result.swapped)} of {math.comb(arms, 2)} pairs "
        f"change places, {len(result.serious)} of them by more than their errors."
    )
    return f"The ranking is {'stable' if result.is_stable else 'NOT stable'} between the two sets of seeds: {facts}"
