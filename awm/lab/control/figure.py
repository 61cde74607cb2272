"""Return against steps: the mean over seeds of every variant and its standard deviation as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from awm.lab.control.results import RunRecord, by_variant
from awm.lab.control.settings import NOT_TRAINED
from awm.lab.figures import COLOURS, MUTED, draw_curve, new_figure

FAMILIES = ("SiMPO", "RFM")


def returns_figure(runs: Sequence[RunRecord], environment: str) -> Figure:
    """A panel for each family of algorithms that ran, with the policies that were not trained in all of them."""
    variants = by_variant(runs)
    styles = line_styles(list(variants))
    families = [family for family in FAMILIES if any(name.startswith(family) for name in variants)] or [""]
    figure, panels = new_figure(len(families), 1, width=5.2, height=3.6)
    for axes, family in zip(panels[0], families, strict=True):
        for variant, group in variants.items():
            if variant.startswith((family, NOT_TRAINED)):
                step, mean, spread = mean_curve([run.evaluations for run in group])
                label = f"{variant.removeprefix(family).strip()} ({len(group)} seed{'s' if len(group) > 1 else ''})"
                draw_curve(axes, step, mean, spread, label=label, **styles[variant])
        axes.set_title(", ".join(part for part in (family, environment) if part))
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return of evaluation episodes")
        axes.sharey(panels[0][0])
        axes.legend(loc="best")
    return figure


def line_styles(variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each variant, the same in every panel; grey and dashed if its policy was not trained."""
    trained = [name for name in variants if not name.startswith(NOT_TRAINED)]
    styles: dict[str, dict[str, Any]] = {name: {"color": COLOURS[i % len(COLOURS)]} for i, name in enumerate(trained)}
    frozen = [name for name in variants if name.startswith(NOT_TRAINED)]
    return styles | {name: {"color": MUTED, "linestyle": dash} for name, dash in zip(frozen, ("--", ":"), strict=False)}


def mean_curve(
    runs: Sequence[Sequence[Mapping[str, float]]],
) -> tuple[list[float], list[float], list[float] | None]:
    """Steps, mean and std over seeds of the returns, up to where the shortest run ends.

    Args:
        runs: evaluations of each seed, at the same intervals.

    Returns:
        Three lists of equal length; no std if there is a single seed.
    """
    length = min(len(run) for run in runs)
    step = [float(np.mean([run[i]["step"] for run in runs])) for i in range(length)]
    value = np.array([[run[i]["mean"] for i in range(length)] for run in runs])
    return step, value.mean(0).tolist(), value.std(0, ddof=1).tolist() if len(runs) > 1 else None
