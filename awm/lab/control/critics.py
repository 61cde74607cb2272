"""Two critics Q_1, Q_2 of state and action, with slow target copies (TD3, https://arxiv.org/abs/1802.09477)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from awm.lab.networks import Activation, SeedMLP


class DoubleCritic(nn.Module):
    """Two independent perceptrons Q_k(s, a), evaluated together.

    Args:
        observation_dim: O.
        action_dim: d.
        generators: two, the parameters of each critic are drawn from its own.
        width: hidden features.
        depth: hidden layers.
        activation: between layers.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        *,
        width: int,
        depth: int,
        activation: Activation = nn.functional.mish,
    ) -> None:
        super().__init__()
        sizes = (observation_dim + action_dim, *[width] * depth, 1)
        self.net = SeedMLP(sizes, generators, activation=activation)
        self.num_critics = len(generators)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Q of every critic: state [..., O], action [..., d] -> [2, ...]."""
        inputs = torch.cat([state, action], dim=-1)
        flat = inputs.reshape(1, -1, inputs.shape[-1]).expand(self.num_critics, -1, -1)
        values: Tensor = self.net(flat)
        return values.reshape(self.num_critics, *inputs.shape[:-1])

    def score(self, state: Tensor, action: Tensor) -> Tensor:
        """What the policy is improved by, the mean of the two: [...]. The targets use the smaller one."""
        values: Tensor = self(state, action)
        return values.mean(0)


def target_copy(critics: DoubleCritic) -> DoubleCritic:
    """A copy that gets no gradient."""
    return copy.deepcopy(critics).requires_grad_(False)


def td_target(reward: Tensor, terminated: Tensor, next_values: Tensor, *, discount: float) -> Tensor:
    """Clipped double-Q target y = r + gamma (1 - terminated) min_k Q_k(s', a').

    Args:
        reward: [B].
        terminated: [B], 1 where the episode has no future; a time limit is no such end.
        next_values: [2, B] of the target critics at the next state and an action of the policy there.
        discount: gamma.

    Returns:
        [B].
    """
    return reward + discount * (1 - terminated) * next_values.amin(0)


@torch.no_grad()
def move_toward(target: nn.Module, source: nn.Module, rate: float) -> None:
    """In place, target <- (1 - rate) target + rate source."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
