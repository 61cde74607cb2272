"""Every configuration is resolved, and its work counted, before anything starts."""

from __future__ import annotations

import pytest
from made_up import settings

from awm.bench.arms import ARMS, Arm, Setting
from awm.bench.work import Work, arm_work, num_epochs

SMALL = ("--config.sample.num_prompts_per_epoch=4", "--config.train.updates_per_inner_epoch=1")
ONE = (Setting("only", ()),)
SETTINGS = settings(images=64, evaluations=1, overrides=SMALL)


@pytest.mark.parametrize("name", ARMS)
def test_every_setting_of_every_arm_is_a_configuration_that_the_trainer_accepts(name: str):
    work = arm_work({name: ARMS[name]}, settings(images=2560))
    assert {each.images for each in work.values()} == {256}
    assert all(each.operations > 1e11 for each in work.values())
    assert {each.changes.get("train.learning_rate", 4e-3) for each in work.values()} == {2e-3, 4e-3, 8e-3}


def test_all_arms_share_what_makes_the_comparison_fair():
    for arm in ARMS.values():
        changes = next(iter(arm_work({"x": arm}, settings(images=2560)).values())).changes
        for key in ("dataset", "pretrained.model", "reward_fn", "lora_rank", "resolution", "sample.num_steps"):
            assert key not in changes, arm.title
        assert not {key for key in changes if key.startswith(("evaluation.", "sample.eval_"))}, arm.title


def test_changes_are_what_distinguishes_an_arm_from_the_quickstart():
    arm = Arm("", "", "quickstart_simpo_exp", ("--config.train.beta=0.25",), ONE)
    work = arm_work({"x": arm, "base": Arm("", "", grid=ONE)}, SETTINGS)
    assert work["base", "only"].changes == {}
    changes = work["x", "only"].changes
    assert changes["train.algorithm"] == "simpo" and changes["train.beta"] == 0.25
    assert not {"run_name", "seed", "num_epochs"} & changes.keys()


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


@pytest.mark.parametrize("images, nearest", [(300, "256 or 512"), (100, "256 or 512"), (2559, "2304 or 2560")])
def test_a_budget_that_is_no_whole_number_of_epochs_names_the_nearest(images: int, nearest: str):
    with pytest.raises(ValueError, match=f"use {nearest}"):
        num_epochs(Work(256, 1.0), settings(images=images), "x")


def test_more_evaluations_than_epochs_are_refused():
    with pytest.raises(ValueError, match="more than the 2 epochs"):
        num_epochs(Work(256, 1.0), settings(images=512, evaluations=3), "x")
    assert num_epochs(Work(256, 1.0), settings(images=512, evaluations=2), "x") == 2
