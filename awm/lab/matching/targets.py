"""Velocity targets for the same x_t: of the clean x_0, of a less noisy x_s, and of a stochastic sampler's step.

All three have the mean v*(x_t) = E[u | x_t], so that matching any of them has the same minimiser; they differ in
variance. See AWM, https://arxiv.org/abs/2509.25050, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awm.flow.path import expand_time, velocity_from_data, velocity_from_score
from awm.types import Transition


def clean_target(x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Velocity u = (x_t - x_0) / t = eps - x_0 of flow matching; x_0 and x_t [B, d], t [B] > 0."""
    return velocity_from_data(x_t, x_0, t)


def bridge(x_0: Tensor, x_t: Tensor, s: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """A draw of x_s, s < t, given both ends of the noising process x_0 -> x_s -> x_t.

        mean (1 - s) x_0 + (r s^2 / t^2) (x_t - (1 - t) x_0),    variance s^2 (t^2 - r^2 s^2) / t^2

    with r = (1 - t) / (1 - s), the weight of x_s in x_t.

    Args:
        x_0: [B, d] data.
        x_t: [B, d] noised data.
        s: [B] times.
        t: [B] later times.
        z: [B, d] standard normal.
    """
    s, t = expand_time(s, x_0), expand_time(t, x_0)
    shrink = (1 - t) / (1 - s)
    mean = (1 - s) * x_0 + shrink * s.square() / t.square() * (x_t - (1 - t) * x_0)
    return mean + s / t * (t.square() - (shrink * s).square()).sqrt() * z


def noisy_target(x_s: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Velocity of the score grad log p(x_t | x_s) = -(x_t - r x_s) / (t^2 - r^2 s^2), r = (1 - t) / (1 - s).

    Args:
        x_s: [B, d] less noisy states.
        x_t: [B, d] states.
        s: [B] times.
        t: [B] later times, below 1.
    """
    early, late = expand_time(s, x_t), expand_time(t, x_t)
    shrink = (1 - late) / (1 - early)
    score = -(x_t - shrink * x_s) / (late.square() - (shrink * early).square())
    return velocity_from_score(x_t, score, t)


def added_variance(s: float, t: float) -> float:
    """kappa_v = s^2 / ((t - s) (t + s - 2 s t)), what x_s instead of x_0 adds to each dimension's variance (theorem 2).

    In the paper's units, of the score, it is kappa = kappa_v (1 - t)^2 / t^2. Grows like t / (2 (1 - t) (t - s)).
    """
    return s**2 / ((t - s) * (t + s - 2 * s * t))


def step_weight(step: Transition) -> float:
    """The w = b^2 / (2 std^2) of the likelihood -w ||v - y||^2, y of ``matching_target``; infinite without noise."""
    return step.velocity_weight**2 / (2 * step.std**2) if step.std else torch.inf


def step_variance(step: Transition) -> float:
    """Variance of each dimension of y around the sampling policy's velocity, std^2 / b^2."""
    return (step.std / step.velocity_weight) ** 2
