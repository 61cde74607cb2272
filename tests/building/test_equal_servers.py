"""Servers of different ranks must give equal scores."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from awm.building.equal_servers import check_equal_servers
from awm.interfaces import Reward
from awm.rewards.errors import RewardError
from awm.rewards.mixture import MixtureReward
from awm.training.distributed import Distributed
from awm.types import Rewards


class Scored:
    """A reward of a server with these versions."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def __call__(self, images: torch.Tensor, *_: Any) -> Rewards:
        raise NotImplementedError

    def check(self) -> None: ...


class Ranks:
    """The ranks before this one hold ``others``."""

    def __init__(self, *others: dict[str, str]) -> None:
        self.others = others

    def gather_objects(self, mine: list[Any]) -> list[Any]:
        return [*self.others, *mine]


def check(mine: Reward, *others: dict[str, str], allow: bool = False) -> None:
    check_equal_servers(mine, cast(Distributed, Ranks(*others)), allow_changed_scorer=allow)


def mixture(**fingerprints: str) -> Reward:
    return MixtureReward({name: (Scored(fingerprint), 1.0) for name, fingerprint in fingerprints.items()})


def test_equal_servers_and_rewards_without_one_pass() -> None:
    check(mixture(geneval="v1", jpeg_compressibility=""), {"geneval": "v1"}, {"geneval": "v1"})
    # A monitored reward's server that did not answer on one rank says nothing about versions.
    check(mixture(geneval="v1"), {"geneval": "v1", "ocr": "v7"})


def test_other_versions_on_another_node_are_an_error_that_names_them() -> None:
    ours = mixture(ocr="o", geneval="v2")
    with pytest.raises(
        RewardError, match=r"'geneval' \(rank 2's server\): has other versions than rank 0's, v2 and v1"
    ):
        check(ours, {"ocr": "o", "geneval": "v1"}, {"ocr": "o", "geneval": "v1"})
    check(ours, {"ocr": "o", "geneval": "v1"}, allow=True)
