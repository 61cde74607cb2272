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
from awm.objectives.noising import Noising
from awm.objectives.terms import (
    KL_WEIGHTS,
    LOSS_TYPES,
    WEIGHTINGS,
    add_kl_terms,
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
    velocity_reference: Tensor | None = None,
    velocity_anchor: Tensor | None = None,
    loss_type: str = "exp_first",
    weighting: str = "ghuber",
    ghuber_power: float = 0.25,
    clip_range: float = 1.0,
    beta: float = 0.0,
    kl_weight: str = "Uniform",
    ema_beta: float = 0.0,
    kl_ema_weight: str = "Uniform",
) -> LossOutput:
    """Loss of B samples, each averaged over its T times: policy + beta KL_ref + ema_beta KL_anchor.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        target: [T, B, C, H, W] the path's velocity eps - x_0.
        t: [T, B] times.
        advantage: [B].
        velocity_old: [T, B, C, H, W] of the policy that sampled; None if it is the one being trained, then the
            ratio is one and only its gradient matters.
        velocity_reference: [T, B, C, H, W] of the pre-trained model; None leaves out its KL.
        velocity_anchor: [T, B, C, H, W] of the slow copy; None leaves out its KL.
        loss_type: where the mean over times is taken, see ``clipped_ratio_loss``.
        weighting: of the log-likelihood, see ``log_likelihood``; the KL terms do not use it.
        ghuber_power: p of weighting "ghuber".
        clip_range: c of the clipped ratio.
        beta: coefficient of the KL to the reference.
        kl_weight: its k(t), see ``kl_time_weight``.
        ema_beta: coefficient of the KL to the anchor.
        kl_ema_weight: its k(t).
    """
    mse = velocity_mse(velocity, target)
    log_prob = log_likelihood(mse, t, weighting=weighting, ghuber_power=ghuber_power)
    log_prob_old = log_prob
    if velocity_old is not None:
        mse_old = velocity_mse(velocity_old, target)
        log_prob_old = log_likelihood(mse_old, t, weighting=weighting, ghuber_power=ghuber_power)

    loss, ratio = clipped_ratio_loss(log_prob, log_prob_old, advantage, loss_type=loss_type, clip_range=clip_range)
    metrics = {
        "loss/policy": loss,
        "velocity_mse": mse.mean(0),
        "ratio/mean": ratio.mean(0),
        "ratio/clip_fraction": ((ratio - 1).abs() > clip_range).to(ratio.dtype).mean(0),
    }
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
    metrics |= kl_metrics
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


class AWM:
    """The objective: draws times and noise, runs the forwards that ``awm_loss`` needs, and no others.

    Args:
        grid: times of the rollout, n + 1, as scheduled (without the end-point edits of a solver).
        train_timesteps: T, times each sample is trained at.
        timestep_fraction: share of the grid that is trained on, from the noise end.
        time_type: distribution of the times, see ``draw_times``.
        time_shift: shift of the two continuous distributions.
        loss_type: "exp_first" or "sum_first".
        weighting: Uniform, t, t**2, huber or ghuber.
        ghuber_power: p of ghuber.
        clip_range: bound on |ratio - 1|.
        beta: coefficient of the KL to the reference; 0 skips its forward.
        kl_weight: Uniform or ELBO.
        ema_beta: coefficient of the KL to the anchor; 0 skips its forward.
        kl_ema_weight: Uniform or ELBO.
        guidance_scale: classifier-free guidance of every forward in training; 1 for none.
        off_policy: the anchor sampled, so its log-likelihood is the old one.
        old_policy: the old policy after the first update of an epoch. "rollout" evaluates the weights that
            sampled, for one more forward. "current" takes the ratio as one at every update: no extra
            forward, but a gradient without the correction for having moved, a bias that grows with the
            number of updates per epoch; the KL to the anchor is then all that bounds the move.
        group_noise: the images of a prompt share their times and noise. Each (t, eps) keeps its distribution,
            so the expected gradient is the same; but the advantages of a group sum to zero, so what the images
            have in common, most of the noise, cancels instead of adding up.
    """

    needs = Needs(rollout_weights=True)

    def __init__(
        self,
        *,
        grid: tuple[float, ...],
        train_timesteps: int = 6,
        timestep_fraction: float = 0.9,
        time_type: str = "discrete_wo_init",
        time_shift: float = 3.0,
        loss_type: str = "exp_first",
        weighting: str = "ghuber",
        ghuber_power: float = 0.25,
        clip_range: float = 1.0,
        beta: float = 0.0,
        kl_weight: str = "Uniform",
        ema_beta: float = 1.0,
        kl_ema_weight: str = "Uniform",
        guidance_scale: float = 1.0,
        off_policy: bool = False,
        old_policy: str = "rollout",
        group_noise: bool = False,
    ) -> None:
        check_name("loss_type", loss_type, LOSS_TYPES)
        check_name("weighting", weighting, WEIGHTINGS)
        check_name("kl_weight", kl_weight, KL_WEIGHTS)
        check_name("kl_ema_weight", kl_ema_weight, KL_WEIGHTS)
        check_name("old_policy", old_policy, OLD_POLICIES)
        self.needs_reference = beta > 0
        self.needs_anchor = ema_beta > 0 or off_policy
        self.off_policy = off_policy
        self.old_policy = old_policy
        self.guidance_scale = guidance_scale
        self.train_timesteps = train_timesteps
        self.noise = Noising(
            grid=grid,
            num_times=train_timesteps,
            fraction=timestep_fraction,
            kind=time_type,
            shift=time_shift,
            group_noise=group_noise,
        )
        self.loss = partial(
            awm_loss,
            loss_type=loss_type,
            weighting=weighting,
            ghuber_power=ghuber_power,
            clip_range=clip_range,
            beta=beta,
            kl_weight=kl_weight,
            ema_beta=ema_beta,
            kl_ema_weight=kl_ema_weight,
        )

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        noised = self.noise(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        moved = not on_policy and self.old_policy == "rollout" and not self.off_policy
        # Before the forward with gradient: its activations are then not held while others run.
        others = noised.frozen_velocities(
            policy,
            self.guidance_scale,
            {"reference": self.needs_reference, "anchor": self.needs_anchor, "rollout": moved},
        )
        return self.loss(
            noised.velocity(policy, self.guidance_scale),
            noised.target,
            noised.t,
            batch.advantage,
            velocity_old=others.get("anchor" if self.off_policy else "rollout"),
            velocity_reference=others.get("reference"),
            velocity_anchor=others.get("anchor"),
        )
