"""Figures in the house style: the colours of the run report, thin axes, horizontal grid lines only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from awm.report.style import STYLE

# The first declaration of each variable is the light theme's; a PNG has no dark one.
_COLOUR = {name: colour for name, colour in reversed(re.findall(r"--(\w+): (#\w{6});", STYLE))}
COLOURS: tuple[str, ...] = tuple(_COLOUR[f"c{i}"] for i in range(1, 9))
MUTED, INK, LINE = _COLOUR["muted"], _COLOUR["ink"], _COLOUR["line"]

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def new_figure(
    columns: int, rows: int, *, width: float = 4.2, height: float = 2.9
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """An empty figure of rows x columns panels.

    Args:
        columns: panels side by side.
        rows: panels above each other.
        width: of one panel, inches.
        height: of one panel, inches.

    Returns:
        The figure and its axes, an object array [rows, columns].
    """
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
        return figure, figure.subplots(rows, columns, squeeze=False)


def draw_curve(
    axes: Axes, x: Sequence[float], mean: Sequence[float], band: Sequence[float] | None = None, **style: Any
) -> None:
    """A line with an optional band of mean +- band around it; ``style`` goes to ``Axes.plot``."""
    (line,) = axes.plot(x, mean, **style)
    if band is not None:
        centre, half = np.asarray(mean, dtype=float), np.asarray(band, dtype=float)
        axes.fill_between(x, centre - half, centre + half, color=line.get_color(), alpha=0.15, linewidth=0)


def log_axis(axes: Axes, which: str) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Write <folder>/<name>.png, the folder being made if missing; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    with matplotlib.rc_context(_RC):
        for axes in figure.axes:
            _finish(axes)
        figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def _finish(axes: Axes) -> None:
    """Give title and legend the style that matplotlib only looks up when they are made, outside ``new_figure``."""
    title = axes.get_title()
    if title:
        axes.set_title("", loc="center")
        axes.set_title(title, loc="left")
    legend = axes.get_legend()
    if legend is not None:
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_fontsize(_RC["legend.fontsize"])
