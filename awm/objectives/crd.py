"""Centered Reward Distillation: the policy's implicit rewards, within a prompt, are to be the images' rewards.

    q_i = -(d_i / m_i - d_a,i / m_a,i)                 what the policy has gained over the anchor
    R_i = clip(A_i / (2 A_max) + 1/2, 0, 1)
    L   = (A_max / beta) mean_i (beta (q_i - sg[qbar]) - (R_i - Rbar))^2         + the KL terms

d = mean over features of (v - (eps - x_0))^2, m = sg[mean |v - (eps - x_0)|], and bars are means over the prompt's
images, at each training time. Centring removes the normaliser that rewards and log-likelihoods differ by; the square
bounds the loss from below. At theta = anchor the gradient is AWM's with weighting 1 / m (derived here). The "bce" loss
is (A_max / beta) mean_i BCE(sigmoid(beta (q_i - qbar)), sigmoid(R_i - Rbar)), 1/8 of that for small A (derived here).

With a weight temperature T the loss is the mean of two: bars weighted by the softmax over a prompt's images of R / T,
and of -R / T. Its limits are the plain means and the best (worst) image; T = 0 of the released code is something else
and not offered. That code takes bars over whatever images a batch holds; here they are those of the prompt.

The KL to the reference can be adaptive, beta_kl (k + (1 - k) R_i) with k = 1e-4 / beta_kl, at most 1: images that are
worth nothing are not pulled back. See CRD, https://arxiv.org/abs/2603.14128; formulas as in the code its first author
gave to Flow-Factory. There the rollouts come from a copy of their own; here from the current policy, or from the
anchor if ``train.off_policy``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from awm.flow.path import at_least_float32
from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.group_terms import StepGroups, require_group_noise, require_terms
from awm.objectives.terms import check_name, require_positive, velocity_mse
from awm.types import Experience, LossOutput, Needs

LOSSES = ("mse", "bce")
LEAST_KL = 1e-4  # coefficient of the adaptive KL where R = 0


def crd_loss(
    score: Tensor,
    score_anchor: Tensor,
    reward: Tensor,
    centres: Sequence[tuple[Tensor, Tensor]],
    *,
    kind: str,
    crd_beta: float,
    advantage_max: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B samples, averaged over their T times and over the pairs of bars.

    Args:
        score: [T, B] -d / m of the policy being trained, see ``matching_score``; the only argument with a gradient.
        score_anchor: [T, B] that of the slow copy.
        reward: [B] R.
        centres: (qbar, Rbar), [T, B] each; one pair, or one for each direction.
        kind: mse | bce.
        crd_beta: beta.
        advantage_max: A_max.

    Returns:
        [B] loss, and metrics of [B] values: ``crd/gain`` q; ``crd/miss`` |beta (q - qbar) - (R - Rbar)|.
    """
    gain = score - score_anchor
    losses, misses = [], []
    for gain_mean, reward_mean in centres:
        logit, wanted = crd_beta * (gain - gain_mean.detach()), reward - reward_mean
        misses.append((logit - wanted).abs())
        if kind == "mse":
            losses.append((logit - wanted).square())
        else:
            losses.append(binary_cross_entropy_with_logits(logit, wanted.sigmoid(), reduction="none"))
    loss = advantage_max / crd_beta * torch.stack(losses).mean((0, 1))
    return loss, {"crd/gain": gain.mean(0), "crd/miss": torch.stack(misses).mean((0, 1))}


def matching_score(velocity: Tensor, target: Tensor, *, adaptive: bool) -> Tensor:
    """[T, B] -d / m: how well a velocity explains a sample; m = max(mean |v - u|, 1e-5) without gradient, or 1.

    Args:
        velocity: [T, B, C, H, W].
        target: [T, B, C, H, W] u.
        adaptive: divide by m.
    """
    error = velocity_mse(velocity, target)
    if not adaptive:
        return -error
    size = (at_least_float32(velocity.detach()) - at_least_float32(target)).abs().flatten(2).mean(2)
    return -error / size.clamp(min=1e-5)


def bounded_reward(advantage: Tensor, advantage_max: float) -> Tensor:
    """[B] R = clip(A / (2 A_max) + 1/2, 0, 1)."""
    return (advantage / (2 * advantage_max) + 0.5).clamp(0, 1)


class CRD:
    """The objective. Two more forwards a sample than matching: current and anchor, for the bars.

    Args:
        forward: noises micro-batches, with ``group_noise``, and runs the forwards. Published: a KL of ``beta`` 0.1 to a
            reference with ``reference_guidance_scale`` 4.5, while everything else has no guidance.
        crd_beta: beta, above 0; published: 1.
        crd_loss: "mse" or "bce".
        crd_adaptive: divide errors by their mean absolute value.
        crd_weight_temperature: T, above 0; None: plain means.
        crd_adaptive_pull: make the KL to the reference adaptive.
        advantage_max: A_max, bound on the advantages; published: 5.

    Raises:
        ValueError: ``train.group_noise`` is off, a number is not above 0, or the loss is unknown.
    """

    needs = Needs(whole_groups=True)

    def __init__(
        self,
        *,
        forward: ForwardProcess,
        crd_beta: float = 1.0,
        crd_loss: str = "mse",
        crd_adaptive: bool = True,
        crd_weight_temperature: float | None = None,
        crd_adaptive_pull: bool = True,
        advantage_max: float = 1.0,
    ) -> None:
        require_group_noise(forward, "crd")
        check_name("crd_loss", crd_loss, LOSSES)
        require_positive("crd_beta", crd_beta)
        require_positive("advantage_max", advantage_max)
        if crd_weight_temperature is not None:
            require_positive("crd_weight_temperature", crd_weight_temperature)
        self.forward, self.beta, self.kind, self.adaptive = forward, crd_beta, crd_loss, crd_adaptive
        self.temperature, self.advantage_max = crd_weight_temperature, advantage_max
        self.least_kl = min(LEAST_KL / forward.beta, 1.0) if crd_adaptive_pull and forward.beta > 0 else None

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
        """[B_j, 3 or 5, T] anchor's score, then (qbar, Rbar) of each direction, see ``awm.interfaces.PreparesStep``."""
        groups, scores = StepGroups(micro_batches, gather), []
        for batch in micro_batches:
            noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
            v = self.forward.frozen(policy, noised, anchor=True, current=True)
            pair = [matching_score(v[n], noised.target, adaptive=self.adaptive).T for n in ("anchor", "current")]
            scores.append(torch.stack(pair, 1))
        anchors, current = groups.collect(scores).unbind(1)
        reward = bounded_reward(groups.advantage, self.advantage_max)
        terms = [anchors]
        for share in self._shares(groups, reward):
            means = (groups.sum(share.unsqueeze(1) * values) for values in (current - anchors, reward.unsqueeze(1)))
            terms += [mean.expand_as(anchors) for mean in means]
        return groups.spread(torch.stack(terms, 1))

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        anchor, *bars = (term.T for term in require_terms(batch, "crd").unbind(1))
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        v = self.forward.velocities(policy, noised)
        reward = bounded_reward(batch.advantage, self.advantage_max)
        loss, metrics = crd_loss(
            matching_score(v.current, noised.target, adaptive=self.adaptive),
            anchor,
            reward,
            list(zip(bars[::2], bars[1::2], strict=True)),
            kind=self.kind,
            crd_beta=self.beta,
            advantage_max=self.advantage_max,
        )
        scale = None if self.least_kl is None else self.least_kl + (1 - self.least_kl) * reward
        return self.forward.output(loss, metrics, noised, v, reference_scale=scale)

    def _shares(self, groups: StepGroups, reward: Tensor) -> list[Tensor]:
        """[N] weight of each sample in the bars of its group, for one direction or for both."""
        if self.temperature is None:
            return [groups.softmax(torch.zeros_like(reward))]
        return [groups.softmax(sign * reward / self.temperature) for sign in (1.0, -1.0)]
