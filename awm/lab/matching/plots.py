"""The matching figure: variances, gradient noise and learning curves, clean against noisy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from awm.lab.figures import COLOURS, draw_curve, log_axis, new_figure
from awm.lab.matching.convergence import LAGS, Learning
from awm.lab.matching.gradients import ESTIMATORS, PolicyGradients
from awm.lab.matching.tables import lag_name
from awm.lab.matching.variances import NOISE_LEVELS, StepVariances


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything the experiment measures.

    Attributes:
        variances: data distribution -> its steps.
        matching_lags: L lags.
        matching_noise: [L, S], see ``gradients.matching_noise``.
        policy_noise: one entry per noise level.
        linear: learning curves of the linear model.
        mlp: of the perceptron.
    """

    variances: dict[str, list[StepVariances]]
    matching_lags: tuple[float, ...]
    matching_noise: Tensor
    policy_noise: list[PolicyGradients]
    linear: Learning
    mlp: Learning


def draw(found: Findings) -> Figure:
    """Six panels."""
    figure, axes = new_figure(3, 2)
    draw_variances(axes[0, 0], found.variances)
    draw_matching_noise(axes[0, 1], found.matching_lags, found.matching_noise)
    draw_policy_noise(axes[0, 2], found.policy_noise)
    rate = equal_rate(found.linear)
    draw_learning(
        axes[1, 0], found.linear, [rate] * len(LAGS), f"cosine features, SGD {found.linear.learning_rates[rate]:g}"
    )
    draw_learning(axes[1, 1], found.linear, found.linear.best().tolist(), "cosine features, each at its best rate")
    draw_learning(axes[1, 2], found.mlp, [0] * len(LAGS), "perceptron, Adam 1e-3")
    return figure


def equal_rate(learning: Learning) -> int:
    """Index of the middle learning rate, the one at which all targets are compared."""
    return len(learning.learning_rates) // 2


def draw_variances(axes: Axes, variances: dict[str, list[StepVariances]]) -> None:
    """Variance of each target against t, lines exact and dots sampled."""
    (name, steps), *others = variances.items()
    t = [step.t for step in steps]
    axes.plot(t, [step.clean for step in steps], label=f"clean, {name}")
    for other, rows in others:
        axes.plot(t, [step.clean for step in rows], color=COLOURS[0], linestyle="--", label=f"clean, {other}")
    axes.plot(t, [step.noisy for step in steps], color=COLOURS[1], label="noisy: x_s of the grid's step")
    axes.plot(t, [step.noisy_measured.mean for step in steps], "o", color=COLOURS[1], markersize=3)
    axes.plot(t, [step.clean_measured.mean for step in steps], "o", color=COLOURS[0], markersize=3)
    for colour, level in zip(COLOURS[2:], NOISE_LEVELS, strict=False):
        axes.plot(
            t, [step.sampler[level] for step in steps], color=colour, linewidth=1, label=f"sampler's step, a={level:g}"
        )
        axes.plot(t, [step.sampler_measured[level].mean for step in steps], "o", color=colour, markersize=2)
    axes.set_yscale("log")
    axes.set_ylim(top=3e6)  # room for the legend
    axes.set_xlabel("t (1 = noise)")
    axes.set_title("variance of the velocity target")
    axes.legend()


def draw_matching_noise(axes: Axes, lags: Sequence[float], noise: Tensor) -> None:
    """Gradient noise of noisy targets over that of the clean one, against the lag."""
    ratio = noise / noise[0]
    x = list(lags[1:])
    error = ratio.std(1) / math.sqrt(ratio.shape[1]) if ratio.shape[1] > 1 else ratio[:, 0] * 0
    draw_curve(axes, x, ratio[1:].mean(1).tolist(), error[1:].tolist(), color=COLOURS[1], marker="o", markersize=3)
    axes.axhline(1, color=COLOURS[0])
    axes.text(max(x), 1.05, "clean", color=COLOURS[0], ha="right", va="bottom")
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set_xlabel("lag D = t - s of the noisy target")
    axes.set_title("gradient variance of matching, noisy / clean")


def draw_policy_noise(axes: Axes, results: Sequence[PolicyGradients]) -> None:
    """Noise of one rollout's policy gradient against the sampler's noise level."""
    x = [result.level for result in results]
    for number, name in enumerate(ESTIMATORS):
        values = [result.noise[name] for result in results]
        mean = [value.mean().item() for value in values]
        error = [value.std().item() / math.sqrt(len(value)) if len(value) > 1 else 0.0 for value in values]
        draw_curve(axes, x, mean, error, color=COLOURS[number], marker="o", markersize=3, label=name)
    log_axis(axes, "x")
    axes.set_yscale("log")
    axes.set_xticks(x)
    axes.set_xlabel("noise level a of the sampler")
    axes.set_title("policy gradient of a rollout, variance / mean²")
    axes.legend()


def draw_learning(axes: Axes, learning: Learning, rates: Sequence[int], title: str) -> None:
    """Error of the velocity against steps, one line per target."""
    for row, (lag, rate) in enumerate(zip(LAGS, rates, strict=True)):
        error = learning.error[:, row, rate]
        band = error.std(1) / math.sqrt(error.shape[1]) if error.shape[1] > 1 else error[:, 0] * 0
        draw_curve(axes, learning.steps, error.mean(1).tolist(), band.tolist(), color=COLOURS[row], label=lag_name(lag))
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set_xlabel("steps")
    axes.set_ylabel("(v - v*)²")
    axes.set_title(title)
    axes.legend()
