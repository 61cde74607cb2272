"""Diffusion-DPO, online: of each prompt's images the best against the worst, at the same times and noise.

    z = -(beta / 2) [(d_w - d_ref,w) - (d_l - d_ref,l)]       L = mean over pairs of -log sigmoid(z)

with d = mean over features of (v - (eps - x_0))^2, the winner w and the loser l by advantage, and one such loss at each
training time. Prompts whose images are all worth the same have no pair. Since a pair can be split over micro-batches
and ranks, z comes from ``prepare_step`` and the loss of a sample is

    l_w = beta sg[sigmoid(-z)] d_w        l_l = -beta sg[sigmoid(-z)] d_l

whose mean over the images of the pairs has the gradient of L. The trainer divides by the n valid images of the step
where L divides by its P pairs: losses and metrics of a pair's images are therefore multiplied by n / (2 P), those of
all others are 0, and the step's gradient is that of L + beta_kl KL, with the KL terms, too, a mean over the pairs'
images. At theta = ref it is (beta / 4) grad (d_w - d_l): AWM's with the advantages +-beta / 4.

See Diffusion-DPO, https://arxiv.org/abs/2311.12908; online pairs and strength as in the code of Flow-GRPO,
https://arxiv.org/abs/2505.05470. The surrogate per sample is derived here; a test compares the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.group_terms import StepGroups, require_group_noise, require_terms
from awm.objectives.terms import require_positive, velocity_mse
from awm.types import Experience, LossOutput, Needs


def dpo_loss(
    velocity: Tensor, target: Tensor, role: Tensor, margin: Tensor, error_reference: Tensor, *, dpo_beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss mean_t beta role sigmoid(-z) d of B samples, with z given.

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        target: [T, B, C, H, W] the path's velocity eps - x_0.
        role: [B] 1 for the winner of a pair, -1 for its loser, 0 for a sample without a pair.
        margin: [T, B] z of each sample's pair; a constant.
        error_reference: [T, B] d_ref, for the metrics.
        dpo_beta: beta.

    Returns:
        [B] loss, and metrics of [B] values: ``dpo/loss`` -log sigmoid(z); ``dpo/accuracy``, whether the policy's
        implicit reward prefers the winner; ``dpo/winner_drift`` and ``dpo/loser_drift``, twice d - d_ref in samples of
        that role, so that their means are the pairs'. Where both rise, the policy leaves all of its images.
    """
    error = velocity_mse(velocity, target)
    drift = 2 * (error.detach() - error_reference).mean(0)
    metrics = {
        "velocity_mse": error.mean(0),
        "dpo/loss": -logsigmoid(margin).mean(0),
        "dpo/accuracy": (margin > 0).to(error.dtype).mean(0),
        "dpo/winner_drift": drift * (role > 0),
        "dpo/loser_drift": drift * (role < 0),
    }
    return dpo_beta * role * (margin.detach().neg().sigmoid() * error).mean(0), metrics


def pair_roles(group: Tensor, advantage: Tensor, valid: Tensor) -> Tensor:
    """Who is compared: 1 for the best valid sample of each group, -1 for its worst, 0 for the others.

    Of several best the first is taken, of several worst the last; a group whose samples are all equal has no pair.

    Args:
        group: [N] int64, in the order of the epoch.
        advantage: [N].
        valid: [N] bool.

    Returns:
        [N] float64.
    """
    role = torch.zeros(len(group), dtype=torch.float64)
    for name in torch.unique(group[valid]):
        rows = ((group == name) & valid).nonzero().flatten()
        value = advantage[rows]
        if value.max() > value.min():
            role[rows[value == value.max()][0]] = 1.0
            role[rows[value == value.min()][-1]] = -1.0
    return role


class DiffusionDPO:
    """The objective. Only pairs are trained: a micro-batch runs forwards for its winners and losers alone.

    One without any runs a single row for nothing. With micro-batches much smaller than a group most are such, and cost
    more than the pairs do; ``awm-train --dry_run`` counts them.

    Args:
        forward: noises micro-batches, with ``group_noise``, and runs the forwards; the reference's have
            ``reference_guidance_scale``.
        dpo_beta: beta, above 0; published: 100 with this mean over features, also 2000 and more. It saturates the
            sigmoid: at large beta a pair teaches nothing once the policy prefers its winner.

    Raises:
        ValueError: ``train.group_noise`` is off, or beta is not above 0.
    """

    needs = Needs(whole_groups=True)

    def __init__(self, *, forward: ForwardProcess, dpo_beta: float = 100.0) -> None:
        require_group_noise(forward, "dpo")
        require_positive("dpo_beta", dpo_beta)
        self.forward, self.beta = forward, dpo_beta

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
        """[B_j, 4, T] role, n / (2 P) or 0, z and d_ref of each sample, see ``awm.interfaces.PreparesStep``."""
        groups = StepGroups(micro_batches, gather)
        role = pair_roles(groups.group, groups.advantage, groups.valid)
        errors = []
        for batch, own in zip(micro_batches, groups.spread(role), strict=True):
            rows = _rows_to_run(own, batch.valid)
            noised = self.forward.noised(batch.take(rows), seed=seed, epoch=epoch, inner_epoch=inner_epoch)
            reference = self.forward.frozen(policy, noised, reference=True)["reference"]
            current = noised.frozen_velocity(policy, "current", self.forward.guidance_scale)
            pair = torch.stack([velocity_mse(v, noised.target).T for v in (current, reference)], 1)
            errors.append(_put(pair, rows, len(batch)))
        error, error_reference = groups.collect(errors).unbind(1)
        role = role.unsqueeze(1).expand_as(error)
        margin = -self.beta / 2 * groups.sum(role * (error - error_reference))
        share = role.abs() * groups.valid.sum() / role[:, 0].abs().sum().clamp(min=1)
        return groups.spread(torch.stack([role, share, margin, error_reference], 1))

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        terms = require_terms(batch, "dpo")
        rows = _rows_to_run(terms[:, 0, 0], batch.valid)
        role, share, margin, error_reference = (term.T for term in terms[rows.to(terms.device)].unbind(1))
        noised = self.forward.noised(batch.take(rows), seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        v = self.forward.velocities(policy, noised)
        loss, metrics = dpo_loss(v.current, noised.target, role[0], margin, error_reference, dpo_beta=self.beta)
        pairs = self.forward.output(loss, metrics, noised, v)
        return LossOutput(
            _put(share[0] * pairs.loss, rows, len(batch)),
            {name: _put(share[0] * value, rows, len(batch)) for name, value in pairs.metrics.items()},
        )


def _rows_to_run(role: Tensor, valid: Tensor) -> Tensor:
    """Rows of a micro-batch that are in a pair, on the CPU; the first valid one, for nothing, if none is.

    Ranks that share weights run equally many forwards, and each micro-batch hands in a gradient, if only of zeros.
    """
    rows = role.cpu().nonzero().flatten()
    return rows if len(rows) else valid.cpu().int().argmax(keepdim=True)


def _put(values: Tensor, rows: Tensor, length: int) -> Tensor:
    """[length, ...] with values [n, ...] at rows [n] and zeros elsewhere."""
    return values.new_zeros(length, *values.shape[1:]).index_add(0, rows.to(values.device), values)
