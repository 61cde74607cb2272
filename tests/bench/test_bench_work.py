"""Every configuration is resolved, and its work counted, before anything starts."""

from __future__ import annotations

import pytest
from made_up import settings

from awm.bench.arms import ARMS, Arm, Setting
from awm.bench.identity import changes
from awm.bench.jobs import final_jobs
from awm.bench.work import Work, arm_work, num_epochs

SMALL = ("--config.sample.num_prompts_per_epoch=4", "--config.train.updates_per_inner_epoch=1")
ONE = (Setting("only", ()),)
SETTINGS = settings(images=64, evaluations=1, overrides=SMALL)
FULL = settings(images=2560)
SHARED = (
    *("dataset", "prompt_fn", "pretrained.model", "reward_fn", "resolution", "mixed_precision"),
    *("lora_rank", "lora_alpha", "lora_type", "use_lora", "train.lora_path", "train.ema", "train.ema_decay"),
    *("sample.num_steps", "sample.num_prompts_per_epoch", "sample.num_image_per_prompt"),
    *("train.batch_size", "train.updates_per_inner_epoch", "train.num_batches_per_epoch", "train.train_timesteps"),
)


@pytest.fixture(scope="module")
def work() -> dict[tuple[str, str], Work]:
    return arm_work(ARMS, FULL)


@pytest.mark.parametrize("name", ARMS)
def test_every_setting_of_every_arm_is_a_configuration_that_the_trainer_accepts(
    name: str, work: dict[tuple[str, str], Work]
):
    costs = [work[name, setting.name] for setting in ARMS[name].grid]
    assert {each.images for each in costs} == {256} and all(each.operations > 1e11 for each in costs)
    found = [changes(final_jobs(name, ARMS[name], setting, FULL)[0], FULL) for setting in ARMS[name].grid]
    assert [each.get("train.learning_rate", 4e-3) for each in found] == [2e-3, 4e-3, 8e-3]


@pytest.mark.parametrize("name", ARMS)
def test_all_arms_share_what_makes_the_comparison_fair(name: str):
    found = changes(final_jobs(name, ARMS[name], ARMS[name].grid[0], FULL)[0], FULL)
    assert not found.keys() & set(SHARED)
    assert not {key for key in found if key.startswith(("evaluation.", "sample.eval_"))}


def test_an_arm_with_an_anchors_forward_costs_more_and_fewer_times_less():
    arms = {
        "plain": Arm("", "", overrides=("--config.train.algorithm=awm", "--config.train.ema_beta=0.0"), grid=ONE),
        "anchor": Arm("", "", overrides=("--config.train.algorithm=awm", "--config.train.ema_beta=1.0"), grid=ONE),
        "reference": Arm("", "", overrides=("--config.train.algorithm=awm", "--config.train.beta=0.1"), grid=ONE),
        "few": Arm("", "", overrides=("--config.train.algorithm=awm", "--config.train.train_timesteps=1"), grid=ONE),
    }
    work = {name: each.operations for (name, _), each in arm_work(arms, SETTINGS).items()}
    assert work["few"] < work["plain"] < work["anchor"] < work["reference"]


def test_mistakes_name_the_arm():
    with pytest.raises(ValueError, match=r"arm x, setting only: .*train.learning_rate=-1"):
        arm_work({"x": Arm("", "", overrides=("--config.train.learning_rate=-1.0",), grid=ONE)}, SETTINGS)
    with pytest.raises(ValueError, match=r"arm x, setting only: unknown train.algorithm 'nothing'"):
        arm_work({"x": Arm("", "", overrides=("--config.train.algorithm=nothing",), grid=ONE)}, SETTINGS)


def test_more_prompts_than_the_test_file_has_are_refused():
    few = settings(images=64, evaluations=1, overrides=SMALL, prompts=240)
    arm = {"x": Arm("", "", grid=ONE)}
    arm_work(arm, few)
    with pytest.raises(ValueError, match="--prompts 241 is more than the 240 of dataset/shapes"):
        arm_work(arm, settings(images=64, evaluations=1, overrides=SMALL, prompts=241))


@pytest.mark.parametrize("images, nearest", [(300, "256 or 512"), (100, "256 or 512"), (2559, "2304 or 2560")])
def test_a_budget_that_is_no_whole_number_of_epochs_names_the_nearest(images: int, nearest: str):
    with pytest.raises(ValueError, match=f"--images {images} .*use {nearest}"):
        num_epochs(Work(256, 1.0), settings(images=images), "x", "final")
    with pytest.raises(ValueError, match=f"--tuning-images {images} .*use {nearest}"):
        num_epochs(Work(256, 1.0), settings(tuning_images=images), "x", "tune")


@pytest.mark.parametrize("images, epochs", [(256, 1), (512, 1), (768, 2), (2560, 5)])
def test_tuning_takes_half_of_the_images_in_whole_epochs(images: int, epochs: int):
    assert num_epochs(Work(256, 1.0), settings(images=images), "x", "tune") == epochs


def test_tuning_takes_as_many_images_as_are_given():
    assert num_epochs(Work(256, 1.0), settings(images=2560, tuning_images=768), "x", "tune") == 3


@pytest.mark.parametrize("evaluations", [3, 4, 20])
def test_evaluations_that_do_not_divide_the_epochs_are_refused_with_those_that_do(evaluations: int):
    with pytest.raises(ValueError, match=rf"--evaluations {evaluations} .* 10 epochs .* use one of 1, 2, 5, 10\."):
        num_epochs(Work(256, 1.0), settings(images=2560, evaluations=evaluations), "x", "final")
    assert num_epochs(Work(256, 1.0), settings(images=2560, evaluations=5), "x", "final") == 10
