"""How far the targets scatter around the velocity that matching them learns, step by step of a sampler's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.flow.times import shifted_grid
from awm.lab.boltzmann.mixture import GaussianMixture
from awm.lab.matching.targets import (
    added_variance,
    bridge,
    clean_target,
    noisy_target,
    step_variance,
)
from awm.samplers.flow_sde import transitions
from awm.samplers.transition import matching_target, transition_mean

NUM_STEPS = 14
NOISE_LEVELS = (0.1, 0.3, 0.7, 1.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """A Monte Carlo mean and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> Measured:
        """From independent values [n]."""
        return cls(values.mean().item(), values.std().item() / math.sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class StepVariances:
    """Mean conditional variance per dimension of each target at one step t -> s.

    Attributes:
        t: where the velocity is asked for.
        s: the step's end.
        clean: E Var(u | x_t), exact.
        noisy: the same of the target of x_s, exact: clean + kappa_v.
        sampler: noise level -> Var(y) of the sampler's step, exact.
        clean_measured: Monte Carlo estimate of ``clean``.
        noisy_measured: of ``noisy``.
        sampler_measured: of each of ``sampler``, with the true velocity as the policy.
    """

    t: float
    s: float
    clean: float
    noisy: float
    sampler: dict[float, float]
    clean_measured: Measured
    noisy_measured: Measured
    sampler_measured: dict[float, Measured]


def step_variances(
    target: GaussianMixture, generator: torch.Generator, *, num_samples: int, levels: Sequence[float] = NOISE_LEVELS
) -> list[StepVariances]:
    """Exact and sampled variances at the steps of SD3's grid but the first, where x_t is pure noise.

    Args:
        target: one-dimensional data distribution.
        generator: of the samples.
        num_samples: per step.
        levels: noise levels a of the stochastic sampler.
    """
    grid = shifted_grid(NUM_STEPS)
    rows = []
    for number, (t, s) in list(enumerate(pairwise(grid)))[1:]:
        x_0 = target.sample(num_samples, generator)
        noise = [torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype) for _ in range(3)]
        early, late = (torch.full((num_samples,), value, dtype=x_0.dtype) for value in (s, t))
        x_t = interpolate(x_0, noise[0], late)
        velocity = target.prediction(x_t, late)
        steps = {level: transitions(grid, noise_level=level)[number] for level in levels}
        clean = mean_clean_variance(target, t)
        noisy = noisy_target(bridge(x_0, x_t, early, late, noise[1]), x_t, early, late)
        sampled = {
            level: matching_target(transition_mean(x_t, velocity, step) + step.std * noise[2], x_t, step)
            for level, step in steps.items()
        }
        rows.append(
            StepVariances(
                t=t,
                s=s,
                clean=clean,
                noisy=clean + added_variance(s, t),
                sampler={level: step_variance(step) for level, step in steps.items()},
                clean_measured=_scatter(clean_target(x_0, x_t, late), velocity),
                noisy_measured=_scatter(noisy, velocity),
                sampler_measured={level: _scatter(y, velocity) for level, y in sampled.items()},
            )
        )
    return rows


def mean_clean_variance(target: GaussianMixture, t: float, *, num_points: int = 4001) -> float:
    """E Var(u | x_t) = E u^2 - E v*(x_t)^2 of one-dimensional data, by the trapezoidal rule over x_t.

    For Gaussian data of variance s^2 it is s^2 / V_t with V_t = (1 - t)^2 s^2 + t^2.
    """
    std = ((1 - t) * target.stds).square().add(t**2).sqrt()
    marginal = GaussianMixture(target.weights, (1 - t) * target.means, std)
    reach = (marginal.means.abs().squeeze(-1) + 10 * std).max().item()
    x_t = torch.linspace(-reach, reach, num_points, dtype=target.means.dtype).unsqueeze(-1)
    velocity = target.prediction(x_t, torch.full((num_points,), t, dtype=x_t.dtype)).squeeze(-1)
    learned = torch.trapezoid(marginal.log_density(x_t).exp() * velocity.square(), x_t.squeeze(-1))
    data = (target.weights * (target.stds.square() + target.means.square().squeeze(-1))).sum()
    return (data + 1 - learned).item()


def _scatter(y: Tensor, velocity: Tensor) -> Measured:
    return Measured.of((y - velocity).square().squeeze(-1))
