"""Advantage Weighted Regression: images weighted by the exponential of how far they are above their prompt's mean.

    w_i = min(exp((R_i - mean R) / tau), w_max)

The group's mean stands for the value function of the original. Weights are not normalised: a prompt whose images differ
more in reward gets more weight in all (Jensen: the mean of exp is at least 1), where RWR gives every prompt the same.
Unclipped, both have the same minimiser within a prompt, pi_old exp(R / tau) / Z.

AWR, arXiv 1910.00177; its bound of 20 is recalled, not re-read.
"""

from __future__ import annotations

import math

from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.terms import require_positive
from awm.objectives.weighted_regression import (
    WeightedRegression,
    above_mean,
    group_weights,
    prompt_rows,
)
from awm.types import Experience, GroupWeights, LossOutput, Needs


class AWR:
    """The objective, see the module.

    Args:
        forward: noises the micro-batch, runs the forwards and adds the KL terms.
        awr_temperature: tau, in the unit of the rewards.
        awr_max_weight: w_max.

    Raises:
        ValueError: an option is not a finite number above 0.
    """

    needs = Needs()

    def __init__(self, *, forward: ForwardProcess, awr_temperature: float = 1.0, awr_max_weight: float = 20.0) -> None:
        require_positive("awr_temperature", awr_temperature)
        require_positive("awr_max_weight", awr_max_weight)
        self.regression = WeightedRegression(forward)
        self.temperature, self.max_weight = awr_temperature, awr_max_weight

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """The weights of an epoch; 1 (or a smaller w_max) where a prompt's images tie. See ``WeighsGroups``."""
        exponent = above_mean(*prompt_rows(reward, group, valid)).sum(0) / self.temperature
        # Bounded before exp(), which would overflow at a small temperature.
        return group_weights(exponent.clamp(max=math.log(self.max_weight)).exp(), valid)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        return self.regression(policy, batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
