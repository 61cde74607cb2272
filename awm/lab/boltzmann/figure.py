"""The Boltzmann figure: error against time, bias against the number of candidates, and samples of trained flows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from awm.lab.boltzmann.mixture import GaussianMixture
from awm.lab.boltzmann.summary import Row
from awm.lab.figures import COLOURS, INK, LINE, MUTED, new_figure

SHOWN = ("noise", "gradient", "combined", "sample")
_LABEL = {"sample": "sample covariance"}
_COLOUR = dict(zip(SHOWN, COLOURS, strict=False))
_PROPOSALS = {"reverse": "-", "mixture": "--"}
_LIMIT = 4.2


def draw(
    accuracy: Sequence[Row], flows: Sequence[Row], samples: Mapping[str, Tensor], target: GaussianMixture
) -> Figure:
    """Four rows: error with reverse candidates, error with the mixture, bias at four times, samples of trained flows.

    Args:
        accuracy: rows of ``accuracy_row`` for one target.
        flows: rows of ``flow_row``.
        samples: [num, 2] samples of the target ("target") and of one flow for each method, in the order drawn.
        target: for the contours behind the samples.
    """
    figure, axes = new_figure(4, 4, width=3.4, height=2.8)
    sizes = sorted({row["num_candidates"] for row in accuracy})
    times = sorted({row["t"] for row in accuracy})
    for index, proposal in enumerate(_PROPOSALS):
        rows = [row for row in accuracy if row["proposal"] == proposal]
        for panel, size in zip(axes[index], sizes, strict=False):
            draw_error(panel, [row for row in rows if row["num_candidates"] == size], proposal, size)
    kept = times if len(times) <= 4 else [times[0], times[1], times[len(times) // 2], times[-1]]
    for panel, t in zip(axes[2], kept, strict=False):
        draw_bias(panel, [row for row in accuracy if row["t"] == t], t)
    for panel, (name, points) in zip(axes[3], samples.items(), strict=False):
        draw_samples(panel, target, points, _title(name, flows))
    axes[0, 0].legend(loc="upper left")
    styles = [
        line for name, style in _PROPOSALS.items() for line in axes[2, 0].plot([], [], style, color=MUTED, label=name)
    ]
    axes[2, 0].legend(handles=styles, loc="upper right")
    for panel in axes.flat:
        if not panel.has_data():
            panel.set_axis_off()
    return figure


def draw_error(axes: Axes, rows: Sequence[Row], proposal: str, size: int) -> None:
    """Root mean square error of each estimator against time."""
    for name in SHOWN:
        cells = sorted((row for row in rows if row["estimator"] == name), key=lambda row: float(row["t"]))
        axes.plot(
            [row["t"] for row in cells],
            [row["rmse"] for row in cells],
            color=_COLOUR[name],
            marker="o",
            markersize=3,
            label=_LABEL.get(name, name),
            linestyle=":" if name == "sample" else "-",
        )
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())  # minor ticks have no length here, but take seconds to lay out
    axes.set_ylim(1e-3, 1e4)
    axes.set_title(f"RMS error, {proposal} candidates, N = {size}")
    axes.set_xlabel("t (1 = noise)")


def draw_bias(axes: Axes, rows: Sequence[Row], t: float) -> None:
    """Root mean square bias against N, with a guide of slope -1; a gap where it is below its own noise."""
    for proposal, style in _PROPOSALS.items():
        for name in SHOWN:
            cells = [row for row in rows if (row["estimator"], row["proposal"]) == (name, proposal)]
            x, y = [row["num_candidates"] for row in cells], [seen_bias(row) for row in cells]
            axes.plot(x, y, color=_COLOUR[name], linestyle=style, marker="o", markersize=3)
    sizes = sorted({row["num_candidates"] for row in rows})
    noise = [row["bias"] for row in rows if row["estimator"] == "noise" and row["num_candidates"] == sizes[0]]
    first = max((bias for bias in noise if bias is not None), default=1.0)
    axes.plot(sizes, [2 * first * sizes[0] / size for size in sizes], color=LINE, linewidth=4, zorder=0)
    axes.set_xscale("log", base=4)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_title(f"RMS bias, t = {t} (grey: 1 / N)")
    axes.set_xlabel("candidates N")


def draw_samples(axes: Axes, target: GaussianMixture, points: Tensor, title: str) -> None:
    """Samples over contours of the target's density."""
    line = torch.linspace(-_LIMIT, _LIMIT, 121, dtype=target.means.dtype)
    x, y = torch.meshgrid(line, line, indexing="xy")
    density = target.log_density(torch.stack((x, y), -1)).exp()
    axes.contour(x, y, density, levels=[0.01, 0.05, 0.15, 0.3], colors=INK, linewidths=0.6, alpha=0.5)
    axes.plot(points[:1500, 0], points[:1500, 1], ".", markersize=1.5, color=COLOURS[0], alpha=0.6)
    axes.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT + 1, _LIMIT + 1), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title)


def seen_bias(row: Row) -> float:
    """The bias, or NaN unless its square is at least two standard errors above zero."""
    error = row["squared_bias_se"]
    seen = row["bias"] is not None and (math.isnan(error) or row["squared_bias"] >= 2 * error)
    return float(row["bias"]) if seen else math.nan


def _title(name: str, flows: Sequence[Row]) -> str:
    found = [row for row in flows if row["method"] == name]
    if not found:
        return name
    row = found[-1]
    return f"{name}, N = {row['num_candidates']}: error {row['velocity_error']:.3f}"
