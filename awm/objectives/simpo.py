"""Signed Measure Policy Optimization: flow matching to one's own samples, weighted by what they are worth.

    L = E_{t, eps} E_i[ c_i phi(||v(x_t, t, c) - (eps - x_0)||^2) ] + alpha ||v - v_old||^2
        + beta KL_ref + ema_beta KL_anchor

with the weights W_i of ``awm.weightings``, which may be negative. At c = W and alpha = 0 it is SiMPO's eq 7, at
phi(m) = m with the minimiser v* = E[W u | x_t] / E[W | x_t] (eq 8). The centred form c = W - 1 with alpha = 1 has
the same minimiser, since v_old = E[u | x_t], and at v_old the same expected gradient with less variance: what all
samples have in common does not enter it. See arXiv 2603.10250; centring and pull are ours.

Case I, E[W | x_t] > 0, has a minimum. In case II the loss repels from v* without bound: a row (sample, time) whose
total coefficient is negative is therefore trained on an error clipped elementwise, as its authors' code does.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.awm import OLD_POLICIES
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.group_weights import GroupWeighing
from awm.objectives.terms import (
    WEIGHTINGS,
    check_name,
    error_bound,
    kl_term,
    log_likelihood,
    matching_weight,
    velocity_mse,
)
from awm.types import Experience, GroupWeights, LossOutput, Needs
from awm.weightings import Weighting


def simpo_loss(
    velocity: Tensor,
    target: Tensor,
    t: Tensor,
    weight: Tensor,
    *,
    baseline: Tensor | None = None,
    velocity_old: Tensor | None = None,
    weighting: str = "Uniform",
    ghuber_power: float = 0.25,
    pull: float = 0.0,
    error_clip: float = 5.0,
    anchoring: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B samples, each averaged over its T times: c phi(m(y)) + alpha ||v - v_old||^2, without the KL terms.

    With a baseline y0 it is W phi(m(y)) - phi(m(y0)) + ..., the centred form for targets that depend on rewards
    themselves (``awm.objectives.rfm``), for which y0 is the target of equal rewards, E[y0 | x_t] = v_old.

    Args:
        velocity: [T, B, ...] of the policy being trained; the only argument that gets a gradient.
        target: [T, B, ...] y, the path's velocity eps - x_0.
        t: [T, B] times.
        weight: [B] c, W or W - 1; W beside a baseline.
        baseline: [T, B, ...] y0; None leaves out its term.
        velocity_old: [T, B, ...] of the policy that sampled; None if it is the one being trained, where the pull
            has neither value nor gradient.
        weighting: of phi, the negative ``log_likelihood`` of that name; the theory has Uniform, phi(m) = m.
        ghuber_power: p of weighting "ghuber".
        pull: alpha.
        error_clip: bound on each feature's (v - u)^2 in rows that repel, without gradient beyond it.
        anchoring: [T, B] coefficient of all squared distances to other policies, alpha and those of the KL terms, by
            which it is known which rows repel; None: alpha alone.

    Returns:
        [B] loss, and metrics of [B] values.
    """
    likelihood = partial(log_likelihood, weighting=weighting, ghuber_power=ghuber_power)
    slope_at = partial(matching_weight, velocity, t=t, weighting=weighting, ghuber_power=ghuber_power)
    slope = weight * slope_at(target) - (0.0 if baseline is None else slope_at(baseline))
    total = slope + (pull if anchoring is None else anchoring)
    largest = error_bound(total, error_clip)
    mse = velocity_mse(velocity, target, largest=largest)
    loss = (-weight * likelihood(mse, t)).mean(0)
    if baseline is not None:
        loss = loss + likelihood(velocity_mse(velocity, baseline, largest=largest), t).mean(0)
    metrics = {"loss/policy": loss, "velocity_mse": mse.mean(0), "weight/case_two": (total < 0).to(loss.dtype).mean(0)}
    if velocity_old is not None and pull > 0:
        distance = kl_term(velocity, velocity_old, t, weight="Uniform")
        loss = loss + pull * distance
        metrics["loss/pull"] = distance
    return loss, metrics


class SiMPO:
    """The objective: weighs an epoch's images, and trains on them.

    Args:
        forward: noise, forwards and KL terms; with ``group_noise`` as for ``AWM``.
        simpo_weighting: "exp", "linear", "square", "power" or "wd1".
        simpo_floor: smallest weight, at most 0; below 0, bad images repel.
        simpo_power: p of "power".
        simpo_temperature: fixed temperature, in units of the std of rewards; None: solved for a target, and 1 for
            wd1, which can have none.
        simpo_target_kl: KL(p || uniform) that the weights of a prompt's images are to have on average, nats; None:
            1.5 unless another of the three is given.
        simpo_target_entropy: their entropy instead.
        simpo_min_temperature: smallest solved temperature.
        simpo_centred: c = W - 1 instead of W; wd1's weights have mean zero and stay.
        simpo_pull: alpha. Without effect if ``old_policy`` is "current".
        simpo_error_clip: see ``simpo_loss``.
        weighting: Uniform, t, t**2, huber or ghuber.
        ghuber_power: p of ghuber.
        off_policy: the anchor sampled, so the pull is to it.
        old_policy: "rollout": the pull is to the weights that sampled, for one more forward after the first update
            of an epoch. "current": no pull.
    """

    needs = Needs(rollout_weights=True)

    def __init__(
        self,
        *,
        forward: ForwardProcess,
        simpo_weighting: str = "exp",
        simpo_floor: float = 0.0,
        simpo_power: float = 2.0,
        simpo_temperature: float | None = None,
        simpo_target_kl: float | None = None,
        simpo_target_entropy: float | None = None,
        simpo_min_temperature: float = 0.05,
        simpo_centred: bool = True,
        simpo_pull: float = 1.0,
        simpo_error_clip: float = 5.0,
        weighting: str = "Uniform",
        ghuber_power: float = 0.25,
        off_policy: bool = False,
        old_policy: str = "rollout",
    ) -> None:
        check_name("weighting", weighting, WEIGHTINGS)
        check_name("old_policy", old_policy, OLD_POLICIES)
        self.weigh_groups = GroupWeighing(
            Weighting(simpo_weighting, floor=simpo_floor, power=simpo_power),
            temperature=simpo_temperature,
            target_kl=simpo_target_kl,
            target_entropy=simpo_target_entropy,
            min_temperature=simpo_min_temperature,
        )
        self.centre = 1.0 if simpo_centred and simpo_weighting != "wd1" else 0.0
        self.pull = 0.0 if old_policy == "current" and not off_policy else simpo_pull
        self.forward, self.off_policy = forward, off_policy
        self.loss = partial(
            simpo_loss, weighting=weighting, ghuber_power=ghuber_power, pull=self.pull, error_clip=simpo_error_clip
        )

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """Weights of an epoch's images, see ``awm.interfaces.WeighsGroups``."""
        return self.weigh_groups(reward, group, valid)

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        if batch.weight is None:
            raise ValueError("SiMPO's samples have no weight; give Experience.weight what weigh() returned for them.")
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        pulled = self.pull > 0
        v = self.forward.velocities(
            policy, noised, anchor=pulled and self.off_policy, rollout=pulled and not (self.off_policy or on_policy)
        )
        loss, metrics = self.loss(
            v.current,
            noised.target,
            noised.t,
            batch.weight - self.centre,
            velocity_old=v.anchor if self.off_policy else v.rollout,
            anchoring=self.forward.anchoring(noised.t, pull=self.pull),
        )
        return self.forward.output(loss, metrics, noised, v)
