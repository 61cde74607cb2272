"""Two noise schedules in one set of coordinates: both policies live on the straight path of ``awm.flow.path``.

A variance-preserving diffusion has x^VP = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1. Divided by
alpha + sigma it is the straight path at another time,

    x^VP / (alpha + sigma) = (1 - t) x_0 + t eps,      t = sigma / (alpha + sigma)

and because alpha = (1 - t) (alpha + sigma), also alpha + sigma = 1 / sqrt((1 - t)^2 + t^2): the map needs no table.
DDIM moves from (x_0, eps) predictions to the same predictions at another (alpha, sigma), so it commutes with the
rescaling: DDIM on the diffusion path is exactly ``awm.samplers.ddim`` on the mapped times, and needs no sampler of
its own. What still differs between the two policies is what a diffusion policy is: its times, the network's input
(x^VP, unit variance) and its output (eps, so an error in velocity counts (1 - t)^2).

Cosine schedule: Nichol and Dhariwal, https://arxiv.org/abs/2102.09672, eq. 17; SiMPO, appendix F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.flow.path import expand_time

COSINE_OFFSET = 0.008
LARGEST_BETA = 0.999
"""Bound on beta of the last step, as in Nichol and Dhariwal: without it alpha would be exactly 0 there."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where a policy's sampler steps, where it is trained, and what its network sees and says.

    Attributes:
        grid: n + 1 times on the straight path, decreasing to 0.
        predicts_noise: the network sees x^VP and predicts eps; otherwise x_t and velocity.
    """

    grid: tuple[float, ...]
    predicts_noise: bool

    def training_times(self, uniforms: Tensor) -> Tensor:
        """Times from uniform numbers: the noise levels of the grid with equal chance, or all of (0, 1).

        A flow never trains at t = 0, where a velocity says nothing that sampling uses.
        """
        if not self.predicts_noise:
            return 1 - uniforms
        levels = torch.tensor(self.grid[:-1], dtype=uniforms.dtype, device=uniforms.device)
        return levels[(uniforms * len(levels)).long()]

    def first_state(self, eps: Tensor) -> Tensor:
        """The sampler's first state: eps itself, or x^VP = eps in the coordinates of the straight path."""
        return eps / input_scale(torch.tensor(self.grid[0])) if self.predicts_noise else eps


def flow_schedule(num_steps: int) -> Schedule:
    """Evenly spaced times 1, 1 - 1/n, ..., 0 and velocity prediction."""
    return Schedule(tuple(1 - i / num_steps for i in range(num_steps + 1)), predicts_noise=False)


def diffusion_schedule(num_steps: int) -> Schedule:
    """The cosine schedule's n noise levels, largest first, and then 0; noise prediction."""
    levels = cosine_alpha_bars(num_steps)
    times = [math.sqrt(1 - a) / (math.sqrt(a) + math.sqrt(1 - a)) for a in levels]
    return Schedule((*reversed(times), 0.0), predicts_noise=True)


def cosine_alpha_bars(num_steps: int) -> tuple[float, ...]:
    """alpha^2 after steps 1 to n: cos^2((k/n + s) / (1 + s) pi/2) / cos^2(s / (1 + s) pi/2), betas at most 0.999."""

    def ideal(k: int) -> float:
        angle = (k / num_steps + COSINE_OFFSET) / (1 + COSINE_OFFSET)
        return math.cos(angle * math.pi / 2) ** 2

    levels, level = [], 1.0
    for k in range(1, num_steps + 1):
        level *= 1 - min(1 - ideal(k) / ideal(k - 1), LARGEST_BETA)
        levels.append(level)
    return tuple(levels)


def input_scale(t: Tensor) -> Tensor:
    """The factor alpha + sigma in x^VP = (alpha + sigma) x_t, at the noise level t = sigma / (alpha + sigma)."""
    return ((1 - t).square() + t.square()).rsqrt()


def network_input(x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The state as the network sees it, shaped like x_t."""
    return x_t * expand_time(input_scale(t), x_t) if schedule.predicts_noise else x_t
