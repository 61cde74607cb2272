"""Rewards by name, and how a ``reward_fn`` of a config becomes one reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awm.interfaces import Reward
from awm.registry import Registry, nearest
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


def make_mixture(
    weights: Mapping[str, float],
    urls: Sequence[str],
    urls_of: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> MixtureReward:
    """The weighted sum of the rewards in ``weights``, as a config's ``reward_fn`` gives it.

    A reward of weight 0 is only watched: nobody waits for its server.

    Args:
        weights: name -> weight.
        urls: reward servers.
        urls_of: scorer -> the servers of its rewards instead of ``urls``.
        **options: of ``RemoteReward``.

    Raises:
        ValueError: ``urls_of`` names a scorer that no weight asks a server for.
    """
    urls_of = urls_of or {}
    _check_scorers(list(urls_of), list(weights))
    watched = options | {"server_wait_s": 0.0}
    rewards: dict[str, tuple[Reward, float]] = {}
    for name, weight in weights.items():
        servers = urls_of.get(split_name(name)[0], urls)
        rewards[name] = (make_reward(name, servers, **(options if weight else watched)), float(weight))
    return MixtureReward(rewards)


def _check_scorers(given: Sequence[str], names: Sequence[str]) -> None:
    asked = list(dict.fromkeys(split_name(name)[0] for name in names))
    for scorer in given:
        if scorer not in asked:
            raise ValueError(
                f"reward_server.urls_of names {scorer!r}, but the scorers in reward_fn are {', '.join(asked)}."
                f"{nearest(scorer, asked)} Servers are given per scorer: those of 'geneval' also compute "
                "'geneval.strict'."
            )
        if scorer in IN_PROCESS:
            raise ValueError(
                f"reward_server.urls_of names {scorer!r}, which is computed in the trainer's own process; remove it."
            )
