"""Weighted regression: flow matching to one's own samples, each with a weight w_i >= 0 that its reward has earned.

    L = mean_i w_i d_i,    d_i = mean over times and features of (v(x_t, t, c) - (eps - x_0))^2

The best velocity is E[w u | x_t] / E[w | x_t] with u = eps - x_0: exactly that of the density pi_old(x_0) w(x_0) / Z.
Nothing is repelled, so the loss is bounded below and needs no old policy, no anchor and no reference. RWR, AWR, DPMD
and QVPO differ only in how an epoch's rewards become weights (``awm.objectives.rwr`` and so on). They are the
nonnegative, uncentred end of SiMPO (``awm.objectives.simpo``, arXiv 2603.10250, eqs 7 and 8), which is the same loss.

The log has ``weight/mean``, ``weight/max`` and ``weight/ess``, the effective share of samples (sum w)^2 / (N sum w^2)
of the epoch: 1 if all weigh alike, 1 / N if one has everything. Only RWR's weights have mean 1; with the others the KL
coefficients of ``train.beta`` and ``train.ema_beta`` count relative to ``weight/mean``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.terms import velocity_mse
from awm.types import Experience, GroupWeights, LossOutput


def weighted_matching_loss(velocity: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss w_i d_i of B samples, d_i the matching error averaged over T times and all features.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        target: [T, B, C, H, W] the path's velocity eps - x_0.
        weight: [B] w.

    Returns:
        [B] loss, and metrics of [B] values.
    """
    error = velocity_mse(velocity, target).mean(0)
    return weight * error, {"velocity_mse": error}


class WeightedRegression:
    """What the objectives of this family do with a micro-batch, given its weights.

    Args:
        forward: noises the micro-batch, runs the forwards and adds the KL terms.
    """

    def __init__(self, forward: ForwardProcess) -> None:
        self.forward = forward

    def __call__(self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int) -> LossOutput:
        """Loss of a micro-batch; whoever sampled it, and on policy or not.

        Raises:
            ValueError: the batch has no weights.
        """
        if batch.weight is None:
            raise ValueError("these samples have no weight; give Experience.weight what weigh() returned for them.")
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        velocities = self.forward.velocities(policy, noised)
        loss, metrics = weighted_matching_loss(velocities.current, noised.target, batch.weight)
        return self.forward.output(loss, metrics, noised, velocities)


def known_rewards(reward: Tensor, valid: Tensor) -> Tensor:
    """[N] float64 rewards, zero where not valid, whatever is there; ValueError if a valid one is not finite."""
    if not torch.isfinite(reward[valid]).all():
        raise ValueError("a valid reward is not finite; mark rewards that could not be computed as not valid.")
    return torch.where(valid, reward.double(), 0.0)


def prompt_rows(reward: Tensor, group: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """A row for each of G prompts, as wide as the epoch, in which the samples of other prompts do not count.

    What is zero where it does not count, summed over the rows, is back in the order of the samples.

    Args:
        reward: [N], ignored where not valid.
        group: [N] int64; images of one prompt share a value.
        valid: [N] bool.

    Returns:
        [G, N] float64 rewards and [G, N] bool, which count.
    """
    prompts = torch.unique(group)
    known = known_rewards(reward, valid).expand(len(prompts), -1)
    return known, (group == prompts[:, None]) & valid


def above_mean(reward: Tensor, counts: Tensor) -> Tensor:
    """[G, N] rewards minus the mean of those that count in their row; zero for the others, and exactly so for ties."""
    # Measured from the row's best: equal rewards then give sums of exact zeros.
    best = torch.where(counts, reward, -math.inf).amax(1, keepdim=True)
    below = torch.where(counts, reward - best, 0.0)
    mean = below.sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
    return torch.where(counts, below - mean, 0.0)


def group_weights(weight: Tensor, valid: Tensor) -> GroupWeights:
    """An epoch's weights [N] with what the log says about those of the valid samples, see the module."""
    weight = torch.where(valid, weight, 0.0)
    known = weight[valid]
    if not len(known):
        return GroupWeights(weight.float())
    share = known.sum().square() / (len(known) * known.square().sum()) if known.any() else known.sum()
    metrics = {"weight/mean": known.mean().item(), "weight/max": known.max().item(), "weight/ess": share.item()}
    return GroupWeights(weight.float(), metrics)
