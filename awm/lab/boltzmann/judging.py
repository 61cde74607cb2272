"""How good a velocity field is: its error where the truth is known, and what its samples are like."""

from __future__ import annotations

import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.flow.rng import sample_generator
from awm.flow.times import shifted_grid
from awm.interfaces import VelocityField
from awm.lab.boltzmann.mixture import GaussianMixture
from awm.samplers.ddim import DDIM


@torch.no_grad()
def sample_flow(velocity: VelocityField, num: int, generator: torch.Generator, *, steps: int) -> Tensor:
    """[num, 2] samples of a flow, by DDIM on an even grid."""
    x_1 = torch.randn(num, 2, generator=generator)
    return DDIM(grid=shifted_grid(steps, shift=1.0))(velocity, x_1, lambda: torch.empty(0)).x_0


@torch.no_grad()
def judge(target: GaussianMixture, velocity: VelocityField, *, steps: int, seed: int) -> dict[str, object]:
    """Velocity error on p_t with t in [.02, .98] (per point, not per dimension), and what its samples are like."""
    generator = sample_generator(seed, "boltzmann/judge", 0, 0)
    x_0, t = target.sample(8192, generator), 0.02 + 0.96 * torch.rand(8192, generator=generator)
    x_t = interpolate(x_0, torch.randn(x_0.shape, generator=generator), t)
    error = (velocity(x_t, t) - target.prediction(x_t, t)).square().sum(-1).mean()
    samples = sample_flow(velocity, 8192, generator, steps=steps)
    return {"velocity_error": float(error)} | describe(target, samples)


def describe(target: GaussianMixture, samples: Tensor) -> dict[str, object]:
    """Mean log density of samples under the target, and the share of each mode."""
    shares = target.components(samples).mean(0)
    return {"mean_log_density": float(target.log_density(samples).mean()), "mode_shares": shares.tolist()}


def true_velocity_samples(target: GaussianMixture, num: int, *, steps: int) -> dict[str, object]:
    """What the same sampler makes of the true velocity: the part of the error that is the solver's."""
    x_1 = torch.randn(num, 2, generator=sample_generator(0, "boltzmann/solver", 0, 0))
    grid = shifted_grid(steps, shift=1.0)
    return describe(target, DDIM(grid=grid)(target.prediction, x_1, lambda: torch.empty(0)).x_0)
