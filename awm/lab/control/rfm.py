"""The policy improvement step of reverse flow matching: a target velocity from Q and its gradient, no data needed.

The policy to reach is the Boltzmann policy p(a | s) ~ exp(Q(s, a) / T), with Q in units of its spread over the actions
of a state. At a noised action x_t the velocity of that policy is a posterior mean, estimated from N candidates: half
read back from fresh noise, half drawn uniformly from the box of actions (balance heuristic).

Outside the box the critic knows nothing, and the density exp(Q(clamp(a)) / T) would go on for ever. It gets Gaussian
tails there, log p(a) = Q(clamp(a)) / T - |a - clamp(a)|^2 / (2 w^2): a proper density without an edge, so that
Stein's identity holds with its true gradient. The tails are our addition. See Reverse Flow Matching, arXiv 2601.08136.
"""

from __future__ import annotations

import math
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.lab.control.critics import DoubleCritic
from awm.lab.control.policy import GenerativePolicy
from awm.lab.control.settings import ControlSettings
from awm.objectives.terms import velocity_mse
from awm.reverse_matching import (
    Candidates,
    Estimate,
    Estimator,
    FisherInformation,
    clamped_log_density,
    mixture_candidates,
    velocity_target,
)

SHORTEST_TIME = 1e-3
BROAD_SHARE = 0.25
"""Share of the noised actions that start from a uniform one, so that regions the policy left are still trained."""
LARGEST_CORRECTION = 20.0
"""Cap on the root mean square of the control variate; only "gradient", near t = 1, reaches it."""
SPREAD_RATE = 0.05
FIRST_FISHER = 3.0
"""1 / variance of a uniform action."""


class RfmImprovement:
    """RFM's step; remembers the spread of Q and the Fisher information of its target.

    Args:
        settings: of the run.
        device: where its running means live.
    """

    def __init__(self, settings: ControlSettings, *, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        assert settings.estimator in get_args(Estimator)
        self.estimator: Estimator = settings.estimator  # type: ignore[assignment]
        self.spread: float | None = None
        fisher = torch.tensor(FIRST_FISHER, device=device)
        self.fisher = FisherInformation(fisher, temperature=settings.initial_temperature)

    def temperature(self, progress: float) -> float:
        """T in units of the spread of Q: linear to its final value over the first third of the run."""
        first, last = self.settings.initial_temperature, self.settings.temperature
        return first + (last - first) * min(3 * progress, 1.0)

    def loss(
        self,
        policy: GenerativePolicy,
        critics: DoubleCritic,
        state: Tensor,
        generator: torch.Generator,
        *,
        progress: float,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch of states [B, O], and what to log.

        Args:
            policy: being trained.
            critics: define the target.
            state: [B, O].
            generator: of noised actions and candidates.
            progress: share of the run that is over.
        """
        x_t, t = self.noised_actions(policy, state, generator)
        estimate = self.estimate(policy, critics, state, x_t, t, generator, self.temperature(progress))
        if not estimate.valid.any():
            raise FloatingPointError(
                "no state of the batch has a usable target, Q may be infinite; lower the learning rates or the reward "
                "scale."
            )
        error = velocity_mse(policy.prediction(x_t, t, state)[None], estimate.target[None])[0]
        loss = error[estimate.valid].sum() / len(state)
        assert self.spread is not None
        return loss, {
            "ess": float(estimate.ess.mean()),
            "temperature": self.temperature(progress),
            "fisher": float(self.fisher.value),
            "capped_share": float(estimate.clipped.float().mean()),
            "spread_of_q": self.spread,
        }

    def noised_actions(
        self, policy: GenerativePolicy, state: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Where the velocity is trained: x_t [B, d] of the policy's own and of uniform actions, and t [B]."""
        action = policy.sample(state, 1, generator).squeeze(1)
        draw = partial(torch.rand, generator=generator, device=generator.device)
        uniform = 2 * draw(action.shape) - 1
        broad = draw(len(action), 1) < BROAD_SHARE
        t = policy.schedule.training_times(draw(len(action))).clamp(SHORTEST_TIME, 1 - SHORTEST_TIME)
        eps = torch.randn(action.shape, generator=generator, device=generator.device)
        return interpolate(torch.where(broad, uniform, action), eps, t), t

    def estimate(
        self,
        policy: GenerativePolicy,
        critics: DoubleCritic,
        state: Tensor,
        x_t: Tensor,
        t: Tensor,
        generator: torch.Generator,
        temperature: float,
    ) -> Estimate:
        """The target at x_t [B, d], t [B] for the Boltzmann policy of the critics at a temperature."""
        candidates = self.candidates(x_t, t, generator)
        log_density, gradient = self.log_density(critics, state, candidates.x_0, temperature)
        estimate = velocity_target(
            candidates.x_0,
            candidates.eps,
            gradient,
            candidates.log_weight + log_density,
            t,
            estimator=self.estimator,
            fisher=self.fisher.at(temperature).value,
            prediction="noise" if policy.schedule.predicts_noise else "velocity",
            cap=LARGEST_CORRECTION,
        )
        self.fisher = self.fisher.updated(estimate.weight, gradient, temperature=temperature, valid=estimate.valid)
        return estimate

    def candidates(self, x_t: Tensor, t: Tensor, generator: torch.Generator) -> Candidates:
        """N pairs for each x_t [B, d]: half from fresh noise, half from the box and its tails."""
        count, half = self.settings.num_candidates, self.settings.num_candidates // 2
        rows, dim = x_t.shape
        eps = torch.randn(rows, count - half, dim, generator=generator, device=generator.device)
        edge = 1 + self.settings.wall
        x_0 = edge * (2 * torch.rand(rows, half, dim, generator=generator, device=generator.device) - 1)
        return mixture_candidates(x_t, t, eps, x_0, lambda x: _uniform_log_density(x, edge))

    def log_density(
        self, critics: DoubleCritic, state: Tensor, action: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Unnormalised log p [B, N] of actions [B, N, d] for each state, and its gradient [B, N, d]."""
        wide = state.unsqueeze(1).expand(-1, action.shape[1], -1)
        value, gradient = clamped_log_density(lambda a: critics.score(wide, a), action, temperature=1.0)
        self._follow_spread(value[:, action.shape[1] - self.settings.num_candidates // 2 :])
        assert self.spread is not None
        outside = (action - action.clamp(-1, 1)) / self.settings.wall
        scale = 1 / (temperature * self.spread)
        return (
            value * scale - 0.5 * outside.square().sum(-1),
            gradient * scale - outside / self.settings.wall,
        )

    def _follow_spread(self, value: Tensor) -> None:
        """Running mean over updates of the std of Q [B, M] over the uniform actions of a state."""
        now = max(float(value.std(1).mean()), 1e-8)
        self.spread = now if self.spread is None else self.spread + SPREAD_RATE * (now - self.spread)


def _uniform_log_density(x: Tensor, edge: float) -> Tensor:
    """[B, N] log density of the uniform law on [-edge, edge]^d at x [B, N, d]; -inf outside."""
    inside = (x.abs() <= edge).all(-1)
    return torch.where(inside, -x.shape[-1] * math.log(2 * edge), -torch.inf)
