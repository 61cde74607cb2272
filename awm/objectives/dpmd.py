"""Diffusion Policy Mirror Descent: images weighted by the exponential of their standardised reward.

    w_i = exp(clip((R_i - mean R) / (std R + 1e-4), -3, 3) / lambda)    mean and std over the epoch's images

AWR without groups, in units of the spread of all rewards: images of a hard prompt get little weight, however they do
among their own. Within a prompt the minimiser is pi_old exp(Q / lambda) / Z, Q the standardised, clipped reward.

DPMD, arXiv 2502.00361 (recalled, not re-read). There Q is a critic's, mean and std run over training, and lambda is
learned by the dual of an entropy target; here rewards are the epoch's and lambda is fixed. SiMPO with exp weights
(``awm.objectives.simpo``) has a temperature that is solved for a target. A public port standardises with
q - mean / std, which is a slip of operator precedence, and is not reproduced.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.group_weights import reward_unit
from awm.objectives.weighted_regression import WeightedRegression, group_weights, known_rewards
from awm.types import Experience, GroupWeights, LossOutput, Needs

CLIP = 3.0  # in std
LOWEST = CLIP / math.log(torch.finfo(torch.float32).max)


class DPMD:
    """The objective, see the module.

    Args:
        forward: noises the micro-batch, runs the forwards and adds the KL terms.
        dpmd_temperature: lambda, in units of the std of the epoch's rewards.

    Raises:
        ValueError: the temperature is not finite, or so small that the largest weight is not.
    """

    needs = Needs()

    def __init__(self, *, forward: ForwardProcess, dpmd_temperature: float = 1.0) -> None:
        if not LOWEST < dpmd_temperature < math.inf:
            raise ValueError(
                f"dpmd_temperature={dpmd_temperature:g} is not valid; it must be a finite number above {LOWEST:.3f}, "
                f"where the largest weight, exp(3 / dpmd_temperature), leaves float32."
            )
        self.regression = WeightedRegression(forward)
        self.temperature = dpmd_temperature

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """The weights of an epoch, whatever the groups; all 1 if its rewards tie. See ``WeighsGroups``."""
        known = known_rewards(reward, valid)
        mean = known.sum() / valid.sum().clamp(min=1)
        score = ((known - mean) / reward_unit(known, valid)).clamp(-CLIP, CLIP)
        return group_weights((score / self.temperature).exp(), valid)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        return self.regression(policy, batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
