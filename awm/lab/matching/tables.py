"""The tables of the matching experiment as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from awm.lab.matching.convergence import LAGS, Learning
from awm.lab.matching.gradients import ESTIMATORS, PolicyGradients
from awm.lab.matching.variances import NOISE_LEVELS, Measured, StepVariances


def variance_table(rows: Mapping[str, Sequence[StepVariances]]) -> str:
    """Clean variance of each data distribution, and what the noisier targets have, step by step."""
    names = list(rows)
    lines = [
        "Variance of the velocity target per dimension, E Var(target | x_t)",
        "      t       s"
        + "".join(f"{'clean, ' + name:>18}" for name in names)
        + f"{'+ kappa_v':>11}"
        + "".join(f"{f'step a={a:g}':>12}" for a in NOISE_LEVELS),
    ]
    for steps in zip(*rows.values(), strict=True):
        one = steps[0]
        cells = "".join(f"{step.clean:18.3f}" for step in steps) + f"{one.noisy - one.clean:11.2f}"
        lines.append(f"{one.t:8.4f}{one.s:8.4f}{cells}" + "".join(f"{one.sampler[a]:12.3f}" for a in NOISE_LEVELS))
    lines.append(f"largest distance of Monte Carlo from exact: {largest_z(rows):.1f} standard errors")
    return "\n".join(lines)


def largest_z(rows: Mapping[str, Sequence[StepVariances]]) -> float:
    """Over all measured variances, |measured - exact| / standard error."""
    pairs: list[tuple[float, Measured]] = []
    for step in (step for steps in rows.values() for step in steps):
        pairs += [(step.clean, step.clean_measured), (step.noisy, step.noisy_measured)]
        pairs += [(step.sampler[a], step.sampler_measured[a]) for a in step.sampler]
    return max(abs(exact - measured.mean) / measured.error for exact, measured in pairs)


def matching_noise_table(lags: Sequence[float], noise: Tensor) -> str:
    """Gradient noise [L, S] of the matching loss, and its ratio to the clean one's."""
    lines = ["Gradient of the matching loss: tr Cov / |mean|^2 of one sample, and against clean"]
    lines += [
        f"  {lag_name(lag):<12}{cell(row):>22}{cell(row / noise[0]):>20}" for lag, row in zip(lags, noise, strict=True)
    ]
    return "\n".join(lines)


def policy_noise_table(results: Sequence[PolicyGradients]) -> str:
    """Gradient noise of each estimator at each noise level of the sampler."""
    lines = [
        "Policy gradient: tr Cov / |mean|^2 of one rollout, and cosine with the clean direction",
        f"  {'a':<6}" + "".join(f"{name:>34}" for name in ESTIMATORS),
    ]
    for result in results:
        cells = [cell(result.noise[name]) for name in ESTIMATORS]
        cells = [
            text if name not in result.cosine else f"{text} ({result.cosine[name].mean():.2f})"
            for text, name in zip(cells, ESTIMATORS, strict=True)
        ]
        lines.append(f"  {result.level:<6g}" + "".join(f"{text:>34}" for text in cells))
    return "\n".join(lines)


def convergence_table(title: str, learning: Learning, *, at: int | None) -> str:
    """Errors after some steps, one row per lag.

    Args:
        title: above the table.
        learning: the errors.
        at: index of the learning rate all lags use; None for each lag's best.
    """
    best = learning.best().tolist()
    lines = [title, f"  {'target':<12}{'rate':>6}" + "".join(f"{f'{step} steps':>20}" for step in learning.steps)]
    for row, lag in enumerate(LAGS):
        rate = best[row] if at is None else at
        cells = "".join(f"{cell(error[row, rate], 4):>20}" for error in learning.error)
        lines.append(f"  {lag_name(lag):<12}{learning.learning_rates[rate]:>6g}{cells}")
    return "\n".join(lines)


def lag_name(lag: float) -> str:
    """What a target with this lag is called."""
    return "clean" if math.isinf(lag) else f"lag {lag:g}"


def cell(values: Tensor, digits: int = 1) -> str:
    """Mean over seeds +- its standard error."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{values.mean().item():.{digits}f}+-{error:.{digits}f}"
