"""The regression targets of reverse flow matching on images; ``awm.objectives.rfm`` says where each is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.flow.path import expand_time
from awm.objectives.noising import NoisedBatch
from awm.objectives.rfm_candidates import (
    candidate_weights,
    difference_from_mean,
    effective_size,
    relative_log_likelihood,
    tempering,
)
from awm.objectives.rfm_gradient import capped
from awm.types import Experience, GroupMates


@dataclass(frozen=True, slots=True)
class Matching:
    """What B samples at T times are matched with.

    Attributes:
        target: [T, B, C, H, W] y, without gradient.
        ess: [T, B] effective number of the prompt's images behind x_t.
        clipped: [T, B] bool, where the correction was cut.
        baseline: [T, B, C, H, W] y of equal rewards, whose mean at x_t is v_old; only of ``weighted_target``.
    """

    target: Tensor
    ess: Tensor
    clipped: Tensor
    baseline: Tensor | None = None


@torch.no_grad()
def weighted_target(
    batch: Experience,
    noised: NoisedBatch,
    correction: Callable[[Tensor], Tensor] | None = None,
    baseline_correction: Callable[[Tensor], Tensor] | None = None,
    cap: float = 0.0,
) -> Matching:
    """Target y = v_hat - Lambda u,  v_hat = sum_j w_j (x_t - x_0j) / t = eps - x_0i + (1 / t) sum_j w_j (x_0i - x_0j).

    Args:
        batch: B samples with group mates.
        noised: they at T times.
        correction: v_hat -> Lambda u; None for 0.
        baseline_correction: the same of equal rewards; None for 0.
        cap: largest root mean square of the correction, 0 for none.
    """
    mates, likelihood = _likelihood(batch, noised)
    weight = candidate_weights(likelihood, mates.weight.log())
    baseline, target = (
        noised.target + _over_time(difference_from_mean(batch.x_0, batch.group, mates, w), noised.t)
        for w in (candidate_weights(likelihood), weight)
    )
    clipped = torch.zeros_like(noised.t, dtype=torch.bool)
    if correction is not None:
        cut, clipped = capped(correction(target), cap)
        target = target - cut
    if baseline_correction is not None:
        baseline = baseline - capped(baseline_correction(baseline), cap)[0]
    return Matching(target, effective_size(weight), clipped, baseline)


@torch.no_grad()
def anchored_target(batch: Experience, noised: NoisedBatch, velocity_old: Tensor) -> Matching:
    """Target y = v_old - (1 / t) sum_j (w_j - w0_j) x_0j, with tempered likelihoods; v_old where weights are equal.

    Args:
        batch: B samples with group mates.
        noised: they at T times.
        velocity_old: [T, B, C, H, W] of the policy that sampled.
    """
    mates, likelihood = _likelihood(batch, noised)
    tempered = likelihood * tempering(likelihood)
    plain, weight = candidate_weights(tempered), candidate_weights(tempered, mates.weight.log())
    change = difference_from_mean(batch.x_0, batch.group, mates, weight - plain)
    nowhere = torch.zeros_like(noised.t, dtype=torch.bool)
    return Matching(velocity_old + _over_time(change, noised.t), effective_size(plain), nowhere)


def _likelihood(batch: Experience, noised: NoisedBatch) -> tuple[GroupMates, Tensor]:
    assert batch.mates is not None
    eps = noised.target + batch.x_0
    return batch.mates, relative_log_likelihood(batch.x_0, eps, noised.t, batch.group, batch.mates)


def _over_time(x: Tensor, t: Tensor) -> Tensor:
    return x / expand_time(t, x)
