"""Which steps become transitions, and what an episode's end means, checked with environments that count."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from awm.lab.control.collector import Collector, Transitions
from awm.lab.control.evaluation import episode_returns


class Clock(gymnasium.Env[Any, Any]):
    """Observes (episode number, time in it); pays the time; may terminate by itself after some steps."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int | None) -> None:
        self.length, self.episode, self.time = length, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.time = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self._observation(), float(self.time), self.time == self.length, False, {}

    def _observation(self) -> Any:
        return np.array([self.episode, self.time], dtype=np.float32)


def clocks(mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> SyncVectorEnv:
    """One that terminates after 3 steps, one whose time limit is 5, one that terminates at its time limit of 4."""
    return SyncVectorEnv(
        [
            lambda: Clock(3),
            lambda: gymnasium.wrappers.TimeLimit(Clock(None), 5),
            lambda: gymnasium.wrappers.TimeLimit(Clock(4), 4),
        ],
        autoreset_mode=mode,
    )


def collect(steps: int) -> list[list[tuple[float, ...]]]:
    """Per environment, rows (episode, time, reward, next episode, next time, terminated) of its transitions."""
    environments = clocks()
    collector = Collector(environments, seed=0)
    rows: list[list[tuple[float, ...]]] = [[], [], []]
    for _ in range(steps):
        ended_before = collector.just_ended.copy()
        transitions, _ = collector.step(torch.zeros(3, 1))
        kept = [i for i in range(3) if not ended_before[i]]
        assert len(kept) == len(transitions)
        for i, row in zip(kept, rows_of(transitions), strict=True):
            rows[i].append(row)
    environments.close()
    return rows


def rows_of(x: Transitions) -> list[tuple[float, ...]]:
    columns = [x.observation, x.reward[:, None], x.next_observation, x.terminated[:, None]]
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]


@pytest.mark.parametrize(("index", "length"), [(0, 3), (1, 5), (2, 4)])
def test_every_step_of_every_episode_is_one_transition_and_resets_are_none(index: int, length: int) -> None:
    rows = collect(24)[index]
    num_complete = 24 // (length + 1)  # the reset takes a step of its own
    expected = [(float(e), float(t)) for e in range(num_complete) for t in range(length)]
    assert [row[:2] for row in rows][: len(expected)] == expected
    for episode, time, reward, next_episode, next_time, _ in rows:
        assert (next_episode, next_time) == (episode, time + 1)
        assert reward == time + 1


def test_only_a_termination_ends_the_future_a_time_limit_does_not() -> None:
    terminating, limited, both = collect(24)
    assert {row[4] for row in terminating if row[5]} == {3.0}
    assert not any(row[5] for row in limited)
    assert max(row[4] for row in limited) == 5.0
    # At the limit and terminated at once: the future is over.
    assert {row[4] for row in both if row[5]} == {4.0}


def test_returns_are_reported_at_the_end_of_each_episode_and_start_again() -> None:
    collector = Collector(clocks(), seed=0)
    reported: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(12):
        for i, value in collector.step(torch.zeros(3, 1))[1].items():
            reported[i].append(value)
    assert reported == {0: [6.0] * 3, 1: [15.0] * 2, 2: [10.0] * 2}


def test_kept_observations_do_not_change_when_the_environments_move_on() -> None:
    collector = Collector(clocks(), seed=0)
    first, _ = collector.step(torch.zeros(3, 1))
    before = first.next_observation.clone()
    collector.step(torch.zeros(3, 1))
    assert torch.equal(first.next_observation, before)


def test_other_autoreset_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="NEXT_STEP"):
        Collector(clocks(AutoresetMode.SAME_STEP), seed=0)


def test_evaluation_counts_the_first_episode_of_each_environment_only() -> None:
    returns = episode_returns(clocks(), lambda observation: torch.zeros(len(observation), 1), seed=0)
    assert returns == (6.0, 15.0, 10.0)
