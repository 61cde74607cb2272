"""FlowAWR: regression to the old velocity, moved along or against its error by what an image is worth.

    A_i = K softmax(R / gamma)_i - 1        gamma = max(std of R over the whole rollout, 1e-6)
    L = E_{t, eps} ||v - sg[v_old + A_i (u - v_old)]||^2

with the softmax over the K valid images of a prompt. w = K softmax is the weight of advantage-weighted regression,
whose target is the policy of KL-constrained reward maximisation; less one, it leaves the policy where it is if rewards
are equal. A sums to 0 in a group and lies in [-1, K - 1]. At one x_t the minimiser is
v_old + E[w | x_t] (v_AWR - v_old), the way to the regression's field scaled by the density ratio [derived here]. The
coefficient of ||v||^2 is 1 for every image, so the loss is bounded below. ||.||^2 is a mean over elements. FlowAWR,
https://arxiv.org/abs/2606.30376; from notes on its appendix and a third party's reproduction, its body was not read.

Left out: the paper's optional gate for rule rewards, A / max(std(A), 1e-2), whose exact form we do not know.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awm.flow.path import at_least_float32
from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.terms import require_positive, velocity_mse
from awm.objectives.weighted_regression import prompt_rows
from awm.types import Experience, GroupWeights, LossOutput, Needs
from awm.weightings import exp_weights

SMALLEST_TEMPERATURE = 1e-6


def flow_awr_advantages(reward: Tensor, group: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """[N] float64 A_i = K softmax(R / gamma)_i - 1 over the K valid images of each prompt; zero where not valid.

    Args:
        reward: [N] rewards, ignored where not valid.
        group: [N] int64; images of one prompt share a value.
        valid: [N] bool.
        temperature: gamma, in the unit of the rewards.

    Raises:
        ValueError: a valid reward is not finite.
    """
    rows, counts = prompt_rows(reward, group, valid)
    return torch.where(valid, exp_weights(rows, temperature, valid=counts).sum(0) - 1, 0.0)


def flow_awr_loss(
    velocity: Tensor, velocity_anchor: Tensor, target: Tensor, advantage: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B samples, E ||v - v_old + A e_old||^2 with e_old = v_old - u, each averaged over its T times.

    It is DiffusionNFT's plain form at b = 1 with 2 r - 1 = A, there bounded by 1 and here not, less
    (1 - A^2) ||e_old||^2, in which v does not occur [derived here]. At v = v_old its gradient is AWM's with Uniform
    weighting.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        velocity_anchor: [T, B, C, H, W] v_old, of the policy that sampled.
        target: [T, B, C, H, W] u, the path's velocity eps - x_0.
        advantage: [B] A.

    Returns:
        [B] loss, and the distance of the target from the old policy, mean (A e_old)^2.
    """
    old = at_least_float32(velocity_anchor.detach())
    correction = advantage.reshape(-1, *(1,) * (old.ndim - 2)) * (at_least_float32(target) - old)
    loss = velocity_mse(velocity, old + correction).mean(0)
    return loss, {"flow_awr/correction": correction.square().flatten(2).mean(2).mean(0)}


class FlowAWR:
    """The objective. The anchor is the old policy, so it has to sample: ``train.off_policy``.

    Args:
        forward: noise, forwards and KL terms.
        flow_awr_max: largest A, more than 0; None: no bound but K - 1, which extrapolates far where one image of many
            is good. With it, a group's A can sum to less than 0. Ours.

    Raises:
        ValueError: the bound is not positive.
    """

    needs = Needs()

    def __init__(self, *, forward: ForwardProcess, flow_awr_max: float | None = None) -> None:
        if flow_awr_max is not None:
            require_positive("flow_awr_max", flow_awr_max)
        self.forward, self.largest = forward, math.inf if flow_awr_max is None else flow_awr_max

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """A of an epoch's images, see ``awm.interfaces.WeighsGroups``.

        Raises:
            ValueError: a valid reward is not finite.
        """
        known = reward[valid].double()
        spread = known.std(correction=0).item() if len(known) else 0.0
        temperature = max(spread, SMALLEST_TEMPERATURE)
        advantage = flow_awr_advantages(reward, group, valid, temperature)
        clipped = advantage.clamp(max=self.largest)
        metrics = {"weight/temperature": temperature}
        if len(known):
            metrics |= {
                "weight/max": clipped[valid].max().item(),
                "weight/min": clipped[valid].min().item(),
                "weight/clipped": (advantage > clipped)[valid].double().mean().item(),
            }
        return GroupWeights(value=clipped.float(), metrics=metrics)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        if batch.weight is None:
            raise ValueError("FlowAWR's samples have no weight; give Experience.weight what weigh() returned for them.")
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        v = self.forward.velocities(policy, noised, anchor=True)
        assert v.anchor is not None
        loss, metrics = flow_awr_loss(v.current, v.anchor, noised.target, batch.weight)
        return self.forward.output(loss, metrics, noised, v)
