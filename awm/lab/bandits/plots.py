"""The bandit figure: landscapes with the initial policy on the left, regret curves beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from awm.lab.bandits.landscape import LIMIT
from awm.lab.bandits.learning import Loop
from awm.lab.bandits.studies import STUDIES, WEIGHTINGS, Study
from awm.lab.figures import COLOURS, INK, LINE, draw_curve, new_figure

Results = Mapping[str, Mapping[str, Any]]
"""Study -> what ``summary.record`` made of its runs, or what JSON kept of that."""

_COLOUR = dict(zip(WEIGHTINGS, COLOURS, strict=False))
_ROWS = (
    ("escape",),
    ("broad-temperature", "broad-kl"),
    ("sharp-temperature", "sharp-kl"),
    ("narrow", "unstable"),
)


def draw(results: Results) -> Figure:
    """One row per landscape of those studies that were run."""
    rows = [[name for name in row if name in results] for row in _ROWS]
    rows = [row for row in rows if row]
    figure, axes = new_figure(3, len(rows))
    for panels, row in zip(axes, rows, strict=True):
        draw_landscape(panels[0], STUDIES[row[0]].loop)
        for panel, name in zip(panels[1:], row, strict=False):
            draw_regret(panel, STUDIES[name], results[name])
        if row == ["escape"]:
            draw_success(panels[2], STUDIES["escape"], results["escape"])
        elif len(row) == 1:
            panels[2].set_axis_off()
    return figure


def draw_landscape(axes: Axes, loop: Loop) -> None:
    """The reward of each arm, and the density of the initial policy."""
    action = torch.linspace(-LIMIT, LIMIT, 601)
    density = (-(action - loop.mean).square() / (2 * loop.std**2)).exp() / (loop.std * math.sqrt(2 * math.pi))
    axes.fill_between(action, density, color=LINE, linewidth=0, label="initial policy")
    axes.plot(action, loop.landscape(action), color=INK, label="reward")
    axes.set_title(f"{loop.landscape.name}: initial N({loop.mean:g}, {loop.std:g}²)")
    axes.set_xlabel("action")
    axes.legend(loc="upper left")


def draw_regret(axes: Axes, study: Study, result: Mapping[str, Any]) -> None:
    """Mean regret over seeds with its standard error, per iteration."""
    for name, curve in result["curves"].items():
        mean, error = curve["regret"], curve["regret_se"]
        draw_curve(axes, range(len(mean)), mean, error, color=_COLOUR[name], label=name)
    axes.set_ylim(bottom=0)
    axes.set_title(study.title.partition(": ")[2] or study.title)
    axes.set_xlabel("iteration")
    axes.set_ylabel("regret")
    axes.legend()


def draw_success(axes: Axes, study: Study, result: Mapping[str, Any]) -> None:
    """Share of runs that end at the global optimum, per arm."""
    for position, (name, row) in enumerate(result["table"].items()):
        axes.barh(position, row["success"], xerr=row["success_se"], color=_COLOUR[name], ecolor=INK, height=0.6)
        end = row["success"] + row["success_se"]
        axes.text(end, position, f"  Case II {row['case_two']:.1%}", va="center", fontsize=8)
    axes.set_yticks(range(len(result["table"])), list(result["table"]))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(False)
    axes.set_title(f"runs that end with regret < {study.success:g}")
