"""Gymnasium environments side by side, with actions in [-1, 1].

The vector resets an environment in the step after its episode's last one (``NEXT_STEP``, Gymnasium's default
since 1.0), so that the observation returned with a termination or truncation is the episode's own last one;
``awm.lab.control.collector`` relies on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv

from awm.lab.control.landscapes import speed_reward

Environment = gymnasium.Env[Any, Any]


class SpeedReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Replaces the reward by a function of the forward speed that the environment reports.

    Args:
        environment: one whose step reports "x_velocity", as MuJoCo's runners do.
        landscape: name in ``awm.lab.control.landscapes``.
    """

    def __init__(self, environment: Environment, landscape: str) -> None:
        super().__init__(environment)
        self.landscape = landscape

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """As the environment's, with the other reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        if "x_velocity" not in info:
            raise ValueError(
                f"{self.env.unwrapped} reports no forward speed, so --landscape has nothing to reward; "
                f"use HalfCheetah-v5 or Walker2d-v5."
            )
        return observation, speed_reward(float(info["x_velocity"]), self.landscape), terminated, truncated, info


def make_environments(name: str, count: int, *, landscape: str | None = None) -> VectorEnv[Any, Any, Any]:
    """``count`` environments of one kind, stepped one after the other in this process.

    Args:
        name: Gymnasium id, "Hopper-v5".
        count: how many.
        landscape: reward forward speed by this function instead of the environment's own reward.

    Raises:
        ValueError: an unknown id, or one whose observations or actions are not vectors of numbers.
    """
    wrappers: list[Callable[[Environment], Any]] = []
    if landscape is not None:
        wrappers.append(lambda environment: SpeedReward(environment, landscape))
    wrappers.append(_rescaled)
    try:
        with _quiet_mujoco():
            return gymnasium.make_vec(
                name,
                num_envs=count,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
                wrappers=wrappers,
            )
    except (gymnasium.error.Error, ImportError) as error:
        # MuJoCo's v2 and v3 environments raise ImportError, telling where they moved.
        if isinstance(error, ModuleNotFoundError):
            raise
        known = "Pendulum-v1, Hopper-v5, Walker2d-v5, HalfCheetah-v5, Ant-v5, Swimmer-v5, Humanoid-v5"
        raise ValueError(f"cannot make environment {name!r}: {error} Known to work: {known}.") from error


def vector_sizes(environments: VectorEnv[Any, Any, Any]) -> tuple[int, int]:
    """Features of an observation and of an action."""
    shapes = environments.single_observation_space.shape, environments.single_action_space.shape
    assert shapes[0] is not None and shapes[1] is not None
    return shapes[0][0], shapes[1][0]


def _rescaled(environment: Environment) -> Environment:
    actions, observations = environment.action_space, environment.observation_space
    if not isinstance(actions, Box) or len(actions.shape) != 1:
        raise ValueError(f"{environment.unwrapped} takes actions {actions}; only vectors of numbers can be learned.")
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise ValueError(f"{environment.unwrapped} shows {observations}; only vectors of numbers can be learned from.")
    return gymnasium.wrappers.RescaleAction(environment, np.float32(-1), np.float32(1))


@contextmanager
def _quiet_mujoco() -> Iterator[None]:
    # Compiling Gymnasium's models with a new MuJoCo warns of a deprecated attribute, into a file MUJOCO_LOG.TXT in
    # the current folder. Warnings of the simulation itself, later, are left alone.
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ImportError:
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
