"""How fast a velocity is learned from clean and from noisy targets: a ring of eight Gaussians, SGD and Adam.

Every target sees the same x_0, x_t and t; only what is regressed on differs. The lag D = t - s of the noisy target is
the step length of a sampler: the shorter the step, the closer x_s is to x_t and the noisier its target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.flow.rng import SampleNoise
from awm.lab.boltzmann.mixture import GaussianMixture
from awm.lab.matching.features import CosineFeatures
from awm.lab.matching.targets import bridge, clean_target, noisy_target
from awm.lab.networks import SeedVelocity, seed_generators

EARLIEST, LATEST = 0.3, 0.95
LAGS = (math.inf, 0.2, 0.07, 0.025)
"""Lags D of the targets; the first, without end, is the clean target."""
LEARNING_RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
BATCH = 256
NUM_TEST = 4096


@dataclass(frozen=True, slots=True)
class Draw:
    """One batch for each of S seeds.

    Attributes:
        x_t: [S, B, 2].
        t: [S, B].
        targets: [L, S, B, 2], one row per lag.
    """

    x_t: Tensor
    t: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Learning:
    """Velocity errors while learning.

    Attributes:
        steps: when they were measured.
        error: [len(steps), L, R, S] mean of (v - v*)^2 per dimension, for lags, learning rates and seeds.
        learning_rates: R of them.
    """

    steps: tuple[int, ...]
    error: Tensor
    learning_rates: tuple[float, ...]

    def best(self) -> Tensor:
        """[L] index of the learning rate with the least mean error at the end."""
        return self.error[-1].mean(-1).nan_to_num(nan=math.inf).argmin(-1)


def ring(num_modes: int = 8, radius: float = 2.0, std: float = 0.15) -> GaussianMixture:
    """Gaussians of equal weight on a circle, float32."""
    angle = torch.arange(num_modes) * (2 * math.pi / num_modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return GaussianMixture(torch.full((num_modes,), 1 / num_modes), means, torch.full((num_modes,), std))


def draw_data(data: GaussianMixture, noise: SampleNoise, batch: int) -> Tensor:
    """[S, batch, d] samples of a mixture whose components have equal weights."""
    component = (noise.rand((batch,)) * len(data.weights)).long()
    return data.means[component] + data.stds[component].unsqueeze(-1) * noise.randn((batch, data.means.shape[1]))


def draw(data: GaussianMixture, noise: SampleNoise, batch: int, lags: Sequence[float] = LAGS) -> Draw:
    """A batch and all its targets; an infinite lag gives the clean one."""
    x_0 = draw_data(data, noise, batch)
    t = EARLIEST + (LATEST - EARLIEST) * noise.rand((batch,))
    x_t, z = interpolate(x_0, noise.randn((batch, 2)), t), noise.randn((batch, 2))
    targets = [
        clean_target(x_0, x_t, t) if math.isinf(lag) else noisy_target(bridge(x_0, x_t, t - lag, t, z), x_t, t - lag, t)
        for lag in lags
    ]
    return Draw(x_t, t, torch.stack(targets))


def learn_linear(
    seeds: Sequence[int], *, steps: Sequence[int], learning_rates: Sequence[float] = LEARNING_RATES
) -> tuple[Learning, Tensor]:
    """SGD on a linear model of random cosine features, from zero, for all lags and learning rates at once.

    Returns:
        The errors, and the parameters [len(steps), S, F, L, R, 2] at those steps.
    """
    data, noise = ring(), SampleNoise(0, "matching/linear", 0, seeds)
    features = CosineFeatures(2, seed_generators(seeds, "matching/features"))
    test, truth = _test_set(data, seeds)
    test_phi = features(test.x_t, test.t)
    rates = torch.tensor(list(learning_rates)).reshape(1, 1, 1, -1, 1)
    theta = torch.zeros(len(seeds), features.num_features, len(LAGS), len(rates.flatten()), 2)
    errors, kept = [], []
    for step in range(1, max(steps) + 1):
        batch = draw(data, noise, BATCH)
        phi = features(batch.x_t, batch.t)
        residual = _apply(phi, theta) - batch.targets.permute(1, 2, 0, 3).unsqueeze(-2)
        theta -= rates * 2 / BATCH * torch.bmm(phi.mT, residual.flatten(2)).view_as(theta)
        if step in steps:
            wrong = _apply(test_phi, theta) - truth[:, :, None, None]
            errors.append(wrong.square().mean((1, 4)).permute(1, 2, 0))
            kept.append(theta.clone())
    return Learning(tuple(steps), torch.stack(errors), tuple(learning_rates)), torch.stack(kept)


def learn_mlp(seeds: Sequence[int], *, steps: Sequence[int], learning_rate: float = 1e-3) -> Learning:
    """Adam on a perceptron with two hidden layers of 64; networks of one seed start equal for all lags."""
    data, noise = ring(), SampleNoise(0, "matching/mlp", 0, seeds)
    net = SeedVelocity(2, [g for _ in LAGS for g in seed_generators(seeds, "matching/mlp init")])
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    test, truth = _test_set(data, seeds)
    errors = []
    for step in range(1, max(steps) + 1):
        batch = draw(data, noise, BATCH)
        error = _velocities(net, batch) - batch.targets
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(error.square().mean((2, 3)).sum())
        optimizer.step()
        if step in steps:
            with torch.no_grad():
                errors.append((_velocities(net, test) - truth).square().mean((2, 3)).unsqueeze(1))
    return Learning(tuple(steps), torch.stack(errors), (learning_rate,))


def _velocities(net: SeedVelocity, batch: Draw) -> Tensor:
    """[L, S, B, 2] of L networks per seed at the same states."""
    x_t, t = batch.x_t.repeat(len(LAGS), 1, 1), batch.t.repeat(len(LAGS), 1)
    velocity: Tensor = net(x_t, t)
    return velocity.view(len(LAGS), *batch.x_t.shape)


def _test_set(data: GaussianMixture, seeds: Sequence[int]) -> tuple[Draw, Tensor]:
    """Fresh states of each seed and the true velocity there, [S, B, 2]."""
    test = draw(data, SampleNoise(0, "matching/test", 0, seeds), NUM_TEST, lags=(math.inf,))
    truth = data.prediction(test.x_t.flatten(0, 1), test.t.flatten())
    return test, truth.view_as(test.x_t)


def _apply(phi: Tensor, theta: Tensor) -> Tensor:
    """Velocities [S, B, L, R, 2] of features [S, B, F] and parameters [S, F, L, R, 2]."""
    return torch.bmm(phi, theta.flatten(2)).view(*phi.shape[:2], *theta.shape[2:])
