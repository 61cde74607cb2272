"""V-GRPO: clipped policy gradient with a log-likelihood surrogate that normalises itself.

    s = -(1 / T) sum_j ||x_j - x_0||^2 / sg[mean |x_j - x_0|]        x_j = x_{t_j} - t_j v(x_{t_j}, t_j)
    rho = exp(s - s_old)
    L = max(-A rho, -A clip(rho, 1 - c, 1 + c)) + vgrpo_kl (1 / T) sum_j t_j^2 ||v - v_old||^2

One ratio per image, of the mean over its times (AWM's ``sum_first``), whose normaliser is the policy's own: the current
one's in s, the old one's in s_old. ||.||^2 is a mean over elements. The images of a prompt share their (t_j, eps_j), so
that what they have in common, most of the noise, cancels in the group's advantages. On policy, ratio and KL are inert
and the gradient is DiffusionNFT's, AWM's with the weight t / mean |e| [derived here]. V-GRPO,
https://arxiv.org/abs/2604.23380; from two third-party accounts of the paper and excerpts of its code, which disagree
on the clip range (6e-3 to 1e-2, or 3e-2).

Negative advantages repel without bound, as AWM's do: the clip stops their gradient within an epoch, nothing else does
but the KL terms.
"""

from __future__ import annotations

from torch import Tensor

from awm.flow.path import at_least_float32
from awm.interfaces import Policy
from awm.objectives.awm import OLD_POLICIES
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.group_terms import require_group_noise
from awm.objectives.nft import self_normalised_error
from awm.objectives.terms import check_name, clipped_ratio_loss, require_positive, velocity_mse
from awm.types import Experience, LossOutput, Needs


def v_grpo_loss(
    velocity: Tensor,
    velocity_old: Tensor,
    target: Tensor,
    t: Tensor,
    advantage: Tensor,
    *,
    clip_range: float,
    soft_clip: float | None = None,
    kl: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B samples, with one ratio each.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        velocity_old: [T, B, C, H, W] of the policy that sampled, detached here; if that is the one being trained,
            the same again: the ratio is one and only its gradient matters.
        target: [T, B, C, H, W] the path's velocity eps - x_0.
        t: [T, B] times, T of them.
        advantage: [B] A.
        clip_range: c of the clipped ratio.
        soft_clip: eta of A <- eta tanh(A / eta), which bounds large advantages; None leaves them.
        kl: coefficient of the squared distance of the data predictions, t^2 ||v - v_old||^2.

    Returns:
        [B] loss and metrics.
    """
    old, goal = at_least_float32(velocity_old.detach()), at_least_float32(target)
    log_prob = -self_normalised_error(at_least_float32(velocity) - goal, t)
    log_prob_old = -self_normalised_error(old - goal, t)
    if soft_clip is not None:
        advantage = soft_clip * (advantage / soft_clip).tanh()
    loss, ratio = clipped_ratio_loss(log_prob, log_prob_old, advantage, loss_type="sum_first", clip_range=clip_range)
    metrics = {
        "log_likelihood": log_prob.mean(0),
        "ratio/mean": ratio.mean(0),
        "ratio/clip_fraction": ((ratio - 1).abs() > clip_range).to(ratio.dtype).mean(0),
    }
    if kl > 0:
        metrics["loss/kl_old"] = (t.square() * velocity_mse(velocity, old)).mean(0)
        loss = loss + kl * metrics["loss/kl_old"]
    return loss, metrics


class VGRPO:
    """The objective.

    Args:
        forward: noise, forwards and KL terms; with ``train.group_noise``. ``train_timesteps`` is published as 4 (2
            fail, 8 gain nothing), in strata of the grid, as the discrete time types draw them.
        clip_range: c, bound on |ratio - 1|; published: 6e-3 to 3e-2.
        vgrpo_soft_clip: eta, more than 0, in the unit of the advantages; None: off. Published: 3 to 5 for on-policy
            runs, with advantages in standard deviations (``train.advantage_max`` = ``train.adv_clip_max``).
        vgrpo_kl: coefficient of the KL to the policy that sampled, at least 0; published: 0.3 where a stage must not
            forget.
        off_policy: the anchor sampled, so its surrogate is the old one.
        old_policy: as AWM's: "rollout" evaluates the weights that sampled after the first update of an epoch,
            "current" takes the ratio as one (and the KL as zero).

    Raises:
        ValueError: images of a prompt do not share their noise, or an option is out of range.
    """

    needs = Needs(rollout_weights=True)
    zero_at_zero_advantage = True

    def __init__(
        self,
        *,
        forward: ForwardProcess,
        clip_range: float,
        vgrpo_soft_clip: float | None = None,
        vgrpo_kl: float = 0.0,
        old_policy: str = "rollout",
        off_policy: bool = False,
    ) -> None:
        check_name("old_policy", old_policy, OLD_POLICIES)
        require_group_noise(forward, "v_grpo")
        require_positive("clip_range", clip_range)
        if vgrpo_soft_clip is not None:
            require_positive("vgrpo_soft_clip", vgrpo_soft_clip)
        if not vgrpo_kl >= 0:
            raise ValueError(f"vgrpo_kl={vgrpo_kl:g} is negative and would reward moving away; use 0 for off, or 0.3.")
        self.forward, self.clip_range, self.soft_clip, self.kl = forward, clip_range, vgrpo_soft_clip, vgrpo_kl
        self.old_policy, self.off_policy = old_policy, off_policy

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        moved = not on_policy and self.old_policy == "rollout" and not self.off_policy
        v = self.forward.velocities(policy, noised, anchor=self.off_policy, rollout=moved)
        old = v.anchor if self.off_policy else v.rollout
        loss, metrics = v_grpo_loss(
            v.current,
            v.current if old is None else old,
            noised.target,
            noised.t,
            batch.advantage,
            clip_range=self.clip_range,
            soft_clip=self.soft_clip,
            kl=self.kl,
        )
        return self.forward.output(loss, metrics, noised, v)
