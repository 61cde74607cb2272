"""The table of SiMPO's table 3: activity of each method over seeds, and the gain over the best baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from awm.lab.sequences.settings import PUBLISHED, UNMATCHED

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""method -> one result of ``run_method`` per seed."""

COLUMNS = {
    "predicted": "predicted",
    "held_out": "held-out",
    "true": "true",
    "nll_pretrained": "NLL pre",
    "kmer_correlation": "3-mer corr",
    "hamming": "Hamming",
    "gc": "GC",
}
NOTE = "* temperature as published, not solved for the KL target of the others; always with the pull to the sampler"


def summarise(runs: Runs) -> dict[str, dict[str, Any]]:
    """Method -> measure -> {"mean", "std"} over seeds (std with n - 1), and "improvement" over the best baseline.

    "predicted_while_learning" is the mean over all updates of the batch's median, how fast a method learns.
    The best baseline is the method of ``PUBLISHED`` with the highest mean predicted activity b; the improvement
    (a - b) / |b| is missing for the baselines themselves and where there is no baseline. "over_exp" is the gain over
    exp alone, the best baseline of the paper's table.
    """
    rows: dict[str, dict[str, Any]] = {}
    for method, results in runs.items():
        names = results[0]["final"]
        rows[method] = {name: mean_and_std([result["final"][name] for result in results]) for name in names}
        if results[0]["updates"]:
            speed = [statistics.fmean(update["predicted"] for update in result["updates"]) for result in results]
            rows[method]["predicted_while_learning"] = mean_and_std(speed)
    if "exp" in rows:
        for method in rows.keys() - {"exp"}:
            rows[method]["over_exp"] = gain(rows, method, rows["exp"]["predicted"]["mean"])
    baselines = {method: rows[method]["predicted"]["mean"] for method in rows if method in PUBLISHED}
    if baselines:
        best = max(baselines.values())
        for method in rows.keys() - baselines.keys():
            rows[method]["improvement"] = gain(rows, method, best)
    return rows


def gain(rows: Mapping[str, Mapping[str, Any]], method: str, base: float) -> float:
    """Relative gain in predicted activity, (a - base) / |base|; NaN for a base of zero."""
    return (float(rows[method]["predicted"]["mean"]) - base) / abs(base) if base else math.nan


def mean_curves(runs: Runs) -> dict[str, dict[str, list[float]]]:
    """Method -> metric -> its mean over seeds at every update, of the methods that have updates."""
    curves = {}
    for method, results in runs.items():
        seeds = [result["updates"] for result in results]
        if seeds[0]:
            curves[method] = {
                name: [statistics.fmean(record[name] for record in update) for update in zip(*seeds, strict=True)]
                for name in seeds[0][0]
            }
    return curves


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds; 0 for a single one."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as text: the gain over exp, mean +- std, the gain over the best baseline; and a note on wd1."""
    heads = "".join(f"{title:>16}" for title in COLUMNS.values())
    lines = [f"{'method':<12}{'over exp':>10}{heads}{'over best':>11}"]
    for method, row in rows.items():
        label = f"{method} *" if method in UNMATCHED else method
        cells = "".join(f"{row[name]['mean']:>9.3f} ±{row[name]['std']:>5.3f}" for name in COLUMNS)
        lines.append(f"{label:<12}{_percent(row.get('over_exp')):>10}{cells}{_percent(row.get('improvement')):>11}")
    if rows.keys() & set(UNMATCHED):
        lines.append(NOTE)
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:+.1%}"
