"""The loss of reverse flow matching on images, for targets of ``rfm_targets``.

    L = E[W_i phi(m(y)) - phi(m(y0))] + alpha ||v - v_old||^2 + beta KL_ref + ema_beta KL_anchor

with m(y) = mean (v - y)^2. y0 is y as equal rewards would give it, so that E[y0 | x_t] = v_old: without the second and
the third term (alpha = 1) the minimiser is the same, and the variance larger by what all images have in common.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from awm.objectives.terms import (
    add_kl_terms,
    anchoring,
    error_bound,
    kl_term,
    log_likelihood,
    matching_weight,
    velocity_mse,
)
from awm.types import LossOutput

ERROR_CLIP = 5.0  # as SiMPO's


def rfm_loss(
    velocity: Tensor,
    target: Tensor,
    t: Tensor,
    *,
    weight: Tensor | None = None,
    baseline: Tensor | None = None,
    velocity_old: Tensor | None = None,
    velocity_reference: Tensor | None = None,
    velocity_anchor: Tensor | None = None,
    weighting: str = "Uniform",
    ghuber_power: float = 0.25,
    pull: float = 0.0,
    error_clip: float = ERROR_CLIP,
    beta: float = 0.0,
    kl_weight: str = "Uniform",
    ema_beta: float = 0.0,
    kl_ema_weight: str = "Uniform",
) -> LossOutput:
    """Loss of B samples, each averaged over its T times.

    Args:
        velocity: [T, B, ...] of the policy being trained; the only argument that gets a gradient.
        target: [T, B, ...] y.
        t: [T, B] times.
        weight: [B] W, mean 1 over a prompt; None for 1.
        baseline: [T, B, ...] y0; None leaves out its term.
        velocity_old: [T, B, ...] of the policy that sampled; None leaves out the pull.
        velocity_reference: [T, B, ...] of the pre-trained model; None leaves out its KL.
        velocity_anchor: [T, B, ...] of the slow copy; None leaves out its KL.
        weighting: of phi, the negative ``log_likelihood`` of that name; the theory has Uniform, phi(m) = m.
        ghuber_power: p of weighting "ghuber".
        pull: alpha.
        error_clip: see ``error_bound``.
        beta: coefficient of the KL to the reference.
        kl_weight: its k(t), see ``kl_time_weight``.
        ema_beta: coefficient of the KL to the anchor.
        kl_ema_weight: its k(t).
    """
    factor = torch.ones_like(t[0]) if weight is None else weight
    likelihood = partial(log_likelihood, weighting=weighting, ghuber_power=ghuber_power)
    slope_of = partial(matching_weight, weighting=weighting, ghuber_power=ghuber_power)
    slope = factor * slope_of(velocity, target, t)
    if baseline is not None:
        slope = slope - slope_of(velocity, baseline, t)
    total = slope + anchoring(
        t, pull=pull, beta=beta, kl_weight=kl_weight, ema_beta=ema_beta, kl_ema_weight=kl_ema_weight
    )
    largest = error_bound(total, error_clip)
    mse = velocity_mse(velocity, target, largest=largest)
    loss = -factor * likelihood(mse, t).mean(0)
    if baseline is not None:
        loss = loss + likelihood(velocity_mse(velocity, baseline, largest=largest), t).mean(0)
    metrics = {"loss/policy": loss, "velocity_mse": mse.mean(0), "weight/case_two": (total < 0).to(loss).mean(0)}
    if velocity_old is not None and pull > 0:
        distance = kl_term(velocity, velocity_old, t, weight="Uniform")
        loss = loss + pull * distance
        metrics["loss/pull"] = distance
    loss, kl_metrics = add_kl_terms(
        loss,
        velocity,
        t,
        velocity_reference=velocity_reference,
        velocity_anchor=velocity_anchor,
        beta=beta,
        kl_weight=kl_weight,
        ema_beta=ema_beta,
        kl_ema_weight=kl_ema_weight,
    )
    return LossOutput(loss, {name: value.detach() for name, value in (metrics | kl_metrics).items()})
