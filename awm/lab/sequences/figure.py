"""The figure: learning curves with bands over seeds, and what was reached, by reward, judge and truth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from awm.lab.figures import COLOURS, MUTED, draw_curve, new_figure, save_figure
from awm.lab.sequences.settings import METHODS
from awm.lab.sequences.table import Runs

LABELS = {
    "pretrained": "pre-trained", "best_of_n": "best of N", "rejection": "rejection", "exp": "exp", "linear": "linear",
    "square": "square", "linear_neg": "linear neg.", "square_neg": "square neg.", "wd1": "wd1 (KL not matched)",
}  # fmt: skip
MARKERS = {"pretrained": "s", "best_of_n": "^", "rejection": "v"}  # all grey
JUDGES = {"predicted": "reward model (maximised)", "held_out": "held-out reward model", "true": "true activity"}


def draw(rows: Mapping[str, Mapping[str, Any]], runs: Runs, *, batch: int, folder: Path, name: str) -> Path:
    """Write the figure of ``runs`` and their summary ``rows``.

    Args:
        rows: of ``summarise``.
        runs: results by method and seed.
        batch: sequences per update, for the horizontal axis.
        folder: where to.
        name: file name without ending.
    """
    figure, panels = new_figure(2, 2, width=5.4, height=3.5)
    curves(panels[0, 0], rows, runs, "predicted", batch, "Predicted activity (the reward)")
    curves(panels[0, 1], rows, runs, "true", batch, "True activity of the same sequences")
    bars(panels[1, 0], rows)
    trade_off(panels[1, 1], rows, runs)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return save_figure(figure, folder, name)


def curves(axes: Axes, rows: Mapping[str, Any], runs: Runs, score: str, batch: int, title: str) -> None:
    """Median of ``score`` in each batch against sequences sampled: mean over seeds, band of one standard deviation."""
    for method, results in runs.items():
        records = [result["updates"] for result in results]
        if not records[0]:
            continue
        values = np.array([[update[score] for update in updates] for updates in records])
        band = values.std(0, ddof=1) if len(values) > 1 else None
        sampled = batch * np.arange(values.shape[1])
        draw_curve(axes, sampled, values.mean(0), band, color=colour(method), label=LABELS[method])  # type: ignore[arg-type]
    for method in ("pretrained", "best_of_n", "rejection"):
        if method in rows:
            level, side = rows[method][score]["mean"], "top" if method == "rejection" else "bottom"
            axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": side}
            axes.annotate(LABELS[method], (1, level), color=MUTED, fontsize=7.5, **place)
    axes.set(title=title, xlabel="sequences sampled and scored", ylabel="median activity")


def bars(axes: Axes, rows: Mapping[str, Any]) -> None:
    """Final medians by the three judges, with one standard deviation over seeds."""
    place = np.arange(len(rows))
    for number, (judge, label) in enumerate(JUDGES.items()):
        height = [row[judge]["mean"] for row in rows.values()]
        error = [row[judge]["std"] for row in rows.values()]
        axes.bar(place + 0.27 * (number - 1), height, 0.25, yerr=error, color=COLOURS[number], alpha=0.85, label=label,
                 error_kw={"elinewidth": 1, "ecolor": MUTED})  # fmt: skip
    axes.set_xticks(place, [LABELS[method] for method in rows], rotation=30, ha="right")
    axes.set(title="Final sequences, three judges", ylabel="median activity")
    axes.legend(loc="upper left")


def trade_off(axes: Axes, rows: Mapping[str, Any], runs: Runs) -> None:
    """True activity against diversity, one small point a seed and a large one for the mean."""
    for method, results in runs.items():
        points = [(result["final"]["hamming"], result["final"]["true"]) for result in results]
        shade = colour(method)
        across, up = (list(values) for values in zip(*points, strict=True))
        axes.scatter(across, up, s=12, color=shade, alpha=0.5, linewidths=0)
        x, y = statistics.fmean(across), statistics.fmean(up)
        axes.scatter([x], [y], s=45, color=shade, marker=MARKERS.get(method, "o"), label=LABELS[method])
    axes.legend(loc="lower left", ncols=2)
    axes.margins(x=0.1, y=0.1)
    axes.set(title="Activity against diversity", xlabel="mean pairwise Hamming distance", ylabel="median true activity")


def colour(method: str) -> str:
    """One colour per fine-tuned method, grey for the baselines."""
    tuned = METHODS[3:]
    return COLOURS[tuned.index(method)] if method in tuned else MUTED
