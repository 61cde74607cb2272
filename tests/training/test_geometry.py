from __future__ import annotations

from typing import Any

import pytest

from awm.training.geometry import Geometry, require_whole_groups, resolve_geometry


def resolve(**changes: Any) -> Geometry:
    values: dict[str, Any] = {
        "world_size": 8,
        "images_per_prompt": 24,
        "num_prompts": 72,
        "sampling_batches": None,
        "sample_batch_size": 6,
        "micro_batch_size": 3,
        "micro_batches_per_pass": None,
        "micro_batches_per_update": None,
        "updates_per_pass": None,
        "num_passes": 1,
    }
    return resolve_geometry(**values | changes)


@pytest.mark.parametrize(("world_size", "batches"), [(1, 288), (8, 36), (32, 9)])
def test_one_recipe_fits_any_number_of_ranks(world_size: int, batches: int):
    geometry = resolve(world_size=world_size)
    assert geometry.images == 1728
    assert geometry.sampling_batches == batches
    assert geometry.micro_batches_per_update == batches * 2
    assert geometry.updates_per_epoch == 1


def test_prompts_follow_from_batches_per_epoch():
    assert resolve(num_prompts=None, sampling_batches=36).num_prompts == 72


def test_accumulation_steps_imply_the_updates():
    assert resolve(micro_batches_per_update=36).updates_per_pass == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_prompts": None}, "set sample.num_prompts_per_epoch or"),
        ({"world_size": 5}, r"1728 images per epoch do not split over 5 ranks; use 70 or 75 prompts.*or 4 or 6 ranks"),
        ({"num_prompts": None, "sampling_batches": 35, "sample_batch_size": 5}, r"not a multiple.*to 33 or 36"),
        ({"sampling_batches": 35}, r"contradicts sample.num_prompts_per_epoch=72.*are 36 batches"),
        ({"updates_per_pass": 7}, r"do not split into 7 updates.*to 6 or 8"),
        ({"micro_batches_per_update": 35}, r"does not divide the 72 micro-batches of a pass; use 24 or 36"),
        ({"micro_batches_per_pass": 71}, r"leave it unset, or set it to 72"),
        ({"micro_batches_per_update": 36, "updates_per_pass": 3}, r"means 2 updates.*says 3"),
    ],
)
def test_impossible_geometry_names_the_nearest_possible(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        resolve(**changes)


@pytest.mark.parametrize("changes", [{}, {"updates_per_pass": 3}, {"world_size": 32, "updates_per_pass": 1}])
def test_whole_groups_fit(changes: dict[str, Any]):
    require_whole_groups(resolve(**changes), "dgpo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 32, "updates_per_pass": 2}, r"'dgpo'.*32 ranks share 72 prompts.*use 24 or 36 ranks"),
        ({"updates_per_pass": 2}, r"9 prompts per rank do not split into 2 updates; .*to 1 or 3"),
    ],
)
def test_cut_groups_name_the_nearest_possible(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        require_whole_groups(resolve(**changes), "dgpo")
