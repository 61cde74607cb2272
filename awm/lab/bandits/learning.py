"""The bandit loop: sample groups of actions, weigh them, match the weighted actions, measure the regret."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.flow.path import interpolate, target_velocity
from awm.flow.rng import SampleNoise
from awm.lab.bandits.landscape import LIMIT, Landscape
from awm.lab.bandits.policy import BanditPolicy, rollout
from awm.lab.bandits.posterior import local_weight
from awm.lab.networks import clip_gradients
from awm.objectives.simpo import simpo_loss
from awm.temperature import bisect_temperature
from awm.weightings import Weighting, kl_from_uniform

FINAL = 5
"""The final regret is the mean over the last so many iterations."""
EVALUATION, FINAL_EVALUATION = 128, 512
"""Actions a regret is measured with, while learning and in the last iterations."""
MINIMUM_TEMPERATURE = 0.01
MINIMUM_TIME = 1e-3
ROUNDING = 1e-6
"""Case II begins below minus this, so that weights that are exactly 0 do not count."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One bandit problem and how it is learned. The paper gives none of these numbers.

    Attributes:
        landscape: the rewards.
        mean: of the initial policy, a Gaussian.
        std: of the initial policy.
        updates: optimizer steps per iteration, each on all actions with fresh times and noise.
        iterations: rollouts.
        num_groups: groups that share a temperature.
        group_size: actions of a group, N.
        learning_rate: Adam's.
        max_norm: bound on a seed's gradient norm.
        bound: on the velocity, see ``BanditPolicy``.
        action_noise: std of noise added to the actions before they are scored.
        anchor: weight of the pull to the policy that sampled.
        error_clip: bound on the squared error of actions that repel, see ``simpo_loss``.
    """

    landscape: Landscape
    mean: float
    std: float
    updates: int
    iterations: int
    num_groups: int = 1
    group_size: int = 32
    learning_rate: float = 1e-3
    max_norm: float = 1.0
    bound: float | None = 4.0
    action_noise: float = 0.0
    anchor: float = 0.0
    error_clip: float = 5.0


@dataclass(frozen=True, slots=True)
class Arm:
    """A weighting with a fixed temperature, or one solved per seed and iteration for a KL from uniform weights.

    Attributes:
        name: for tables.
        weighting: scores to weights.
        temperature: lambda, in units of the reward; None to solve for ``kl``.
        kl: target, nats.
    """

    name: str
    weighting: Weighting
    temperature: float | None = None
    kl: float = 1.0

    def weigh(self, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [S, G, N] of rewards [S, G, N] and the temperature [S, 1, 1] of each seed."""
        if self.temperature is None:
            temperature = bisect_temperature(reward, self.weighting, kl=self.kl, minimum=MINIMUM_TEMPERATURE)
        else:
            temperature = torch.full((len(reward), 1, 1), self.temperature, dtype=torch.float64)
        return self.weighting(reward, temperature), temperature


@dataclass(frozen=True, slots=True)
class History:
    """What S runs did; rows are iterations.

    Attributes:
        regret: [iterations + 1, S] best reward minus mean reward, before the first and after each iteration; NaN
            once a run has diverged.
        kl: [iterations, S] KL of the weights from uniform ones, nats.
        temperature: [iterations, S].
        case_two: [iterations, S] share of noised actions with E[W | x_t] + anchor < 0, see ``local_weight``.
    """

    regret: Tensor
    kl: Tensor
    temperature: Tensor
    case_two: Tensor

    @property
    def final_regret(self) -> Tensor:
        """[S] mean over the last iterations."""
        return self.regret[-FINAL:].mean(0)


def learn(initial: BanditPolicy, loop: Loop, arm: Arm, seeds: Sequence[int]) -> History:
    """Run S seeds from copies of their initial policies; all arms see the same random numbers.

    Args:
        initial: policies of the seeds, not changed.
        loop: the problem.
        arm: the weighting.
        seeds: S numbers that key the draws.
    """
    policy = copy.deepcopy(initial)
    optimizer = torch.optim.Adam(policy.parameters(), lr=loop.learning_rate)
    noise = SampleNoise(0, "bandit/learn", 0, seeds)
    evaluation = SampleNoise(0, "bandit/evaluate", 0, seeds)
    regret = [_regret(policy, loop, evaluation.randn((EVALUATION,)))]
    measured = []
    for iteration in range(1, loop.iterations + 1):
        action = _act(policy, loop, noise)
        weight, temperature = arm.weigh(loop.landscape(action))
        case_two = _match(policy, optimizer, loop, action, weight, noise)
        num_samples = FINAL_EVALUATION if iteration > loop.iterations - FINAL else EVALUATION
        regret.append(_regret(policy, loop, evaluation.randn((num_samples,))))
        measured.append((kl_from_uniform(weight).mean(-1), temperature.flatten(), case_two))
    kl, temperatures, case_twos = (torch.stack(column) for column in zip(*measured, strict=True))
    return History(torch.stack(regret), kl, temperatures, case_twos)


def _act(policy: BanditPolicy, loop: Loop, noise: SampleNoise) -> Tensor:
    """Groups of actions [S, G, N]; a run that has diverged does nothing, at 0."""
    count = loop.num_groups * loop.group_size
    action = rollout(policy, noise.randn((count,)))
    if loop.action_noise:
        action = action + loop.action_noise * noise.randn((count,))
    finite = action.isfinite().all(1, keepdim=True)
    action = torch.where(finite, action, 0.0).clamp(-LIMIT, LIMIT)
    return action.reshape(-1, loop.num_groups, loop.group_size)


def _match(
    policy: BanditPolicy,
    optimizer: torch.optim.Optimizer,
    loop: Loop,
    action: Tensor,
    weight: Tensor,
    noise: SampleNoise,
) -> Tensor:
    """Take the iteration's optimizer steps; returns the share [S] of Case II at the first draw of (t, eps)."""
    x_0, w = action.flatten(1), weight.flatten(1)
    draws = (loop.updates, x_0.shape[1])
    times = noise.rand(draws).clamp(min=MINIMUM_TIME).unbind(1)
    noises = noise.randn(draws).unbind(1)
    old = copy.deepcopy(policy) if loop.anchor else None
    for t, eps in zip(times, noises, strict=True):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(_loss(policy, old, loop, x_0, eps, t, w))
        clip_gradients(policy.parameters(), loop.max_norm)
        optimizer.step()
    x_t = interpolate(x_0, noises[0], times[0])
    # The anchor adds its weight to the coefficient of the loss at every x_t.
    return (local_weight(x_t, times[0], x_0, w) + loop.anchor < -ROUNDING).double().mean(1)


@torch.no_grad()
def _regret(policy: BanditPolicy, loop: Loop, x_1: Tensor) -> Tensor:
    """Regret [S] of the actions made from noise x_1 [S, n]."""
    action = rollout(policy, x_1).clamp(-LIMIT, LIMIT)
    return loop.landscape.best - loop.landscape(action).mean(1)


def _loss(
    policy: BanditPolicy, old: BanditPolicy | None, loop: Loop, x_0: Tensor, eps: Tensor, t: Tensor, weight: Tensor
) -> Tensor:
    """Summed over seeds, so that each seed has its own gradient; averaged over a seed's actions."""
    x_t = interpolate(x_0, eps, t)
    with torch.no_grad():
        velocity_old = None if old is None else _pack(old(x_t, t))
    loss, _ = simpo_loss(
        _pack(policy(x_t, t)),
        _pack(target_velocity(x_0, eps)),
        t.reshape(1, -1),
        weight.flatten(),
        velocity_old=velocity_old,
        pull=loop.anchor,
        error_clip=loop.error_clip,
    )
    return loss.reshape(x_0.shape).mean(1).sum()


def _pack(value: Tensor) -> Tensor:
    """To the objective all actions [S, B] are one batch of samples with one time and one feature, [1, S B, 1]."""
    return value.reshape(1, -1, 1)
