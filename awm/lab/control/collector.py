"""Turns steps of a vector environment into transitions, which is where episodes' ends go wrong most easily.

Two things matter. A terminated episode has no future, a truncated one does: only termination may stop the
bootstrap. And an environment whose episode has ended spends the next step on its reset: the action is ignored, the
reward is zero and the observation belongs to a new episode, so that step is no transition at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Transitions:
    """M transitions, all float32.

    Attributes:
        observation: [M, O] before the action.
        action: [M, d] in [-1, 1].
        reward: [M].
        next_observation: [M, O] after it, of the same episode even if it was the last.
        terminated: [M] 1 where the episode has no future, 0 elsewhere, truncation included.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor

    def __len__(self) -> int:
        return self.reward.shape[0]


class Collector:
    """Steps E environments and gives the transitions that happened.

    Args:
        environments: a vector whose autoreset mode is NEXT_STEP.
        seed: of the first reset: one number, or one per environment.
    """

    def __init__(self, environments: VectorEnv[Any, Any, Any], *, seed: int | Sequence[int]) -> None:
        mode = environments.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise ValueError(f"the vector's autoreset mode is {mode}; make it with AutoresetMode.NEXT_STEP.")
        self.environments = environments
        self.reset(seed)

    def reset(self, seed: int | Sequence[int]) -> None:
        """Begin a new episode in every environment."""
        # One seed per environment is allowed, but missing in the annotations of the base class.
        start: Any = seed if isinstance(seed, int) else list(seed)
        first, _ = self.environments.reset(seed=start)
        self.observation = _tensor(first)
        self.just_ended = np.zeros(self.environments.num_envs, dtype=bool)
        self._returns = np.zeros(self.environments.num_envs)

    def step(self, action: Tensor) -> tuple[Transitions, dict[int, float]]:
        """Take one step everywhere.

        Args:
            action: [E, d] in [-1, 1]; the rows of environments that reset in this step are ignored.

        Returns:
            The transitions (at most E), and of each environment whose episode ended now its undiscounted return.
        """
        before = self.observation
        # A copy: the vector may keep the action, and the caller may change it.
        after, reward, terminated, truncated, _ = self.environments.step(action.numpy().copy())
        self.observation = _tensor(after)
        happened = torch.from_numpy(~self.just_ended)
        self._returns = np.where(self.just_ended, 0.0, self._returns + reward)
        self.just_ended = terminated | truncated
        transitions = Transitions(
            observation=before[happened],
            action=action[happened],
            reward=_tensor(reward)[happened],
            next_observation=self.observation[happened],
            terminated=_tensor(terminated)[happened],
        )
        return transitions, {int(i): float(self._returns[i]) for i in np.flatnonzero(self.just_ended)}


def _tensor(values: Any) -> Tensor:
    # A copy, because a vector environment may hand out the same array again at the next step.
    return torch.tensor(np.asarray(values), dtype=torch.float32)
