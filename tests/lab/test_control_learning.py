"""The whole loop learns: environments, buffer, critics and policy together, against a policy that is not trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from awm.lab.control.loop import Run, environment_seeds, train
from awm.lab.control.settings import preset

AIM = "AwmLabAim-v0"
SMALL = {
    **{"total_steps": 1_100, "warmup_steps": 500, "num_environments": 10, "steps_per_update": 4},
    **{"evaluation_interval": 1_100, "evaluation_episodes": 50, "width": 32, "sampling_steps": 4, "batch_size": 64},
    **{"num_candidates": 8, "refresh_interval": 5, "reward_scale": 1.0, "critic_learning_rate": 1e-2},
    **{"policy_learning_rate": 5e-3, "final_policy_learning_rate": 1e-3},
}


class Aim(gymnasium.Env[Any, Any]):
    """Shows a point of the square, pays minus the squared distance of the action to half of it, and ends."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.point.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.point.copy(), -float(np.square(action - self.point / 2).sum()), True, False, {}


@pytest.fixture(autouse=True)
def aim() -> Iterator[None]:
    gymnasium.register(AIM, entry_point=lambda **_: Aim())
    yield
    del gymnasium.registry[AIM]


def last_return(environment: str, **changes: Any) -> float:
    """Of single draws of the policy at the end of a run."""
    settings = preset("quick", environment, evaluation_candidates=1, **changes)
    return list(train(settings, seed=0))[-1].mean


def test_training_the_policy_finds_the_best_actions_and_training_the_critics_alone_does_not() -> None:
    frozen = last_return(AIM, algorithm="frozen", **SMALL)
    returns = {name: last_return(AIM, algorithm=name, **SMALL) for name in ("simpo", "rfm")}
    # A uniform action gets -2 (1/3 + 1/12) = -0.83, the best 0.
    assert frozen < -0.8
    assert min(returns.values()) > -0.2


def test_runs_of_neighbouring_seeds_start_from_different_states_and_none_is_evaluated_on() -> None:
    starts = []
    for seed in (0, 1):
        with Run(preset("quick", AIM, **SMALL), seed=seed) as run:
            starts += [tuple(row) for row in run.collector.observation.tolist()]
            evaluated, _ = run.evaluators.reset(seed=10_000)
    assert len(set(starts)) == 20
    assert not set(starts) & {tuple(row) for row in evaluated.tolist()}
    assert environment_seeds(3, 2) == [1_000_006, 1_000_007]


@pytest.mark.slow
def test_the_pendulum_is_learned() -> None:
    changes = {"total_steps": 12_000, "evaluation_interval": 12_000, "evaluation_episodes": 20}
    frozen = last_return("Pendulum-v1", algorithm="frozen", **changes)
    for algorithm in ("simpo", "rfm"):
        assert last_return("Pendulum-v1", algorithm=algorithm, **changes) > frozen + 400
