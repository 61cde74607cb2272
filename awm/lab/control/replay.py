"""The replay buffer: the latest transitions, drawn uniformly with replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from awm.lab.control.collector import Transitions


class ReplayBuffer:
    """A ring of transitions; the oldest are overwritten.

    Args:
        capacity: transitions kept.
        observation_dim: O.
        action_dim: d.
        device: where they are kept, and where batches come out.
    """

    def __init__(
        self, capacity: int, observation_dim: int, action_dim: int, *, device: torch.device | str = "cpu"
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a replay buffer keeps at least 1 transition, not {capacity}.")
        # One table: a batch is then one gather. Pages that were never written cost no memory.
        self.sections = [observation_dim, action_dim, 1, observation_dim, 1]
        self.table = torch.empty(capacity, sum(self.sections), device=device)
        self.position = 0
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def add(self, new: Transitions) -> None:
        """Append transitions; more than the capacity at once is an error."""
        capacity = self.table.shape[0]
        if len(new) > capacity:
            raise ValueError(f"{len(new)} transitions do not fit a buffer of {capacity}; use a larger buffer_size.")
        rows = torch.cat(
            [new.observation, new.action, new.reward[:, None], new.next_observation, new.terminated[:, None]], dim=1
        )
        index = (self.position + torch.arange(len(new), device=self.table.device)) % capacity
        self.table[index] = rows.to(self.table.device)
        self.position = (self.position + len(new)) % capacity
        self.size = min(self.size + len(new), capacity)

    def sample(self, count: int, generator: torch.Generator) -> Transitions:
        """``count`` transitions, each any of those kept with equal chance."""
        if self.size == 0:
            raise ValueError("the replay buffer is empty; add transitions before sampling.")
        index = torch.randint(self.size, (count,), generator=generator, device=generator.device)
        observation, action, reward, next_observation, terminated = torch.split(self.table[index], self.sections, dim=1)
        return Transitions(observation, action, _column(reward), next_observation, _column(terminated))


def _column(x: Tensor) -> Tensor:
    return x.squeeze(1)
