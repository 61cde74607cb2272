"""Reverse Flow Matching on images: the policy moves toward p_old exp(r / T), one prompt's images at a time.

Form "weighted" matches the velocity of the paths from the images, weighted by the reward:

    L = E_{i, t, eps} W_i phi(mean (v(x_t, t) - y)^2),   W = K softmax(A / T),   A = (r - group mean) / global std
    y = sum_j w_j (eps_j - x_0j) - Lambda(t) u

with w of ``rfm_candidates`` and u, of mean zero at x_t, of ``rfm_gradient``. Without u (estimator "noise") only rewards
are needed and, as w is one-hot at image size, it is flow matching weighted by SiMPO's exponential weights. It is
centred as SiMPO's is, by ``simpo_loss`` with a baseline. Form "anchored" takes the rollout policy as it is and adds
what rewards change in a tempered posterior:

    y = v_old(x_t, t) - (1 / t) sum_j (w_j - w0_j) x_0j,   w0 = softmax(l / k),   w = softmax(A / T + l / k)

which is biased (tempering averages images), but exactly v_old where a prompt's rewards are all equal. See Reverse Flow
Matching, arXiv 2601.08136 (abstract read); what it becomes on images is our derivation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from awm.flow.rng import SampleNoise
from awm.interfaces import Policy
from awm.objectives.awm import OLD_POLICIES
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.group_weights import SMALL, GroupWeighing, reward_unit
from awm.objectives.noising import NoisedBatch, noised_with
from awm.objectives.rfm_gradient import (
    correlated_noise,
    data_variance,
    fisher_information,
    policy_score,
    reward_share,
    stein_correction,
)
from awm.objectives.rfm_targets import Matching, anchored_target, weighted_target
from awm.objectives.simpo import simpo_loss
from awm.objectives.terms import WEIGHTINGS, check_name
from awm.reverse_matching import image_target_gaussian
from awm.types import Experience, GroupWeights, LossOutput, Needs, TargetGradient
from awm.weightings import Weighting

ESTIMATORS = ("noise", "gradient", "combined")
FORMS = ("weighted", "anchored")
SCORES = ("policy", "gaussian")
PULL = 1.0  # alpha: less would leave images of weight zero without a minimum


class RFM:
    """The objective.

    Of Lambda u, exact is: the mean (with a score that is the policy's), for any Lambda that only depends on t; not
    exact: the gradient of the reward, taken at x_0 for x_n and shrunk by the average share of it that is left there
    (``reward_share``), which overestimates it in the narrow directions of the data. Only the generator's
    own gradient is used, not those of the prompt's other images: the mean is the same, and at image size nothing else
    has weight; where w spreads (t > .99) the variance is more than it could be.

    Args:
        forward: noise, forwards and KL terms.
        batch_size: samples of a micro-batch, and of a forward for the score.
        weighting: phi; Uniform is the theory, ghuber weighs rows by their error, too.
        ghuber_power: p of ghuber.
        off_policy: the anchor sampled.
        old_policy: v_old after the first update of an epoch: of the "rollout", at one more forward, or "current".
        rfm_estimator: noise, gradient or combined (least variance); the latter two follow the reward's gradient.
        rfm_temperature: T, in standard deviations of the epoch's rewards.
        rfm_score: where the policy's score comes from, for the gradients' sake. "policy": from its velocity near the
            data, see ``rfm_gradient``. "gaussian": from nowhere; ``image_target_gaussian`` is exact for Gaussian
            posteriors only.
        rfm_form: weighted or anchored.
        rfm_centred: of "weighted", see ``simpo_loss``.
        rfm_gradient_clip: largest root mean square of Lambda u per dimension, 0 for none; cutting is a bias.
        rfm_score_time: t_n of "policy".
    """

    def __init__(
        self,
        *,
        forward: ForwardProcess,
        batch_size: int = 1,
        weighting: str = "Uniform",
        ghuber_power: float = 0.25,
        off_policy: bool = False,
        old_policy: str = "rollout",
        rfm_estimator: str = "noise",
        rfm_temperature: float = 1.0,
        rfm_score: str = "policy",
        rfm_form: str = "weighted",
        rfm_centred: bool = True,
        rfm_gradient_clip: float = 3.0,
        rfm_score_time: float = 0.05,
    ) -> None:
        for kind, value, known in (
            ("weighting", weighting, WEIGHTINGS),
            ("old_policy", old_policy, OLD_POLICIES),
            ("rfm_estimator", rfm_estimator, ESTIMATORS),
            ("rfm_score", rfm_score, SCORES),
            ("rfm_form", rfm_form, FORMS),
        ):
            check_name(kind, value, known)
        if rfm_form == "anchored" and rfm_estimator != "noise":
            raise ValueError(
                f"rfm_form='anchored' has no use for gradients, but rfm_estimator={rfm_estimator!r}; set "
                f"rfm_estimator='noise', or rfm_form='weighted'."
            )
        gradients = rfm_estimator != "noise"
        self.needs = Needs(reward_gradient=gradients, group_mates=True, rollout_weights=True)
        self.estimator, self.temperature, self.form = rfm_estimator, rfm_temperature, rfm_form
        self.weigh_groups = GroupWeighing(Weighting("exp"), temperature=rfm_temperature)
        self.follows_score = gradients and rfm_score == "policy"
        self.score_time, self.cap = rfm_score_time, rfm_gradient_clip
        self.forward, self.batch_size, self.off_policy = forward, batch_size, off_policy
        self.centred = rfm_centred and rfm_form == "weighted"
        self.needs_old = self.centred or rfm_form == "anchored" or (gradients and rfm_score == "gaussian")
        self.corrects_old = self.needs_old and old_policy == "rollout" and not off_policy
        self.pull = PULL if self.centred and (self.corrects_old or off_policy) else 0.0
        self.loss = partial(simpo_loss, weighting=weighting, ghuber_power=ghuber_power, pull=self.pull)

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """W = K softmax(r / (std T)) in each prompt, mean 1; its slope d log W / d r is 0 where all rewards are equal.

        See ``awm.interfaces.WeighsGroups`` for the arguments.
        """
        weights = self.weigh_groups(reward, group, valid)
        unit = reward_unit(reward, valid)
        return replace(weights, slope=1 / (unit * self.temperature) if unit > SMALL else 0.0)

    def prepare(
        self, policy: Policy, experience: Experience, *, seed: int, epoch: int, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Experience, dict[str, float]]:
        """Add the gradient of the target's log-density, if the estimator follows it; ``awm.interfaces.PreparesEpoch``.

        Score and Fisher information are those of the weights that sampled, and stay for all the epoch's updates.
        """
        if not self.needs.reward_gradient:
            return experience, {}
        value, weight, mates = experience.weight_gradient, experience.weight, experience.mates
        assert value is not None and weight is not None and mates is not None
        rms = fisher_information(value, torch.ones_like(weight), experience.valid, gather) ** 0.5
        noise = None
        if self.follows_score:
            keys = experience.group if self.forward.group_noise else experience.sample_index
            score, noise = policy_score(
                policy,
                experience,
                SampleNoise(seed, "train/score", epoch, keys, experience.x_0.device),
                time=self.score_time,
                weights="anchor" if self.off_policy else "current",
                guidance_scale=self.forward.guidance_scale,
                batch_size=self.batch_size,
            )
            policy_fisher = fisher_information(score, torch.ones_like(weight), experience.valid, gather)
            value = score + value * reward_share(policy_fisher, self.score_time)
            fisher = fisher_information(value, weight, experience.valid, gather)
        else:
            score, fisher = torch.zeros_like(value), 1 / data_variance(experience, mates, gather)
        gradient = TargetGradient(value, score, noise, fisher)
        return replace(experience, target_gradient=gradient), {"rfm/fisher": fisher, "rfm/reward_gradient": rms}

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        fresh = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        noised = self._from_score_level(batch, fresh)
        v = self.forward.velocities(
            policy, noised, anchor=self.needs_old and self.off_policy, rollout=self.corrects_old and not on_policy
        )
        others = v.anchor if self.off_policy else v.rollout
        old = v.current.detach() if others is None else others
        matching = self._match(batch, noised, fresh, old)
        loss, metrics = self.loss(
            v.current,
            matching.target,
            noised.t,
            self._weight(batch),
            baseline=matching.baseline if self.centred else None,
            velocity_old=old,
            anchoring=self.forward.anchoring(noised.t, pull=self.pull),
        )
        seen = {"rfm/ess": matching.ess.mean(0), "rfm/clipped": matching.clipped.to(noised.t).mean(0)}
        return self.forward.output(loss, metrics | seen, noised, v)

    def _weight(self, batch: Experience) -> Tensor:
        assert batch.weight is not None
        return batch.weight if self.form == "weighted" else torch.ones_like(batch.weight)

    def _from_score_level(self, batch: Experience, noised: NoisedBatch) -> NoisedBatch:
        """The same x_0, times and law, by way of the x_n at which the score is known, if it is used."""
        if not self.follows_score:
            return noised
        gradient = _gradient_of(batch)
        assert gradient.noise is not None
        eps = correlated_noise(noised.target + batch.x_0, gradient.noise, noised.t, self.score_time)
        return replace(noised_with(batch, eps, noised.t), kl_times=noised.kl_times)

    def _match(self, batch: Experience, noised: NoisedBatch, fresh: NoisedBatch, velocity_old: Tensor) -> Matching:
        if self.form == "anchored":
            return anchored_target(batch, noised, velocity_old)
        if self.estimator == "noise":
            return weighted_target(batch, noised)
        gradient, combined = _gradient_of(batch), self.estimator == "combined"

        def policys_score(_: Tensor, value: Tensor) -> Tensor:
            return stein_correction(
                fresh.target + batch.x_0,
                replace(gradient, value=value),
                noised.t,
                time=self.score_time,
                combined=combined,
            )

        def gaussian(velocity: Tensor, value: Tensor) -> Tensor:
            std, eta = gradient.fisher**-0.5, None if combined else 1.0
            return velocity - image_target_gaussian(velocity, noised.t, velocity_old, value, 1.0, data_std=std, eta=eta)

        correction = policys_score if self.follows_score else gaussian
        return weighted_target(
            batch,
            noised,
            lambda velocity: correction(velocity, gradient.value),
            lambda velocity: correction(velocity, gradient.policy),
            self.cap,
        )


def _gradient_of(batch: Experience) -> TargetGradient:
    assert batch.target_gradient is not None, "prepare() comes before the epoch's first update"
    return batch.target_gradient
