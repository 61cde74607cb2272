"""Undiscounted returns of an agent's best actions, one episode per environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor

from awm.lab.control.collector import Collector


def episode_returns(
    environments: VectorEnv[Any, Any, Any], act: Callable[[Tensor], Tensor], *, seed: int
) -> tuple[float, ...]:
    """Return of the first episode of every environment.

    Args:
        environments: a vector with autoreset mode NEXT_STEP; all are stepped until the slowest has finished.
        act: observations [E, O] -> actions [E, d] in [-1, 1].
        seed: environment i starts from seed + i, the same at every evaluation.
    """
    collector = Collector(environments, seed=[seed + i for i in range(environments.num_envs)])
    returns: dict[int, float] = {}
    while len(returns) < environments.num_envs:
        _, ended = collector.step(act(collector.observation))
        # Only the first episode counts: environments whose episodes are short would otherwise be heard more often.
        returns = ended | returns
    return tuple(returns[i] for i in range(environments.num_envs))
