"""Advantage Weighted Matching: policy gradient with the pre-training loss as the log-likelihood.

    log pi(x_0 | c) := -E_{t, eps}[ w(t) ||v(x_t, t, c) - (eps - x_0)||^2 ]
    J = E mean_i min(rho_i A_i, clip(rho_i, 1 - c, 1 + c) A_i) - beta KL_ref - ema_beta KL_anchor

where rho_i = exp(log pi - log pi_old) uses the same (t, eps) for both. On policy the gradient is that of the
matching loss weighted by the advantage, whichever sampler made x_0. See AWM,
https://arxiv.org/abs/2509.25050, Algorithm 1; the KL to an anchor is of the released code.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.terms import (
    LOSS_TYPES,
    WEIGHTINGS,
    check_name,
    clipped_ratio_loss,
    log_likelihood,
    velocity_mse,
)
from awm.types import Experience, LossOutput, Needs

OLD_POLICIES = ("rollout", "current")


def awm_loss(
    velocity: Tensor,
    target: Tensor,
    t: Tensor,
    advantage: Tensor,
    *,
    velocity_old: Tensor | None = None,
    loss_type: str = "exp_first",
    weighting: str = "ghuber",
    ghuber_power: float = 0.25,
    clip_range: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B samples, each averaged over its T times, without the KL terms.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        target: [T, B, C, H, W] the path's velocity eps - x_0.
        t: [T, B] times.
        advantage: [B].
        velocity_old: [T, B, C, H, W] of the policy that sampled; None if it is the one being trained, then the
            ratio is one and only its gradient matters.
        loss_type: where the mean over times is taken, see ``clipped_ratio_loss``.
        weighting: of the log-likelihood, see ``log_likelihood``.
        ghuber_power: p of weighting "ghuber".
        clip_range: c of the clipped ratio.

    Returns:
        [B] loss, and metrics of [B] values.
    """
    mse = velocity_mse(velocity, target)
    log_prob = log_likelihood(mse, t, weighting=weighting, ghuber_power=ghuber_power)
    log_prob_old = log_prob
    if velocity_old is not None:
        mse_old = velocity_mse(velocity_old, target)
        log_prob_old = log_likelihood(mse_old, t, weighting=weighting, ghuber_power=ghuber_power)

    loss, ratio = clipped_ratio_loss(log_prob, log_prob_old, advantage, loss_type=loss_type, clip_range=clip_range)
    return loss, {
        "velocity_mse": mse.mean(0),
        "ratio/mean": ratio.mean(0),
        "ratio/clip_fraction": ((ratio - 1).abs() > clip_range).to(ratio.dtype).mean(0),
    }


class AWM:
    """The objective.

    Args:
        forward: noise, forwards and KL terms. With ``group_noise`` each (t, eps) keeps its distribution, so the
            expected gradient is the same; but the advantages of a group sum to zero, so what its images have in
            common, most of the noise, cancels instead of adding up.
        loss_type: "exp_first" or "sum_first".
        weighting: Uniform, t, t**2, huber or ghuber.
        ghuber_power: p of ghuber.
        clip_range: bound on |ratio - 1|.
        off_policy: the anchor sampled, so its log-likelihood is the old one.
        old_policy: the old policy after the first update of an epoch. "rollout" evaluates the weights that
            sampled, for one more forward. "current" takes the ratio as one at every update: no extra
            forward, but a gradient without the correction for having moved, a bias that grows with the
            number of updates per epoch; the KL to the anchor is then all that bounds the move.
    """

    needs = Needs(rollout_weights=True)
    zero_at_zero_advantage = True

    def __init__(
        self,
        *,
        forward: ForwardProcess,
        loss_type: str = "exp_first",
        weighting: str = "ghuber",
        ghuber_power: float = 0.25,
        clip_range: float = 1.0,
        off_policy: bool = False,
        old_policy: str = "rollout",
    ) -> None:
        check_name("loss_type", loss_type, LOSS_TYPES)
        check_name("weighting", weighting, WEIGHTINGS)
        check_name("old_policy", old_policy, OLD_POLICIES)
        self.forward, self.off_policy, self.old_policy = forward, off_policy, old_policy
        self.loss = partial(
            awm_loss, loss_type=loss_type, weighting=weighting, ghuber_power=ghuber_power, clip_range=clip_range
        )

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        moved = not on_policy and self.old_policy == "rollout" and not self.off_policy
        v = self.forward.velocities(policy, noised, anchor=self.off_policy, rollout=moved)
        loss, metrics = self.loss(
            v.current,
            noised.target,
            noised.t,
            batch.advantage,
            velocity_old=v.anchor if self.off_policy else v.rollout,
        )
        return self.forward.output(loss, metrics, noised, v)
