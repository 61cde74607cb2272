"""Images of a prompt find each other, whichever rank holds them."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.training.group_mates import gather_group_mates
from awm.types import GroupMates
from tests.training.ranks import run_ranks

SHAPE = (2, 3, 3)


class Ranks:
    """What ``gather_group_mates`` asks of ``Distributed``, for one rank of several in turn."""

    def __init__(self, rank: int, world_size: int, outbox: list[Any], inbox: list[Any]) -> None:
        self.rank, self.world_size, self.outbox, self.inbox = rank, world_size, outbox, inbox

    def gather_objects(self, items: list[Any]) -> list[Any]:
        self.outbox.extend(items)
        return self.inbox


def epoch(count: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents that carry their number, groups of ``size``, weights and validity of ``count`` samples."""
    x_0 = torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(count, *SHAPE).contiguous()
    return x_0, torch.arange(count) // size, torch.arange(float(count)) / 10, torch.ones(count, dtype=torch.bool)


def on_all_ranks(count: int, size: int, world: int, valid: Tensor | None = None) -> tuple[list[GroupMates], list[Any]]:
    x_0, group, weight, everything = epoch(count, size)
    valid = everything if valid is None else valid
    sent: list[Any] = []
    per_rank = count // world
    for rank in range(world):  # first what each sends, then what each makes of it all
        share = x_0[rank * per_rank : (rank + 1) * per_rank]
        outbox: list[Any] = []
        with contextlib.suppress(KeyError):  # nothing was received yet
            gather_group_mates(share, group, weight, valid, Ranks(rank, world, outbox, []))  # type: ignore[arg-type]
        sent += outbox
    results = []
    for rank in range(world):
        share = x_0[rank * per_rank : (rank + 1) * per_rank]
        results.append(gather_group_mates(share, group, weight, valid, Ranks(rank, world, [], sent)))  # type: ignore[arg-type]
    return results, sent


@pytest.mark.parametrize(("count", "size", "world"), [(12, 4, 1), (12, 4, 2), (12, 4, 3), (12, 6, 4), (12, 12, 3)])
def test_every_rank_has_the_whole_of_its_groups(count: int, size: int, world: int) -> None:
    results, _ = on_all_ranks(count, size, world)
    per_rank = count // world
    for rank, mates in enumerate(results):
        groups = {i // size for i in range(rank * per_rank, (rank + 1) * per_rank)}
        wanted = [i for i in range(count) if i // size in groups]
        assert mates.sample_index.tolist() == wanted
        assert mates.group.tolist() == [i // size for i in wanted]
        assert mates.x_0[:, 0, 0, 0].tolist() == [float(i) for i in wanted] and mates.x_0.shape[1:] == SHAPE
        torch.testing.assert_close(mates.weight, torch.tensor(wanted) / 10)


def test_only_groups_that_cross_ranks_travel_and_each_latent_once_and_alone() -> None:
    _, nothing = on_all_ranks(12, 4, 3)
    assert nothing == []
    _, sent = on_all_ranks(12, 4, 2)
    assert [row for row, _ in sent] == [4, 5, 6, 7]
    alone = len(pickle.dumps(torch.zeros(SHAPE)))
    assert all(len(pickle.dumps(latent)) <= alone + 64 for _, latent in sent)


def test_samples_without_a_reward_are_nobodys_mates() -> None:
    valid = torch.ones(12, dtype=torch.bool)
    valid[[4, 6, 8]] = False
    results, sent = on_all_ranks(12, 4, 2, valid)
    assert [row for row, _ in sent] == [5, 7]
    assert results[0].sample_index.tolist() == [0, 1, 2, 3, 5, 7]
    assert results[1].sample_index.tolist() == [5, 7, 9, 10, 11]
    none, _ = on_all_ranks(12, 4, 2, torch.zeros(12, dtype=torch.bool))
    assert none[0].x_0.shape == (0, *SHAPE)


def mates_of_rank(count: int, size: int) -> list[list[float]]:
    """Numbers of every rank's mates, over real processes."""
    from awm.training.distributed import Distributed

    distributed = Distributed()
    x_0, group, weight, valid = epoch(count, size)
    per_rank = count // distributed.world_size
    share = x_0[distributed.rank * per_rank : (distributed.rank + 1) * per_rank]
    mates = gather_group_mates(share, group, weight, valid, distributed)
    return distributed.gather_objects([mates.x_0[:, 0, 0, 0].tolist()])


def test_over_real_ranks() -> None:
    answer = run_ranks(3, mates_of_rank, 12, 6)
    assert answer == [list(range(6)), list(range(12)), list(range(6, 12))]
