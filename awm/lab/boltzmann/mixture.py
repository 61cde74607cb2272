"""A mixture of round Gaussians: a target of which everything is known, and so a judge of estimators and flows.

Its log density serves as Q with temperature 1. With x_t = alpha x_0 + sigma eps, component k has
V_k = alpha^2 S_k^2 + sigma^2 and responsibility r_k ~ W_k N(x_t; alpha M_k, V_k I); the posterior means of data and
noise are sums over k of r_k (M_k + alpha S_k^2 / V_k (x_t - alpha M_k)) and r_k sigma / V_k (x_t - alpha M_k), exact
and finite for 0 <= t <= 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.reverse_matching import STRAIGHT, Path, Prediction


@dataclass(frozen=True, slots=True)
class GaussianMixture:
    """Weights, means and standard deviations of the components.

    Attributes:
        weights: [K] positive, sum 1.
        means: [K, d].
        stds: [K] positive.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """[num, d] independent draws."""
        component = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        noise = torch.randn(num, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.stds[component, None] * noise

    def log_density(self, x: Tensor) -> Tensor:
        """Log density [...] of points [..., d]."""
        return self._log_joint(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log density, [..., d]."""
        pull = (self.means - x[..., None, :]) / self.stds.square()[:, None]
        return (self.components(x)[..., None] * pull).sum(-2)

    def components(self, x: Tensor) -> Tensor:
        """[..., K] probability of each component given a point [..., d]."""
        return self._log_joint(x).softmax(-1)

    def prediction(
        self, x_t: Tensor, t: Tensor, *, path: Path = STRAIGHT, prediction: Prediction = "velocity"
    ) -> Tensor:
        """The true velocity (or noise, or data) E[a x_0 + b eps | x_t], [B, d], of points [B, d] at times [B]."""
        time = t[:, None, None]
        alpha, sigma = path.alpha(time), path.sigma(time)
        variance = (alpha * self.stds[:, None]).square() + sigma.square()  # [B, K, 1]
        offset = x_t[:, None] - alpha * self.means  # [B, K, d]
        data = self.means + alpha * self.stds[:, None].square() / variance * offset
        noise = sigma / variance * offset
        log_joint = (
            self.weights.log()
            - 0.5 * (offset.square() / variance).sum(-1)
            - 0.5 * x_t.shape[1] * variance.squeeze(-1).log()
        )
        a, b = path.reading(time, prediction)
        return (log_joint.softmax(-1)[..., None] * (a * data + b * noise)).sum(1)

    def posterior_sample(self, x_t: Tensor, t: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """[B, num, d] exact draws of x_0 given x_t on the straight path."""
        alpha, sigma = 1 - t[:, None, None], t[:, None, None]
        variance = (alpha * self.stds[:, None]).square() + sigma.square()
        offset = x_t[:, None] - alpha * self.means
        log_joint = self.weights.log() - 0.5 * (offset.square() / variance + variance.log()).sum(-1)
        component = torch.multinomial(log_joint.softmax(-1), num, replacement=True, generator=generator)
        mean = self.means + alpha * self.stds[:, None].square() / variance * offset
        std = sigma * self.stds[:, None] / variance.sqrt()
        index = component[..., None].expand(-1, -1, x_t.shape[1])
        noise = torch.randn(index.shape, generator=generator, dtype=x_t.dtype)
        return mean.gather(1, index) + std.squeeze(-1).gather(1, component)[..., None] * noise

    def _log_joint(self, x: Tensor) -> Tensor:
        square = (x[..., None, :] - self.means).square().sum(-1) / self.stds.square()
        normaliser = x.shape[-1] * (self.stds.log() + 0.5 * math.log(2 * math.pi))
        return self.weights.log() - 0.5 * square - normaliser


def unequal_mixture(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """The main target: three modes of unequal weight and width, mean log density -2.58 under itself."""
    return _mixture((0.5, 0.3, 0.2), ((-2.0, 0.0), (2.0, 0.5), (0.0, 2.2)), (0.5, 0.7, 0.4), dtype)


def triangle_mixture(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """Three modes of one width on a triangle: the second target."""
    third = ((2.0, 0.0), (-1.0, 1.7), (-1.0, -1.7))
    return _mixture((0.5, 0.3, 0.2), third, (0.4, 0.4, 0.4), dtype)


def _mixture(
    weights: tuple[float, ...], means: tuple[tuple[float, float], ...], stds: tuple[float, ...], dtype: torch.dtype
) -> GaussianMixture:
    return GaussianMixture(*(torch.tensor(values, dtype=dtype) for values in (weights, means, stds)))
