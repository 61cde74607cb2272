"""Rewards by name, and how a ``reward_fn`` of a config becomes one reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awm.interfaces import Reward
from awm.registry import Registry
from awm.rewards.collect import split_name
from awm.rewards.mixture import MixtureReward
from awm.rewards.remote import RemoteReward

IN_PROCESS = Registry(
    "in-process reward",
    {
        "jpeg_compressibility": "awm.rewards.in_process:in_process_reward",
        "jpeg_incompressibility": "awm.rewards.in_process:in_process_reward",
        "geneval_shapes": "awm.rewards.in_process:in_process_reward",
        "differentiable_pickscore": "awm.rewards.differentiable:differentiable_reward",
        "differentiable_clipscore": "awm.rewards.differentiable:differentiable_reward",
    },
)
"""Name -> function of the name that makes the reward. Any other name is asked of the reward server."""


def make_reward(name: str, urls: Sequence[str], **options: Any) -> Reward:
    """The reward called ``name``.

    Args:
        name: such as "geneval", or "geneval.strict" for one of a scorer's other numbers.
        urls: reward servers, used unless the reward is computed in process.
        **options: of ``RemoteReward``.
    """
    scorer, _ = split_name(name)
    if scorer in IN_PROCESS:
        reward: Reward = IN_PROCESS.load(scorer)(name)
        return reward
    return RemoteReward(urls, name, **options)


def make_mixture(weights: Mapping[str, float], urls: Sequence[str], **options: Any) -> MixtureReward:
    """The weighted sum of the rewards in ``weights`` (name -> weight), as a config's ``reward_fn`` gives it.

    A reward of weight 0 is only watched: nobody waits for its server to come back.
    """
    watched = options | {"server_wait_s": 0.0, "max_retries": 0}
    return MixtureReward(
        {name: (make_reward(name, urls, **(options if w else watched)), float(w)) for name, w in weights.items()}
    )
