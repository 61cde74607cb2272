"""Return against steps: the mean over seeds of every variant and its standard deviation as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from awm.lab.control.results import RunRecord, by_variant
from awm.lab.figures import draw_curve, new_figure

FAMILIES = ("SiMPO", "RFM")


def returns_figure(runs: Sequence[RunRecord], environment: str) -> Figure:
    """A panel for each family of algorithms that ran, sharing the axis of returns."""
    families = [family for family in FAMILIES if any(run.variant.startswith(family) for run in runs)]
    figure, panels = new_figure(max(len(families), 1), 1, width=5.2, height=3.6)
    for axes, family in zip(panels[0], families, strict=False):
        for variant, group in by_variant([run for run in runs if run.variant.startswith(family)]).items():
            step, mean, spread = mean_curve([run.evaluations for run in group])
            label = f"{variant.removeprefix(family).strip()} ({len(group)} seed{'s' if len(group) > 1 else ''})"
            draw_curve(axes, step, mean, spread if len(group) > 1 else None, label=label)
        axes.set_title(f"{family}, {environment}")
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return of evaluation episodes")
        axes.sharey(panels[0][0])
        axes.legend(loc="best")
    return figure


def mean_curve(runs: Sequence[Sequence[Mapping[str, float]]]) -> tuple[list[float], list[float], list[float]]:
    """Steps, mean and std over seeds of the returns, up to where the shortest run ends.

    Args:
        runs: evaluations of each seed, at the same intervals.

    Returns:
        Three lists of equal length.
    """
    length = min(len(run) for run in runs)
    step = [float(np.mean([run[i]["step"] for run in runs])) for i in range(length)]
    value = np.array([[run[i]["mean"] for i in range(length)] for run in runs])
    return step, value.mean(0).tolist(), value.std(0).tolist()
