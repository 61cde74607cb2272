"""Flow-GRPO: the clipped policy gradient of PPO on every stochastic step of the sampler.

    L = mean_t max(-A rho_t, -A clip(rho_t, 1 - c, 1 + c)) + beta KL_t
    rho_t = exp(log p(x_s | x_t) - log p_old(x_s | x_t)),    log p the mean over dimensions of log N(x_s; mean, std^2)
    KL_t = KL(p(. | x_t) || p_ref(. | x_t)),  the mean over dimensions, of Gaussians of the same std

with the states of the rollout. See Flow-GRPO, https://arxiv.org/abs/2505.05470. One objective serves a family, whose
members differ in the sampler and in what an advantage is:

    Flow-GRPO       flow_sde, a = 0.7        all steps but the last (timestep_fraction 0.99), clip 1e-4, A to +-5
    Flow-GRPO-Fast  flow_sde, a = 0.8        window "random" of 2, clip 1e-5
    MixGRPO         flow_sde, a = 0.7        window "sliding" of 4, arXiv 2507.21802
    DanceGRPO       dance_sde, eta = 0.3     60 % of the steps at random (sde_steps), shared initial noise, no KL
    FlowCPS         cps, eta = 0.7 to 1      a likelihood without 1 / (2 std^2), arXiv 2509.05952
    DDPO            ddpm, eta = 1            50 steps, advantages over all images, no KL, arXiv 2305.13301

In terms of velocities the on-policy gradient is that of A b^2 / (2 std^2) mean (v - y)^2, with b = d mean / d v and the
y of ``matching_target``: AWM's with a noisier target, at states of the rollout.
"""

from __future__ import annotations

from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.terms import clipped_ratio_loss
from awm.objectives.transitions import StepChoice, add_transition_kl, detached
from awm.types import Experience, LossOutput, Needs


def flow_grpo_loss(
    log_prob: Tensor, log_prob_old: Tensor, advantage: Tensor, *, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """mean_t max(-A rho_t, -A clip(rho_t, 1 - c, 1 + c)), the loss without its KL.

    Args:
        log_prob: [T, B] of each step under the policy being trained, mean over dimensions.
        log_prob_old: [T, B] under the policy that sampled; no gradient flows into it.
        advantage: [B].
        clip_range: c. Small, since the mean over D dimensions makes rho the D-th root of the ratio of densities.

    Returns:
        [B] loss, and metrics.
    """
    loss, ratio = clipped_ratio_loss(log_prob, log_prob_old, advantage, loss_type="exp_first", clip_range=clip_range)
    return loss, ratio_metrics(loss, ratio, clip_range)


def ratio_metrics(loss: Tensor, ratio: Tensor, clip_range: float) -> dict[str, Tensor]:
    """What is logged of a clipped ratio [T, B]."""
    clipped = ((ratio - 1).abs() > clip_range).to(ratio.dtype)
    return {"loss/policy": loss, "ratio/mean": ratio.mean(0), "ratio/clip_fraction": clipped.mean(0)}


class FlowGRPO:
    """The objective: one forward over the chosen steps, and one of the reference if it is needed.

    Before the first update of an epoch the old log-probability is the detached new one, so that the ratio is one. Later
    it is the one that the sampler stored. The two agree exactly if a forward gives each row the same numbers
    in training as in sampling. Kernels of reduced precision need not where batches differ in size, or in the
    rows that guidance adds; the metric ``ratio/stored_error``, of the first update, is the resulting error of log rho,
    and should be well below ``clip_range`` where there are several updates.

    Args:
        clip_range: c, bound on |rho - 1|.
        beta: coefficient of the KL to the reference; 0 skips its forward.
        timestep_fraction: share of the grid, from the noise end, whose steps are trained.
        sde_steps: number of stochastic steps trained in a pass, drawn anew for each; None: all.
        kl_time_scaled: multiply each step's KL by its length t - s. Flow-GRPO's code does so, by leaving the length out
            of its variance, and its published beta is meant for that.
        guidance_scale: classifier-free guidance of every forward in training, that of the rollout; 1 for none.
        off_policy: the anchor sampled, so the stored log-probability is the old one from the start.
    """

    needs = Needs(trajectory=True)
    zero_at_zero_advantage = True

    def __init__(
        self,
        *,
        clip_range: float = 1e-4,
        beta: float = 0.04,
        timestep_fraction: float = 0.99,
        sde_steps: int | None = None,
        kl_time_scaled: bool = False,
        guidance_scale: float = 1.0,
        off_policy: bool = False,
    ) -> None:
        self.clip_range, self.beta, self.kl_time_scaled = clip_range, beta, kl_time_scaled
        self.guidance_scale, self.off_policy = guidance_scale, off_policy
        self.steps = StepChoice(timestep_fraction, sde_steps)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        chosen = self.steps(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        # Before the forward with gradient: its activations are then not held while others run.
        others = chosen.rows.frozen_velocities(policy, self.guidance_scale, {"reference": self.beta > 0})
        velocity = chosen.rows.velocity(policy, self.guidance_scale)
        log_prob, old = chosen.log_prob(velocity), chosen.log_prob_old
        mismatch = {}
        if on_policy and not self.off_policy:
            mismatch = {"ratio/stored_error": (log_prob - old).abs().mean(0)}
            old = log_prob.detach()
        loss, metrics = flow_grpo_loss(log_prob, old, batch.advantage, clip_range=self.clip_range)
        loss, kl_metrics = add_transition_kl(
            loss, chosen, velocity, others.get("reference"), beta=self.beta, time_scaled=self.kl_time_scaled
        )
        return detached(loss, metrics | mismatch | kl_metrics)
