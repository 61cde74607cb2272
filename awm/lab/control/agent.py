"""Policy, critics and their optimizers, and one update of all of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from awm.flow.rng import sample_generator
from awm.lab.control.collector import Transitions
from awm.lab.control.critics import DoubleCritic, move_toward, target_copy, td_target
from awm.lab.control.policy import GenerativePolicy
from awm.lab.control.rfm import RfmImprovement
from awm.lab.control.schedule import diffusion_schedule, flow_schedule
from awm.lab.control.settings import ControlSettings
from awm.lab.control.simpo import SimpoImprovement

MAX_GRADIENT_NORM = 1.0


class Improvement(Protocol):
    """What an algorithm has to say: the loss of the policy on a batch of states."""

    def loss(
        self,
        policy: GenerativePolicy,
        critics: DoubleCritic,
        state: Tensor,
        generator: torch.Generator,
        *,
        progress: float,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and numbers to log; see ``SimpoImprovement`` and ``RfmImprovement``."""


class Agent:
    """Learns from transitions, acts on observations.

    Args:
        settings: of the run.
        observation_dim: O.
        action_dim: d.
        seed: of parameters and all later draws.
        device: where networks live; observations and actions are on the CPU, batches for ``update`` are not.
    """

    def __init__(
        self,
        settings: ControlSettings,
        observation_dim: int,
        action_dim: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        def stream(name: str, index: int = 0, *, place: torch.device | str = "cpu") -> torch.Generator:
            return sample_generator(seed, f"control/{name}", 0, index, place)

        self.settings = settings
        activation = nn.functional.mish if settings.activation == "mish" else nn.functional.silu
        make_schedule = flow_schedule if settings.path == "flow" else diffusion_schedule
        # The tails of RFM's target reach beyond the box; see awm.lab.control.rfm.
        bound = 1 + 2 * settings.wall if settings.algorithm == "rfm" else 1.0
        self.policy = GenerativePolicy(
            observation_dim,
            action_dim,
            stream("policy"),
            schedule=make_schedule(settings.sampling_steps),
            width=settings.width,
            depth=settings.depth,
            activation=activation,
            data_bound=bound,
        ).to(device)
        generators = [stream("critic", k) for k in range(2)]
        self.critics = DoubleCritic(
            observation_dim,
            action_dim,
            generators,
            width=settings.width,
            depth=settings.depth,
            activation=activation,
        ).to(device)
        self.target = target_copy(self.critics)
        self.improvement: Improvement | None = None
        if settings.algorithm == "simpo":
            self.improvement = SimpoImprovement(settings, self.policy)
        elif settings.algorithm == "rfm":
            self.improvement = RfmImprovement(settings, device=device)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=settings.critic_learning_rate)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=settings.policy_learning_rate)
        self.policy_schedule = LinearLR(
            self.policy_optimizer,
            start_factor=1.0,
            end_factor=settings.final_policy_learning_rate / settings.policy_learning_rate,
            total_iters=max(settings.num_updates, 1),
        )
        self.num_updates = 0
        self.device = torch.device(device)
        self.acting, self.learning = (stream(name, place=device) for name in ("acting", "learning"))

    def explore(self, observation: Tensor) -> Tensor:
        """Actions [E, d] while collecting: a draw of the policy with noise, in the box."""
        action = self.policy.sample(observation.to(self.device), 1, self.acting).squeeze(1)
        noise = torch.randn(action.shape, generator=self.acting, device=self.device)
        return (action + self.settings.exploration_noise * noise).clamp(-1, 1).cpu()

    def random_actions(self, count: int) -> Tensor:
        """[count, d] uniform actions, before there is anything to act on."""
        return 2 * torch.rand(count, self.policy.action_dim, generator=self.acting, device=self.device).cpu() - 1

    @torch.no_grad()
    def best_action(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Actions [E, d] when evaluated: of several draws for each state the one with the largest Q."""
        state = observation.to(self.device)
        action = self.policy.sample(state, self.settings.evaluation_candidates, generator)
        score = self.critics.score(state.unsqueeze(1).expand(-1, action.shape[1], -1), action)
        return action[torch.arange(len(action), device=self.device), score.argmax(1)].cpu()

    def update(self, batch: Transitions) -> dict[str, float]:
        """One gradient step of the critics, then one of the policy if it is trained; returns what to log."""
        metrics = {"critic_loss": self._update_critics(batch)}
        if self.improvement is not None:
            metrics |= self._update_policy(self.improvement, batch.observation)
        self.num_updates += 1
        return metrics

    def _update_policy(self, improvement: Improvement, state: Tensor) -> dict[str, float]:
        progress = self.num_updates / max(self.settings.num_updates, 1)
        loss, details = improvement.loss(self.policy, self.critics, state, self.learning, progress=progress)
        _step(self.policy_optimizer, loss)
        self.policy_schedule.step()
        return {"policy_loss": float(loss.detach())} | details

    def _update_critics(self, batch: Transitions) -> float:
        action = self.policy.sample(batch.next_observation, 1, self.learning).squeeze(1)
        with torch.no_grad():
            target = td_target(
                self.settings.reward_scale * batch.reward,
                batch.terminated,
                self.target(batch.next_observation, action),
                discount=self.settings.discount,
            )
        loss = (self.critics(batch.observation, batch.action) - target).square().mean()
        _step(self.critic_optimizer, loss, max_norm=None)
        move_toward(self.target, self.critics, self.settings.target_rate)
        return float(loss.detach())


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, *, max_norm: float | None = MAX_GRADIENT_NORM) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}; lower the learning rates or the reward scale.")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
    optimizer.step()
