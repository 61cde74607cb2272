"""Flow policies over one number, S independent ones at once, and how they are made and sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from awm.flow.path import expand_time, interpolate, target_velocity
from awm.flow.rng import SampleNoise
from awm.interfaces import VelocityField
from awm.lab.networks import SeedMLP, seed_generators
from awm.samplers.ddim import DDIM

NUM_STEPS = 20
PRETRAIN_STEPS, PRETRAIN_BATCH, PRETRAIN_LEARNING_RATE = 2000, 256, 3e-3
# Not shifted_grid(NUM_STEPS, shift=1.0): its last positive time is 1/1000, not 1 / NUM_STEPS.
_SAMPLER = DDIM(grid=tuple(1 - i / NUM_STEPS for i in range(NUM_STEPS + 1)))


class BanditPolicy(nn.Module):
    """S velocity fields v(x, t) of one number: perceptrons with two hidden layers of 32 on seven features.

    Args:
        generators: S generators the parameters are drawn from.
        bound: |v| < bound by v = bound tanh(o / bound) of the perceptron's output o; None for v = o.
    """

    def __init__(self, generators: Sequence[torch.Generator], *, bound: float | None = 4.0) -> None:
        super().__init__()
        self.net = SeedMLP((7, 32, 32, 1), generators)
        self.bound = bound

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocity at x_t [S, B], t [S] or [S, B]: [S, B]."""
        time = expand_time(t, x_t).expand(x_t.shape)
        angles = [math.pi * time, 2 * x_t]
        features = [x_t, time, x_t * time, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)]
        output: Tensor = self.net(torch.stack(features, dim=-1)).squeeze(-1)
        return output if self.bound is None else self.bound * torch.tanh(output / self.bound)


def pretrained(
    seeds: Sequence[int], *, mean: float, std: float, bound: float | None = 4.0, num_steps: int = PRETRAIN_STEPS
) -> BanditPolicy:
    """Policies, one per seed, trained by flow matching on actions from N(mean, std^2)."""
    policy = BanditPolicy(seed_generators(seeds, "bandit/init"), bound=bound)
    noise = SampleNoise(0, "bandit/pretrain", 0, seeds)
    optimizer = torch.optim.Adam(policy.parameters(), lr=PRETRAIN_LEARNING_RATE)
    for _ in range(num_steps):
        shape = (PRETRAIN_BATCH,)
        x_0, eps, t = mean + std * noise.randn(shape), noise.randn(shape), noise.rand(shape)
        error = policy(interpolate(x_0, eps, t), t) - target_velocity(x_0, eps)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(error.square().mean(1).sum())  # a sum over seeds: each has its own gradient
        optimizer.step()
    return policy


@torch.no_grad()
def rollout(policy: VelocityField, x_1: Tensor) -> Tensor:
    """Actions [S, B] of 20 Euler steps from noise x_1 [S, B], not clipped."""
    return _SAMPLER(policy, x_1, _no_noise).x_0


def _no_noise() -> Tensor:
    raise AssertionError("DDIM is deterministic and asks for no noise")
