"""Q-weighted Variational Policy Optimization: images above their prompt's mean, weighted by how far.

    w_i = max(R_i - mean R, 0)

With ``best_only`` all but the best image of a prompt get 0. The group's mean stands for the value function of the
original, whose weights "qadv" these are; AWM's advantages without the negative half and not standardised, and SiMPO's
linear weights with nu fixed at the mean.

QVPO, arXiv 2405.16173 (recalled, not re-read). Left out is its entropy term, matching to actions drawn uniformly from a
bounded box: images have no such box.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.weighted_regression import WeightedRegression, above_mean, group_weights, prompt_rows
from awm.types import Experience, GroupWeights, LossOutput, Needs


class QVPO:
    """The objective, see the module.

    Args:
        forward: noises the micro-batch, runs the forwards and adds the KL terms.
        qvpo_best_only: only the best image of a prompt has a weight, or each of the best if they tie.
    """

    needs = Needs()

    def __init__(self, *, forward: ForwardProcess, qvpo_best_only: bool = False) -> None:
        self.regression = WeightedRegression(forward)
        self.best_only = qvpo_best_only

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """The weights of an epoch; all 0 where a prompt's images tie. See ``WeighsGroups``."""
        rows, counts = prompt_rows(reward, group, valid)
        weight = above_mean(rows, counts).clamp(min=0)
        if self.best_only:
            best = torch.where(counts, rows, -math.inf).amax(1, keepdim=True)
            weight = torch.where(rows == best, weight, 0.0)
        return group_weights(weight.sum(0), valid)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        return self.regression(policy, batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
