"""A Gaussian path between data and noise, straight or variance preserving, as one value.

x_t = alpha(t) x_0 + sigma(t) eps, with t in [0, 1] and t = 1 noise. A prediction is a linear reading a x_0 + b eps
of the pair: the velocity (alpha', sigma'), the noise (0, 1) or the data (1, 0), so one estimator serves flow and
diffusion policies. The straight path is the one of ``awm.flow.path`` (rectified flow, arXiv 2209.03003); the cosine
path is Nichol and Dhariwal's (arXiv 2102.09672, eq. 17) in continuous time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Prediction = Literal["velocity", "noise", "data"]
Schedule = Callable[[Tensor], Tensor]
# No coefficient that divides is smaller: at either end a huge finite number stands for infinity.
TINY = 1e-6


@dataclass(frozen=True, slots=True)
class PathPoint:
    """Coefficients at one time, of x_t = alpha x_0 + sigma eps and of the prediction a x_0 + b eps."""

    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor

    @property
    def coupling(self) -> Tensor:
        """Covariance kappa = b alpha - a sigma of the prediction with the Stein field: 1 for a straight velocity.

        The posterior score is S = g + (alpha / sigma) eps and Cov(x_0, S) = -I; the field of this package is
        alpha eps + sigma g = sigma S, and given x_t the prediction is (a - b alpha / sigma) x_0 + const.
        """
        return self.b * self.alpha - self.a * self.sigma


@dataclass(frozen=True, slots=True)
class Path:
    """The path x_t = alpha(t) x_0 + sigma(t) eps. Times broadcast against what they multiply: [B, 1, 1] for [B, N, d].

    Attributes:
        name: for messages and records.
        alpha: scale of the data.
        sigma: scale of the noise.
        alpha_rate: d alpha / d t.
        sigma_rate: d sigma / d t.
        time_from_straight: the t at which sigma / (alpha + sigma) has the value given: x_t / (alpha + sigma) is then a
            point of the straight path at that value, so the samplers of the straight path serve every path.
    """

    name: str
    alpha: Schedule
    sigma: Schedule
    alpha_rate: Schedule
    sigma_rate: Schedule
    time_from_straight: Schedule

    def interpolate(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noised data x_t = alpha x_0 + sigma eps."""
        return self.alpha(t) * x_0 + self.sigma(t) * eps

    def noise(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t, eps = (x_t - alpha x_0) / sigma; huge but finite at t = 0."""
        return (x_t - self.alpha(t) * x_0) / self.sigma(t).clamp_min(TINY)

    def data(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The data that eps turns into x_t, x_0 = (x_t - sigma eps) / alpha; huge but finite at t = 1."""
        return (x_t - self.sigma(t) * eps) / self.alpha(t).clamp_min(TINY)

    def reading(self, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """The (a, b) of a prediction a x_0 + b eps.

        Raises:
            ValueError: if ``prediction`` is unknown.
        """
        if prediction not in get_args(Prediction):
            raise ValueError(f"unknown prediction {prediction!r}; known: {', '.join(get_args(Prediction))}.")
        if prediction == "velocity":
            return self.alpha_rate(t), self.sigma_rate(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return (zero, one) if prediction == "noise" else (one, zero)

    def at(self, t: Tensor, prediction: Prediction) -> PathPoint:
        """The coefficients of x_t and of a prediction at times ``t``, shaped like them."""
        return PathPoint(self.alpha(t), self.sigma(t), *self.reading(t, prediction))


def _straight_alpha_rate(t: Tensor) -> Tensor:
    return -torch.ones_like(t)


STRAIGHT = Path(
    name="straight",
    alpha=lambda t: 1 - t,
    sigma=lambda t: t,
    alpha_rate=_straight_alpha_rate,
    sigma_rate=torch.ones_like,
    time_from_straight=lambda t: t,
)


def cosine_path(offset: float = 0.008) -> Path:
    """Variance-preserving cosine path, alpha = cos(theta_t) / cos(theta_0), sigma^2 = 1 - alpha^2.

    theta_t = (pi / 2) (t + s) / (1 + s). sigma grows like sqrt(t) at the data end, so a *velocity* is infinite
    there (a noise prediction is not): its rate is held finite by a floor on sigma.

    Args:
        offset: s >= 0; with 0 the path is the circle (cos, sin) and every rate is finite.

    Raises:
        ValueError: if the offset is negative.
    """
    if offset < 0:
        raise ValueError(f"the offset of a cosine path is at least 0, not {offset}; the usual value is 0.008.")
    speed = math.pi / 2 / (1 + offset)
    first = speed * offset

    def alpha(t: Tensor) -> Tensor:
        return (torch.cos(speed * t + first) / math.cos(first)).clamp_min(0)

    def sigma(t: Tensor) -> Tensor:
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a): 1 - alpha^2 without the cancellation near t = 0.
        return (torch.sin(speed * t) * torch.sin(speed * t + 2 * first)).clamp_min(0).sqrt() / math.cos(first)

    def alpha_rate(t: Tensor) -> Tensor:
        return -speed * torch.sin(speed * t + first) / math.cos(first)

    def sigma_rate(t: Tensor) -> Tensor:
        if offset == 0:
            return speed * torch.cos(speed * t)
        return -alpha(t) * alpha_rate(t) / sigma(t).clamp_min(TINY)

    def time_from_straight(t: Tensor) -> Tensor:
        cosine = (1 - t) / torch.hypot(1 - t, t) * math.cos(first)
        return ((torch.acos(cosine.clamp(-1, 1)) - first) / speed).clamp(0, 1)

    return Path("cosine", alpha, sigma, alpha_rate, sigma_rate, time_from_straight)
