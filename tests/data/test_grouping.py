from __future__ import annotations

import pytest
import torch

from awm.data.grouping import epoch_prompt_indices, rank_prompts, update_chunks
from awm.data.prompts import PromptSet

PROMPTS = PromptSet(tuple(f"p{i}" for i in range(10)), tuple({"n": i} for i in range(10)))


def test_an_epoch_never_repeats_a_prompt_and_a_cycle_uses_each_once():
    epochs = [epoch_prompt_indices(3, epoch, 10, 5) for epoch in range(4)]
    assert all(len(set(chosen)) == 5 for chosen in epochs)
    assert sorted(epochs[0] + epochs[1]) == list(range(10))
    assert sorted(epochs[2] + epochs[3]) == list(range(10))
    assert epochs[:2] != epochs[2:]


def test_epochs_depend_on_seed_and_epoch_alone():
    assert epoch_prompt_indices(1, 7, 10, 4) == epoch_prompt_indices(1, 7, 10, 4)
    assert epoch_prompt_indices(1, 7, 10, 4) != epoch_prompt_indices(2, 7, 10, 4)


def test_too_few_prompts_is_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"11 prompts per epoch.*holds 10"):
        epoch_prompt_indices(0, 0, 10, 11)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_ranks_together_hold_each_sample_once_in_order(world_size: int):
    chosen, images = [4, 2, 9], 4
    per_rank = 12 // world_size
    parts = [rank_prompts(PROMPTS, chosen, images, rank, per_rank) for rank in range(world_size)]
    assert [t for part in parts for t in part.text] == ["p4"] * 4 + ["p2"] * 4 + ["p9"] * 4
    assert torch.cat([part.group for part in parts]).tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_update_chunks_do_not_depend_on_the_world_size(world_size: int):
    total, updates = 24, 2
    per_rank = total // world_size
    whole = update_chunks(0, 5, 1, 0, total, updates)
    for update in range(updates):
        pieces = [
            update_chunks(0, 5, 1, rank * per_rank, per_rank, updates)[update] + rank * per_rank
            for rank in range(world_size)
        ]
        assert torch.cat(pieces).tolist() == whole[update].tolist()
    assert torch.cat(whole).sort().values.tolist() == list(range(total))


def test_passes_split_the_samples_differently():
    assert update_chunks(0, 0, 0, 0, 24, 2)[0].tolist() != update_chunks(0, 0, 1, 0, 24, 2)[0].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_whole_groups_stay_together_on_any_number_of_ranks(world_size: int):
    total, updates, unit = 48, 2, 4
    per_rank = total // world_size
    whole = update_chunks(0, 5, 1, 0, total, updates, unit=unit)
    for update in range(updates):
        pieces = [
            update_chunks(0, 5, 1, rank * per_rank, per_rank, updates, unit=unit)[update] + rank * per_rank
            for rank in range(world_size)
        ]
        assert torch.cat(pieces).tolist() == whole[update].tolist()
        groups = whole[update] // unit
        assert all((groups == g).sum() == unit for g in groups.unique())
    assert torch.cat(whole).sort().values.tolist() == list(range(total))
