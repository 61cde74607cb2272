"""GRPO-Guard: Flow-GRPO with a log-ratio whose mean is zero and whose scale is the same at every step.

With mean_old and std of a step, n_old = (x_s - mean_old) / std the noise it drew and delta = mean - mean_old,

    rho_t = exp(mean (n_old delta)),    L = mean_t max(-A rho_t, -A clip(rho_t, 1 - c, 1 + c)) / (t - s) + beta KL_t

Published as exp(std (log p - log p_old) + mean delta^2 / (2 std)), which is the same number as a difference of large
ones. The likelihood's own log-ratio is mean (n_old delta) / std - mean delta^2 / (2 std^2): the second term makes every
step look less likely, so that good samples are rarely clipped, and the first grows toward the data. With ``flow_sde``,
whose d mean / d v is -(1 + a^2 / 2) (t - s), the gradient of the loss with respect to the velocity is
A (1 + a^2 / 2) n / D at every t < 1.

See GRPO-Guard, https://arxiv.org/abs/2510.22319; its formulas are those of two public implementations, which differ in
the factor 1 / (t - s), and the closed form is derived here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.flow_grpo import ratio_metrics
from awm.objectives.terms import clipped_ratio_loss
from awm.objectives.transitions import StepBatch, StepChoice, add_transition_kl, detached
from awm.samplers.transition import transition_mean
from awm.types import Experience, LossOutput, Needs, Transition


def guarded_log_ratio(x_s: Tensor, x_t: Tensor, velocity: Tensor, velocity_old: Tensor, step: Transition) -> Tensor:
    """Log-ratio mean (n_old delta), with n_old = (x_s - mean_old) / std and delta = (d mean / d v) (v - v_old).

    Args:
        x_s: [B, C, H, W] the state after the step.
        x_t: [B, C, H, W] the state before it.
        velocity: [B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        velocity_old: [B, C, H, W] of the policy that sampled.
        step: the coefficients of a stochastic step.

    Returns:
        [B].
    """
    old = velocity_old.detach()
    noise = (x_s - transition_mean(x_t, old, step)) / step.std
    return (noise * (step.velocity_weight * (velocity - old))).flatten(1).mean(1)


def grpo_guard_loss(
    log_ratio: Tensor, advantage: Tensor, *, clip_range: float, step_length: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """mean_t max(-A rho_t, -A clip(rho_t, 1 - c, 1 + c)) / h_t, the loss without its KL.

    Args:
        log_ratio: [T, B] of ``guarded_log_ratio``.
        advantage: [B].
        clip_range: c.
        step_length: [T] h = t - s of the steps; None leaves out the division.

    Returns:
        [B] loss, and metrics.
    """
    scaled = advantage if step_length is None else advantage / step_length.unsqueeze(1)
    loss, ratio = clipped_ratio_loss(
        log_ratio, torch.zeros_like(log_ratio), scaled, loss_type="exp_first", clip_range=clip_range
    )
    return loss, ratio_metrics(loss, ratio, clip_range)


class GRPOGuard:
    """The objective: as ``awm.objectives.flow_grpo.FlowGRPO``, with the guarded ratio.

    Before the first update of an epoch the old velocity is the detached new one, later the one that the sampler stored.

    Args:
        clip_range: c, bound on |rho - 1|.
        beta: coefficient of the KL to the reference; 0 skips its forward.
        timestep_fraction: share of the grid, from the noise end, whose steps are trained.
        sde_steps: number of stochastic steps trained in a pass, drawn anew for each; None: all.
        kl_time_scaled: multiply each step's KL by its length, see ``FlowGRPO``.
        guard_div_dt: divide each step's loss by its length t - s, so that steps of all lengths count alike.
        guidance_scale: classifier-free guidance of every forward in training, that of the rollout; 1 for none.
        off_policy: the anchor sampled, so the stored velocity is the old one from the start.
    """

    needs = Needs(trajectory=True, velocities=True)
    zero_at_zero_advantage = True

    def __init__(
        self,
        *,
        clip_range: float = 2e-6,
        beta: float = 0.04,
        timestep_fraction: float = 0.99,
        sde_steps: int | None = None,
        kl_time_scaled: bool = False,
        guard_div_dt: bool = True,
        guidance_scale: float = 1.0,
        off_policy: bool = False,
    ) -> None:
        self.clip_range, self.beta, self.kl_time_scaled = clip_range, beta, kl_time_scaled
        self.guard_div_dt, self.guidance_scale, self.off_policy = guard_div_dt, guidance_scale, off_policy
        self.steps = StepChoice(timestep_fraction, sde_steps)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``.

        Raises:
            ValueError: the rollout stored no stochastic steps, or not their velocities.
        """
        chosen = self.steps(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        stored = chosen.velocity_old
        if stored is None:
            raise ValueError(
                "GRPO-Guard compares means of steps, and this sampler returns no velocities; use sample.sampler="
                "flow_sde, dance_sde, cps or ddpm."
            )
        others = chosen.rows.frozen_velocities(policy, self.guidance_scale, {"reference": self.beta > 0})
        velocity = chosen.rows.velocity(policy, self.guidance_scale)
        log_ratio = _log_ratio(chosen, velocity, stored)
        mismatch = {}
        if on_policy and not self.off_policy:
            mismatch = {"ratio/stored_error": log_ratio.abs().mean(0)}
            log_ratio = _log_ratio(chosen, velocity, velocity)
        lengths = velocity.new_tensor([step.t - step.s for step in chosen.steps])
        loss, metrics = grpo_guard_loss(
            log_ratio,
            batch.advantage,
            clip_range=self.clip_range,
            step_length=lengths if self.guard_div_dt else None,
        )
        loss, kl_metrics = add_transition_kl(
            loss, chosen, velocity, others.get("reference"), beta=self.beta, time_scaled=self.kl_time_scaled
        )
        return detached(loss, metrics | mismatch | kl_metrics)


def _log_ratio(chosen: StepBatch, velocity: Tensor, velocity_old: Tensor) -> Tensor:
    return chosen.of_each(
        lambda j, step: guarded_log_ratio(chosen.x_s[j], chosen.rows.x_t[j], velocity[j], velocity_old[j], step)
    )
