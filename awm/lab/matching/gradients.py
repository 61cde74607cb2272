"""Noise of the gradient at one and the same model, for each target: trace of its covariance over its squared mean.

The model is linear in its parameters, v = phi theta, so that a sample's gradient is an outer product of phi and the
error and all moments are sums. A ratio of two such noises is the ratio of the batch sizes that give equally exact
updates, whatever the scale of the losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from awm.flow.path import interpolate, target_velocity
from awm.flow.rng import SampleNoise
from awm.flow.times import shifted_grid
from awm.lab.matching.convergence import draw, draw_data, ring
from awm.lab.matching.features import CosineFeatures
from awm.lab.matching.targets import step_weight
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.transition import matching_target
from awm.types import Transition

LAGS = (math.inf, 0.25, 0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025)
LEVELS = (0.1, 0.2, 0.4, 0.7, 1.0, 1.4)
ESTIMATORS = ("clean", "likelihood", "likelihood, equal weights")
NUM_STEPS, FRACTION = 14, 0.9
CHUNK = 512
RIDGE = 1e-4


@dataclass
class Moments:
    """Running first and second moments of per-sample gradients, for S seeds."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, gradient: Tensor) -> None:
        """Take in gradients [S, n, F, 2] of n samples."""
        self.count += gradient.shape[1]
        self.total = self.total + gradient.sum(1).double()
        self.squares = self.squares + gradient.square().sum((1, 2, 3), dtype=torch.float64)

    @property
    def signal(self) -> Tensor:
        """[S] unbiased ||E g||^2."""
        return (self.total.square().sum((1, 2)) - self.squares) / (self.count * (self.count - 1))

    @property
    def noise(self) -> Tensor:
        """[S] unbiased trace of Cov g."""
        return self.squares / self.count - self.signal

    def dot(self, other: Moments) -> Tensor:
        """[S] product of the mean gradients of two estimators."""
        return (self.total * other.total).sum((1, 2)) / (self.count * other.count)


def matching_noise(
    seeds: Sequence[int], features: CosineFeatures, theta: Tensor, *, num_samples: int, lags: Sequence[float] = LAGS
) -> Tensor:
    """[L, S] trace of the covariance of the matching loss's gradient over the squared mean gradient.

    Args:
        seeds: S numbers that key the draws.
        features: of the model.
        theta: [S, F, 2] its parameters; at the best ones there is no signal.
        num_samples: per seed.
        lags: of the targets, see ``convergence``.
    """
    data, noise = ring(), SampleNoise(0, "matching/gradient", 0, seeds)
    moments = [Moments() for _ in lags]
    exact = Moments()
    for _ in range(num_samples // CHUNK):
        batch = draw(data, noise, CHUNK, lags)
        phi = features(batch.x_t, batch.t)
        velocity = torch.bmm(phi, theta)
        truth = data.prediction(batch.x_t.flatten(0, 1), batch.t.flatten()).view_as(velocity)
        exact.add(_outer(phi, velocity - truth))
        for target, moment in zip(batch.targets, moments, strict=True):
            moment.add(_outer(phi, velocity - target))
    # All targets have the mean gradient of the true velocity, which is known with the least noise.
    return torch.stack([moment.noise for moment in moments]) / exact.signal


def fit_policy(features: CosineFeatures, seeds: Sequence[int], *, num_samples: int = 16384) -> Tensor:
    """[S, F, 2] parameters of the policy to be improved: ridge regression of u on phi, t uniform on [0, 1]."""
    data, noise = ring(), SampleNoise(0, "matching/policy", 0, seeds)
    gram = torch.eye(features.num_features).mul(RIDGE * num_samples).expand(len(seeds), -1, -1)
    moment = torch.zeros(len(seeds), features.num_features, 2)
    for _ in range(num_samples // CHUNK):
        x_0, eps, t = draw_data(data, noise, CHUNK), noise.randn((CHUNK, 2)), noise.rand((CHUNK,))
        phi = features(interpolate(x_0, eps, t), t)
        gram = gram + phi.mT @ phi
        moment = moment + phi.mT @ target_velocity(x_0, eps)
    theta: Tensor = torch.linalg.solve(gram, moment)
    return theta


@dataclass(frozen=True, slots=True)
class PolicyGradients:
    """Noise of three estimates of the same kind of update from the same rollouts, at one noise level.

    Attributes:
        level: a of the sampler.
        noise: estimator -> [S] trace of Cov g over ||E g||^2.
        cosine: estimator -> [S] cosine of its mean with that of the clean one.
    """

    level: float
    noise: dict[str, Tensor]
    cosine: dict[str, Tensor]


def policy_gradient_noise(
    seeds: Sequence[int], features: CosineFeatures, theta: Tensor, *, level: float, num_samples: int
) -> PolicyGradients:
    """Noise of the on-policy gradient for the reward r = first coordinate of x_0, advantages A = (r - mean) / std.

        clean                       sum_j A grad ||v(x_j, t_j) - u||^2, x_j fresh noisings of x_0 (AWM, Uniform)
        likelihood                  sum_j A grad w_j ||v(x_j, t_j) - y_j||^2, the sampler's own steps (DDPO, Flow-GRPO)
        likelihood, equal weights   the same with w_j = 1

    All use the same rollouts and the same times: the steps AWM trains on by default, without the first and the last
    tenth of the grid.

    Args:
        seeds: S numbers that key the draws.
        features: of the policy.
        theta: [S, F, 2] its parameters.
        level: a > 0.
        num_samples: rollouts per seed.
    """
    sampler = FlowSDE(grid=shifted_grid(NUM_STEPS), noise_level=level)
    noise = SampleNoise(0, "matching/rollout", 0, seeds)
    moments = {name: Moments() for name in ESTIMATORS}
    for _ in range(num_samples // CHUNK):
        for name, gradient in _gradients(sampler, features, theta, noise).items():
            moments[name].add(gradient)
    clean = moments["clean"]
    return PolicyGradients(
        level=level,
        noise={name: moment.noise / moment.signal for name, moment in moments.items()},
        cosine={
            name: moment.dot(clean) / (moment.signal * clean.signal).sqrt()
            for name, moment in moments.items()
            if moment is not clean
        },
    )


def _gradients(sampler: FlowSDE, features: CosineFeatures, theta: Tensor, noise: SampleNoise) -> dict[str, Tensor]:
    """Per-rollout gradients [S, CHUNK, F, 2] of each estimator."""

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.bmm(features(x_t, t.unsqueeze(-1).expand(x_t.shape[:2])), theta)

    rollout = sampler(velocity, noise.randn((CHUNK, 2)), lambda: noise.randn((CHUNK, 2)), keep_states=True)
    assert rollout.states is not None
    reward = rollout.x_0[..., 0]
    advantage = (reward - reward.mean(1, keepdim=True)) / reward.std(1, keepdim=True)
    result = dict.fromkeys(ESTIMATORS, torch.zeros(()))
    for index in range(1, int(FRACTION * NUM_STEPS)):
        step = sampler.steps[index]
        t = torch.full(reward.shape, step.t)
        eps = noise.randn((CHUNK, 2))
        phi = features(interpolate(rollout.x_0, eps, t), t)
        error = torch.bmm(phi, theta) - target_velocity(rollout.x_0, eps)
        result["clean"] = result["clean"] + _outer(phi, advantage.unsqueeze(-1) * error)
        likelihood = _likelihood_gradient(features, theta, rollout.states[index : index + 2], step, advantage)
        result["likelihood"] = result["likelihood"] + step_weight(step) * likelihood
        result["likelihood, equal weights"] = result["likelihood, equal weights"] + likelihood
    return result


def _likelihood_gradient(
    features: CosineFeatures, theta: Tensor, states: Tensor, step: Transition, advantage: Tensor
) -> Tensor:
    """[S, n, F, 2] gradient of A ||v - y||^2 at one step, from the states [2, S, n, 2] before and after it."""
    x_t, x_s = states
    phi = features(x_t, torch.full(x_t.shape[:2], step.t))
    error = torch.bmm(phi, theta) - matching_target(x_s, x_t, step)
    return _outer(phi, advantage.unsqueeze(-1) * error)


def _outer(phi: Tensor, error: Tensor) -> Tensor:
    """Gradient [S, n, F, 2] of the mean over dimensions of ||phi theta - y||^2, whose error is phi theta - y."""
    return phi.unsqueeze(-1) * error.unsqueeze(-2)
