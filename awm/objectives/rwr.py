"""Reward Weighted Regression: a prompt's images, weighted by the softmax of their rewards.

    w_i = K softmax(R / tau)_i within the K images of a prompt, mean 1

The best velocity is that of pi_old(x_0) exp(R(x_0) / tau) / Z. At tau -> infinity it is fine-tuning on one's own
samples (at rest on average), at tau -> 0 on the best of K. To first order in 1 / tau it is AWM plus that fine-tuning:
w_i = 1 + (R_i - mean R) / tau.

Reward Weighted Regression is Peters and Schaal's (ICML 2007); on diffusion models see DDPO, arXiv 2305.13301. The form
within a prompt, with rewards in their own unit, is the baseline "rwr" of Flow-GRPO's repository (arXiv 2505.05470;
recalled, not re-read). SiMPO with exp weights differs by rewards in units of their std and a temperature that is
solved for.
"""

from __future__ import annotations

from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.terms import require_positive
from awm.objectives.weighted_regression import WeightedRegression, group_weights, prompt_rows
from awm.types import Experience, GroupWeights, LossOutput, Needs
from awm.weightings import exp_weights


class RWR:
    """The objective, see the module.

    Args:
        forward: noises the micro-batch, runs the forwards and adds the KL terms.
        rwr_temperature: tau, in the unit of the rewards.

    Raises:
        ValueError: the temperature is not a finite number above 0.
    """

    needs = Needs()

    def __init__(self, *, forward: ForwardProcess, rwr_temperature: float = 1.0) -> None:
        require_positive("rwr_temperature", rwr_temperature)
        self.regression = WeightedRegression(forward)
        self.temperature = rwr_temperature

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """K softmax(R / tau) of each prompt, K its valid images; all 1 where they tie. See ``WeighsGroups``."""
        rows, counts = prompt_rows(reward, group, valid)
        return group_weights(exp_weights(rows, self.temperature, valid=counts).sum(0), valid)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        return self.regression(policy, batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
