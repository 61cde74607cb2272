"""What the runs of a study amount to, in numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from awm.lab.bandits.learning import History
from awm.lab.bandits.studies import Study

COLUMNS = (
    ("final regret", 15),
    ("- first arm", 16),
    ("mean regret", 13),
    ("success", 15),
    ("reached", 8),
    ("KL", 6),
    ("lambda", 8),
    ("Case II", 8),
    ("lost", 5),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One arm of a study; means over seeds with their standard errors.

    Attributes:
        regret: final regret of the runs that did not diverge.
        regret_se: its standard error.
        difference: final regret minus that of the study's first arm, seed by seed.
        difference_se: its standard error.
        mean_regret: over all iterations and seeds.
        success: share of runs whose final regret is below the study's bound.
        success_se: its standard error.
        reached: share of runs whose regret was ever below ``Study.reach``.
        kl: mean over iterations and seeds, nats.
        temperature: mean over iterations and seeds, in units of the reward.
        case_two: share of noised actions with E[W | x_t] + anchor < 0.
        diverged: share of runs whose velocity is no longer finite.
    """

    regret: float
    regret_se: float
    difference: float
    difference_se: float
    mean_regret: float
    success: float
    success_se: float
    reached: float
    kl: float
    temperature: float
    case_two: float
    diverged: float


def summarise(study: Study, history: History, first: History) -> Row:
    """The row of an arm; ``first`` is the history of the study's first arm."""
    final = history.final_regret
    success, success_se = mean_and_error((final < study.success).double())
    regret, regret_se = mean_and_error(final)
    difference, difference_se = mean_and_error(final - first.final_regret)
    return Row(
        regret=regret,
        regret_se=regret_se,
        difference=difference,
        difference_se=difference_se,
        mean_regret=history.regret.nanmean().item(),
        success=success,
        success_se=success_se,
        reached=(history.regret < study.reach).any(0).double().mean().item(),
        kl=history.kl.mean().item(),
        temperature=history.temperature.mean().item(),
        case_two=history.case_two.mean().item(),
        diverged=final.isnan().double().mean().item(),
    )


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over the finite values and its standard error, 0 for fewer than two."""
    values = values[values.isfinite()].double()
    if not len(values):
        return math.nan, math.nan
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return values.mean().item(), error


def record(study: Study, histories: Mapping[str, History]) -> dict[str, Any]:
    """A study's table and curves as plain data."""
    first = next(iter(histories.values()))
    table: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for name, history in histories.items():
        table[name] = asdict(summarise(study, history, first))
        pairs = [mean_and_error(row) for row in history.regret]
        curves[name] = {"regret": [mean for mean, _ in pairs], "regret_se": [error for _, error in pairs]}
        curves[name] |= {"kl": history.kl.mean(1), "case_two": history.case_two.mean(1)}
    return {"title": study.title, "table": table, "curves": curves}


def text_table(study: Study, histories: Mapping[str, History]) -> str:
    """A study's table as text, one line per arm."""
    first = next(iter(histories.values()))
    lines = [study.title, f"  {'':<16}" + "".join(f"{title:>{width}}" for title, width in COLUMNS)]
    for name, history in histories.items():
        row = summarise(study, history, first)
        cells = (
            f"{row.regret:.4f}+-{row.regret_se:.4f}",
            "" if history is first else f"{row.difference:+.4f}+-{row.difference_se:.4f}",
            f"{row.mean_regret:.4f}",
            f"{row.success:.3f}+-{row.success_se:.3f}",
            f"{row.reached:.2f}",
            f"{row.kl:.2f}",
            f"{row.temperature:.3f}",
            f"{100 * row.case_two:.1f}%",
            f"{100 * row.diverged:.0f}%",
        )
        lines.append(f"  {name:<16}" + "".join(f"{c:>{width}}" for c, (_, width) in zip(cells, COLUMNS, strict=True)))
    return "\n".join(lines)
