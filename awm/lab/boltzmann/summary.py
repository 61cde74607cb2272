"""Means and standard errors over seeds of what the Boltzmann experiment measured, and its printed tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from awm.lab.boltzmann.accuracy import Accuracy

Row = dict[str, Any]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error (NaN for one seed)."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return fmean(values), error


def accuracy_row(key: Mapping[str, Any], seeds: Sequence[Accuracy]) -> Row:
    """One cell: root mean square error, root of the mean squared bias, variance and ESS.

    The squared bias is averaged over seeds before the root; if that is not positive, the bias is too small to be seen
    and is None.
    """
    squared, error = mean_and_error([cell.squared_error for cell in seeds])
    bias, bias_error = mean_and_error([cell.squared_bias for cell in seeds])
    variance, variance_error = mean_and_error([cell.variance for cell in seeds])
    return dict(key) | {
        "rmse": math.sqrt(squared),
        "squared_error": squared,
        "squared_error_se": error,
        "bias": math.sqrt(bias) if bias > 0 else None,
        "squared_bias": bias,
        "squared_bias_se": bias_error,
        "variance": variance,
        "variance_se": variance_error,
        "ess": fmean(cell.ess for cell in seeds),
    }


def flow_row(key: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]) -> Row:
    """One way of training: mean and standard error of each number over seeds, and mean mode shares."""
    row = dict(key)
    for name in ("velocity_error", "mean_log_density", "clipped_share", "ess_share"):
        row[name], row[f"{name}_se"] = mean_and_error([seed[name] for seed in seeds])
    row["mode_shares"] = [fmean(shares) for shares in zip(*(seed["mode_shares"] for seed in seeds), strict=True)]
    return row


def accuracy_table(rows: Sequence[Row], target: str, proposal: str) -> str:
    """Squared error (and bias) of each estimator, one line for each time and number of candidates."""
    rows = [row for row in rows if (row["target"], row["proposal"]) == (target, proposal)]
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    lines = [f"{target} mixture, {proposal} candidates: mean |v_hat - v*|^2 (root mean square bias)"]
    lines.append(f"{'t':>4}{'N':>5}{'ESS':>7}" + "".join(f"{name:>21}" for name in names))
    for t, size in dict.fromkeys((row["t"], row["num_candidates"]) for row in rows):
        cells = {row["estimator"]: row for row in rows if (row["t"], row["num_candidates"]) == (t, size)}
        ess = cells[names[0]]["ess"]
        lines.append(f"{t:>4}{size:>5}{ess:>7.1f}" + "".join(f"{_cell(cells[name]):>21}" for name in names))
    return "\n".join(lines)


def flow_table(rows: Sequence[Row]) -> str:
    """Trained flows, one line each."""
    head = f"{'trained with':<14}{'N':>4}{'velocity error':>19}{'mean log density':>19}{'cut':>7}   mode shares"
    return "\n".join([head, *(_flow_line(row) for row in rows)])


def _cell(row: Row) -> str:
    bias = "unseen" if row["bias"] is None else f"{row['bias']:.2g}"
    return f"{row['squared_error']:.3g} ({bias})"


def _flow_line(row: Row) -> str:
    error = _with_error(row, "velocity_error", 4)
    density = _with_error(row, "mean_log_density", 3)
    shares = " / ".join(f"{share:.2f}" for share in row["mode_shares"])
    size = "" if row["num_candidates"] is None else str(row["num_candidates"])
    cut = "" if math.isnan(row["clipped_share"]) else f"{row['clipped_share']:.1%}"
    return f"{row['method']:<14}{size:>4}{error:>19}{density:>19}{cut:>7}   {shares}"


def _with_error(row: Row, name: str, digits: int) -> str:
    error = row[f"{name}_se"]
    return f"{row[name]:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")
