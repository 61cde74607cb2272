"""Making environments, and the rewards of speed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from awm.lab.control.environments import make_environments, vector_sizes
from awm.lab.control.landscapes import LANDSCAPES, speed_reward


def test_landscapes_run_from_zero_to_one_and_from_flat_to_steep() -> None:
    for name in LANDSCAPES:
        assert [speed_reward(v, name) for v in (-3.0, 0.0, 10.0, 12.0)] == pytest.approx([0, 0, 1, 1])
    at_two = [speed_reward(2.0, name) for name in ("sqrt", "linear", "square", "exp")]
    assert at_two == pytest.approx([math.sqrt(0.2), 0.2, 0.04, (math.exp(0.6) - 1) / (math.exp(3) - 1)])


def test_the_landscape_replaces_the_reward_of_the_runner() -> None:
    environments = make_environments("HalfCheetah-v5", 1, landscape="square")
    environments.reset(seed=0)
    for _ in range(5):
        _, reward, _, _, info = environments.step(np.full((1, 6), 0.5, dtype=np.float32))
        assert reward[0] == pytest.approx(speed_reward(info["x_velocity"][0], "square"))
    assert vector_sizes(environments) == (17, 6)
    environments.close()


def test_actions_are_rescaled_to_the_box() -> None:
    environments = make_environments("Pendulum-v1", 2)
    space = environments.single_action_space
    assert (space.low, space.high) == (-1, 1)  # type: ignore[attr-defined]
    environments.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoSuchThing-v3", "doesn't exist"),
        ("Hopper-v9", "version `v9`"),
        ("Hopper-v2", "gymnasium-robotics"),
        ("CartPole-v1", "only vectors of numbers can be learned"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_environments_that_cannot_be_used_are_refused_in_a_sentence(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_environments(name, 1)


def test_a_landscape_needs_a_speed() -> None:
    environments = make_environments("Pendulum-v1", 1, landscape="exp")
    environments.reset(seed=0)
    with pytest.raises(ValueError, match="no forward speed"):
        environments.step(np.zeros((1, 1), dtype=np.float32))
    environments.close()
