"""Every rank may ask a reward server of its own, such as its node's; they must give equal scores."""

from __future__ import annotations

from collections.abc import Mapping

from awm.interfaces import Reward
from awm.rewards.errors import RewardError
from awm.training.distributed import Distributed


def check_equal_servers(reward: Reward, distributed: Distributed, *, allow_changed_scorer: bool) -> None:
    """Compare the versions that the ranks' servers reported when they were checked. A collective.

    Args:
        reward: already checked; what has no ``fingerprints`` uses no server.
        distributed: the ranks.
        allow_changed_scorer: different versions are what the user wants.

    Raises:
        RewardError: on every rank, naming a reward and two ranks whose servers differ.
    """
    mine: Mapping[str, str] = getattr(reward, "fingerprints", {})
    ranks: list[Mapping[str, str]] = distributed.gather_objects([dict(mine)])
    if allow_changed_scorer:
        return
    for rank, fingerprints in enumerate(ranks):
        for name in sorted(ranks[0].keys() & fingerprints.keys()):
            if fingerprints[name] != ranks[0][name]:
                raise RewardError(
                    name,
                    f"rank {rank}'s server",
                    f"has other versions than rank 0's, {fingerprints[name]} and {ranks[0][name]}, so their scores are "
                    f"not comparable. Run equal servers, or set reward_server.allow_changed_scorer=True.",
                )
