"""The pieces objectives are made of: errors, weighted log-likelihoods, clipped ratios and KL terms.

Shapes: T training times packed along the first axis, B samples along the second. Nothing here reduces over
samples, so that the trainer can weigh them. See AWM, https://arxiv.org/abs/2509.25050.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awm.flow.path import at_least_float32

WEIGHTINGS = ("Uniform", "t", "t**2", "huber", "ghuber")
LOSS_TYPES = ("exp_first", "sum_first")
KL_WEIGHTS = ("Uniform", "ELBO")


def check_name(kind: str, name: str, known: tuple[str, ...]) -> None:
    """Raise ValueError listing ``known`` unless ``name`` is one of them."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}.")


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"train.{name}={value:g} is not valid; it must be a finite number above 0.")


def velocity_mse(velocity: Tensor, target: Tensor, *, largest: Tensor | None = None) -> Tensor:
    """Mean over features of (v - u)^2, at least in float32 (the public code uses float64; nothing here needs it).

    Args:
        velocity: [T, B, C, H, W] prediction.
        target: [T, B, C, H, W] what it is compared with.
        largest: [T, B] bound on each feature's (v - u)^2, beyond which it has no gradient; None: no bound.

    Returns:
        [T, B] squared error per dimension.
    """
    squares = (at_least_float32(velocity) - at_least_float32(target)).square().flatten(2)
    if largest is not None:
        squares = torch.minimum(squares, largest.to(squares.dtype).unsqueeze(2))
    return squares.mean(2)


@torch.no_grad()
def matching_weight(
    velocity: Tensor, target: Tensor, t: Tensor, *, weighting: str, ghuber_power: float = 0.25
) -> Tensor:
    """[T, B] -d log_likelihood / d m at the matching error m: what the squared error is weighted with.

        Uniform  1              t      t             t**2   t^2
        huber    t / (2 sqrt(m + 1e-10))             ghuber t (m + 1e-10)^(p - 1)

    Args:
        velocity: [T, B, C, H, W] prediction.
        target: [T, B, C, H, W] what it is compared with.
        t: [T, B] times.
        weighting: see ``log_likelihood``.
        ghuber_power: p.
    """
    check_name("weighting", weighting, WEIGHTINGS)
    if weighting in ("Uniform", "t", "t**2"):
        return t ** ("Uniform", "t", "t**2").index(weighting)
    mse = velocity_mse(velocity, target) + 1e-10
    return t / (2 * mse.sqrt()) if weighting == "huber" else t * mse.pow(ghuber_power - 1)


def anchoring(t: Tensor, *, pull: float, beta: float, kl_weight: str, ema_beta: float, kl_ema_weight: str) -> Tensor:
    """[T, B] total coefficient of the squared distances to other policies at times t."""
    return pull + beta * kl_time_weight(t, kl_weight) + ema_beta * kl_time_weight(t, kl_ema_weight)


def error_bound(coefficient: Tensor, error_clip: float) -> Tensor:
    """Largest squared error of a feature: ``error_clip`` where the total coefficient is negative, else infinite.

    There the loss repels without bound (SiMPO's Case II). Beyond the bound, which is that of its authors' code, an
    error has no gradient.
    """
    return torch.where(coefficient < 0, error_clip, math.inf)


def log_likelihood(mse: Tensor, t: Tensor, *, weighting: str, ghuber_power: float = 0.25) -> Tensor:
    """Surrogate log-likelihood -w(m, t) of a sample whose matching error at t is m; zero at m = 0.

        Uniform  -m             t      -t m        t**2   -t^2 m
        huber    -t (sqrt(m + 1e-10) - 1e-5)
        ghuber   -(t / p) ((m + 1e-10)^p - 1e-10^p)

    Args:
        mse: [T, B] matching error m.
        t: [T, B] times.
        weighting: name of the row above; AWM's paper reports Uniform, its released recipes use ghuber.
        ghuber_power: p; 1 is weighting t, 0.5 is twice huber.

    Returns:
        [T, B].
    """
    check_name("weighting", weighting, WEIGHTINGS)
    if weighting == "Uniform":
        return -mse
    if weighting == "t":
        return -t * mse
    if weighting == "t**2":
        return -t.square() * mse
    if weighting == "huber":
        return -t * ((mse + 1e-10).sqrt() - 1e-5)
    return -t / ghuber_power * ((mse + 1e-10).pow(ghuber_power) - math.pow(1e-10, ghuber_power))


def clipped_ratio_loss(
    log_prob: Tensor, log_prob_old: Tensor, advantage: Tensor, *, loss_type: str, clip_range: float
) -> tuple[Tensor, Tensor]:
    """PPO's loss max(-A rho, -A clip(rho, 1 - c, 1 + c)) with rho = exp(log_prob - log_prob_old).

    ``exp_first`` forms rho at each training time and averages the loss over them; ``sum_first`` averages the
    log-probabilities first (a mean, whatever the name says) and forms one rho per sample. Both have the
    same value and gradient while rho = 1.

    Args:
        log_prob: [T, B] of the policy being trained.
        log_prob_old: [T, B] of the policy that sampled; no gradient flows into it.
        advantage: [B].
        loss_type: "exp_first" or "sum_first".
        clip_range: c; 1 or more is inactive while rho is in [0, 2].

    Returns:
        [B] loss and the ratio, [T, B] or, for ``sum_first``, [1, B].
    """
    check_name("loss_type", loss_type, LOSS_TYPES)
    log_ratio = log_prob - log_prob_old.detach()
    if loss_type == "sum_first":
        log_ratio = log_ratio.mean(0, keepdim=True)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped).mean(0), ratio


def kl_time_weight(t: Tensor, kind: str) -> Tensor:
    """Weight k(t) of a velocity difference in a KL term, shaped like ``t``.

    Uniform: 1. ELBO: 1 / (2 s_t^2) with s_t = 0.7 sqrt(t / (1 - min(t, 0.99))), the noise of Flow-GRPO's SDE, whose
    path-wise KL it is.
    """
    check_name("kl_weight", kind, KL_WEIGHTS)
    if kind == "Uniform":
        return torch.ones_like(t)
    return (1 - t.clamp(max=0.99)) / (2 * 0.7**2 * t)


def kl_term(velocity: Tensor, velocity_other: Tensor, t: Tensor, *, weight: str) -> Tensor:
    """Pull toward another policy, mean over times of k(t) mean_{CHW} (v - sg[v_other])^2.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained.
        velocity_other: [T, B, C, H, W] of the reference or the anchor; no gradient flows into it.
        t: [T, B] times.
        weight: name of k(t), see ``kl_time_weight``.

    Returns:
        [B].
    """
    return (kl_time_weight(t, weight) * velocity_mse(velocity, velocity_other.detach())).mean(0)


def norm_ratio(velocity: Tensor, velocity_other: Tensor) -> Tensor:
    """[B] mean over times of ||v|| / ||v_other||; drifts above 1 before images lose quality to the reward."""
    squared, squared_other = (velocity_mse(v.detach(), torch.zeros_like(v)) for v in (velocity, velocity_other))
    return (squared / squared_other.clamp(min=1e-24)).sqrt().mean(0)
