"""Direct Group Preference Optimization: all images of a prompt at once against the pre-trained model.

    z_g = (beta / K) sum_{i in g} A_i (d_i - d_ref,i)          d = mean over features of (v - (eps - x_0))^2
    L   = mean_i sg[sigmoid(z_g)] A_i d_i                      + the KL terms

at each training time, which the images of a prompt share with their noise; losses are averaged over times, z is not.
K counts the valid images of a prompt. Per group the gradient is that of softplus(z_g) / beta (derived here; a test
compares them): with K = 2 and A = +-a it is DPO's loss of strength a beta, over beta. As the policy gets better than
the reference at telling the images apart, z falls, and with it the weight sigmoid(z): with a reference that stays,
learning fades, sooner with a larger beta. See DGPO, https://arxiv.org/abs/2510.08425; formulas as in its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.group_terms import StepGroups, require_group_noise, require_terms
from awm.objectives.terms import require_positive, velocity_mse
from awm.types import Experience, LossOutput, Needs


def dgpo_loss(
    velocity: Tensor,
    target: Tensor,
    advantage: Tensor,
    margin: Tensor,
    *,
    dgpo_beta: float,
    error_anchor: Tensor | None = None,
    clip: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss mean_t sigmoid(z) A d of B samples, with z given.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        target: [T, B, C, H, W] the path's velocity eps - x_0.
        advantage: [B] A.
        margin: [T, B] z of each sample's group; a constant.
        dgpo_beta: beta, for the metric ``dgpo/objective`` = softplus(z) / beta only.
        error_anchor: [T, B] d of the slow copy; None: no clipping.
        clip: c. With rho = exp(d_anchor - d), a row has no gradient where A > 0 and rho > 1 + c, or A < 0 and
            rho < 1 - c: it has gone far enough.

    Returns:
        [B] loss, and metrics of [B] values.
    """
    error = velocity_mse(velocity, target)
    weight = margin.detach().sigmoid()
    metrics = {
        "velocity_mse": error.mean(0),
        "dgpo/margin": margin.mean(0),
        "dgpo/weight": weight.mean(0),
        "dgpo/objective": softplus(margin).mean(0) / dgpo_beta,
    }
    if error_anchor is not None:
        ratio = (error_anchor - error.detach()).exp()
        far = torch.where(advantage > 0, ratio > 1 + clip, (advantage < 0) & (ratio < 1 - clip))
        error = torch.where(far, error.detach(), error)
        metrics["ratio/clip_fraction"] = far.to(error.dtype).mean(0)
    return (weight * advantage * error).mean(0), metrics


class DGPO:
    """The objective. Two more forwards a sample than matching: current and reference, for z.

    Args:
        forward: noises micro-batches, with ``group_noise``, and runs the forwards. The reference's, for z and for the
            KL, have ``reference_guidance_scale``; where it teaches guidance, z is not 0 at the first step.
        dgpo_beta: beta, above 0; published: 100, for PickScore 10.
        dgpo_clip: c of ``dgpo_loss``, above 0, against the anchor, for one more forward; published: .05,
            .01 or .001. None: no clipping. The KL terms are never clipped.

    Raises:
        ValueError: ``train.group_noise`` is off, or a number is not above 0.
    """

    needs = Needs(whole_groups=True)

    def __init__(self, *, forward: ForwardProcess, dgpo_beta: float = 100.0, dgpo_clip: float | None = None) -> None:
        require_group_noise(forward, "dgpo")
        require_positive("dgpo_beta", dgpo_beta)
        if dgpo_clip is not None:
            require_positive("dgpo_clip", dgpo_clip)
        self.forward, self.beta, self.clip = forward, dgpo_beta, dgpo_clip

    def prepare_step(
        self,
        policy: Policy,
        micro_batches: Sequence[Experience],
        *,
        seed: int,
        epoch: int,
        inner_epoch: int,
        on_policy: bool,
        gather: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """[B_j, T] z of each sample's group, see ``awm.interfaces.PreparesStep``."""
        groups, excess = StepGroups(micro_batches, gather), []
        for batch in micro_batches:
            noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
            reference = self.forward.frozen(policy, noised, reference=True)["reference"]
            current = noised.frozen_velocity(policy, "current", self.forward.guidance_scale)
            excess.append((velocity_mse(current, noised.target) - velocity_mse(reference, noised.target)).T)
        return groups.spread(self.beta * groups.mean(groups.advantage.unsqueeze(1) * groups.collect(excess)))

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        margin = require_terms(batch, "dgpo").T
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        v = self.forward.velocities(policy, noised, anchor=self.clip is not None)
        loss, metrics = dgpo_loss(
            v.current,
            noised.target,
            batch.advantage,
            margin,
            dgpo_beta=self.beta,
            error_anchor=None if self.clip is None or v.anchor is None else velocity_mse(v.anchor, noised.target),
            clip=self.clip or 0.0,
        )
        return self.forward.output(loss, metrics, noised, v)
