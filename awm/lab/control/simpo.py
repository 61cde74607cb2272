"""The policy improvement step of SiMPO: candidates of the old policy, weighed by Q, matched by the new one.

For every state s of a batch, N actions a_i ~ pi_old(s) plus a little noise, weights W_i = max(g((Q(s, a_i) - nu) /
lambda), ell) of mean 1, and the loss mean_i W_i ||prediction(x_t) - target||^2 with x_t = (1 - t) a_i + t eps.
See SiMPO, arXiv 2603.10250, eqs 7, 9 and 11; weights, temperature and loss are the image trainer's.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from awm.flow.path import interpolate, target_velocity
from awm.lab.control.critics import DoubleCritic
from awm.lab.control.policy import GenerativePolicy
from awm.lab.control.settings import ControlSettings
from awm.objectives.simpo import simpo_loss
from awm.temperature import solve_temperature
from awm.weightings import kl_from_uniform

SOLVE_INTERVAL = 50
"""Updates between two solutions for the temperature; in between it follows the spread of Q, which is exact for any
change of Q's scale and offset."""
SMALLEST_TEMPERATURE = 0.02
"""In units of the spread of Q."""


def reflect(x: Tensor) -> Tensor:
    """``x`` folded back into [-1, 1] at the edges, as often as needed: 1.3 becomes 0.7."""
    return 1 - ((x + 1).remainder(4) - 2).abs()


class SimpoImprovement:
    """SiMPO's step; remembers the old policy and the temperature.

    Args:
        settings: of the run.
        policy: the policy at the start; the old policy is a copy of it.
    """

    def __init__(self, settings: ControlSettings, policy: GenerativePolicy) -> None:
        self.settings = settings
        self.weighting = settings.weight_function()
        self.old_policy = copy.deepcopy(policy).requires_grad_(False)
        self.relative_temperature = 1.0
        self.num_calls = 0

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
            critics: score the candidates.
            state: [B, O].
            generator: of candidates, times and noise.
            progress: share of the run that is over; not needed here.
        """
        if self.num_calls % self.settings.refresh_interval == 0:
            self.old_policy.load_state_dict(policy.state_dict())
        candidate = self.candidates(state, generator)
        with torch.no_grad():
            score = critics.score(state.unsqueeze(1).expand(-1, candidate.shape[1], -1), candidate)
        weight, metrics = self.weights(score)
        self.num_calls += 1
        loss, case_two = self._matching_loss(policy, state, candidate, weight, generator)
        return loss, metrics | {"weight/case_two": case_two}

    def candidates(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """[B, N, d] actions of the old policy with noise, in the box; without it all could become the same.

        The noise is reflected at the edges. Clamped, actions beyond an edge would become equal, and among equal
        scores no temperature reaches the target KL.
        """
        drawn = self.old_policy.sample(state, self.settings.num_candidates, generator)
        noise = torch.randn(drawn.shape, generator=generator, device=generator.device)
        return reflect(drawn + self.settings.candidate_noise * noise)

    def weights(self, score: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Weights [B, N] of scores [B, N] at the temperature that gives the target KL, and what to log."""
        spread = float(score.std(1).mean().clamp(min=1e-8))
        if self.num_calls % SOLVE_INTERVAL == 0:
            solved = solve_temperature(
                score / spread, self.weighting, kl=self.settings.target_kl, minimum=SMALLEST_TEMPERATURE
            )
            self.relative_temperature = solved.value
        weight = self.weighting(score, self.relative_temperature * spread)
        return weight, {
            "kl": float(kl_from_uniform(weight).mean()),
            "temperature": self.relative_temperature * spread,
            "largest_weight": float(weight.amax(1).mean()),
            "negative_share": float((weight < 0).float().mean()),
            "spread_of_q": spread,
        }

    def _matching_loss(
        self, policy: GenerativePolicy, state: Tensor, candidate: Tensor, weight: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, float]:
        """The loss, and the share of all candidates that repel (the paper's case II)."""
        # A candidate without weight adds nothing to loss or gradient; with Linear and Square that is most of them.
        # Only the pull speaks about all of them.
        matters = (weight != 0) | (self.settings.pull > 0)
        row, column = matters.nonzero(as_tuple=True)
        x_0, state, weight = candidate[row, column], state[row], weight[row, column]
        t = policy.schedule.training_times(torch.rand(len(x_0), generator=generator, device=generator.device))
        eps = torch.randn(x_0.shape, generator=generator, device=generator.device)
        x_t = interpolate(x_0, eps, t)
        target = policy.as_prediction(x_t, target_velocity(x_0, eps), t)
        old = None
        if self.settings.pull > 0:
            with torch.no_grad():
                old = self.old_policy.prediction(x_t, t, state)
        loss, metrics = simpo_loss(
            policy.prediction(x_t, t, state)[None],
            target[None],
            t[None],
            weight,
            velocity_old=None if old is None else old[None],
            pull=self.settings.pull,
        )
        count = candidate.shape[:2].numel()
        return loss.sum() / count, float(metrics["weight/case_two"].sum()) / count
