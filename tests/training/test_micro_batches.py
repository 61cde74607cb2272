"""Which samples an optimizer step runs, so that every rank runs equally many forwards and backwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from awm.training.micro_batches import micro_batches, micro_batches_with_advantage, with_advantage
from awm.types import Experience
from tests.helpers import make_experience


def samples(advantage: list[float], invalid: tuple[int, ...] = ()) -> Experience:
    batch = make_experience(batch=len(advantage))
    valid = torch.tensor([row not in invalid for row in range(len(advantage))])
    return replace(batch, advantage=torch.tensor(advantage), valid=valid)


def alone(values: Tensor) -> Tensor:
    return values


def numbers(batches: list[Experience]) -> list[list[int]]:
    """Which samples are run, and count."""
    return [(batch.sample_index[batch.valid] - 10).tolist() for batch in batches]


def test_all_samples_in_order() -> None:
    assert numbers(micro_batches(samples([1.0, 0.0, -1.0, 0.0, 2.0]), 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [[0], [2], [4]]), (2, [[0, 2], [4]]), (3, [[0, 2, 4]]), (8, [[0, 2, 4]])]
)
def test_those_with_an_advantage_are_packed(size: int, expected: list[list[int]]) -> None:
    batch = samples([1.0, 0.0, -1.0, 0.0, 2.0])
    assert numbers(micro_batches_with_advantage(batch, size, alone)) == expected


def test_samples_without_a_reward_are_not_run() -> None:
    batch = samples([1.0, 0.5, -1.0, 0.0], invalid=(1,))
    assert with_advantage(batch).tolist() == [True, False, True, False]
    assert numbers(micro_batches_with_advantage(batch, 2, alone)) == [[0, 2]]


def test_a_rank_with_fewer_runs_as_many_forwards_for_nothing() -> None:
    seen = []

    def gather(mine: Tensor) -> Tensor:
        seen.append(mine.item())
        return torch.tensor([mine.item(), 4])

    batches = micro_batches_with_advantage(samples([0.0, 1.0, 1.0, 0.0, 1.0]), 2, gather)
    assert seen == [2]
    assert numbers(batches) == [[1, 2], [4], [], []]
    assert [len(batch) for batch in batches] == [2, 1, 1, 1]
    batches = micro_batches_with_advantage(samples([0.0, 0.0]), 2, gather)
    assert seen == [2, 0]
    assert numbers(batches) == [[]] * 4 and all(len(batch) == 1 for batch in batches)


def test_a_step_in_which_nobody_learns_is_still_one() -> None:
    assert numbers(micro_batches_with_advantage(samples([0.0, 0.0, 0.0]), 2, alone)) == [[]]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_never_more_rows_than_there_are_samples(size: int) -> None:
    """Progress is counted in them."""
    for number in range(6):
        batch = samples([1.0] * number + [0.0] * (5 - number))
        batches = micro_batches_with_advantage(batch, size, lambda _: torch.tensor([-(-5 // size)]))
        assert sum(len(part) for part in batches) <= 5
