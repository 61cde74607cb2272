"""Two runs have the same digest exactly if they may stand side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from made_up import GRID, an_arm, settings
from ml_collections import ConfigDict

from awm.bench import identity
from awm.bench.arms import ARMS, Arm
from awm.bench.identity import changes, digest, resolved
from awm.bench.jobs import final_jobs, tuning_jobs

ARM = an_arm("awm")
SETTINGS = settings(images=2560)
JOB, OTHER_SEED = final_jobs("a", ARM, GRID[0], SETTINGS)[:2]


def test_a_seed_is_no_difference():
    assert digest(JOB, SETTINGS) == digest(OTHER_SEED, SETTINGS)


def test_the_seeds_of_the_folder_and_how_it_is_read_are_none_either():
    assert digest(JOB, SETTINGS) == digest(JOB, replace(SETTINGS, seeds=(7,), second_seeds=(), seconds=3.0))


@pytest.mark.parametrize(
    "words", [("--config.reward_server.urls=('http://x:1',)",), ("--config.run_name=x", "--config.logdir=y")]
)
def test_where_it_runs_is_none(words: tuple[str, ...]):
    assert digest(JOB, SETTINGS) == digest(JOB, replace(SETTINGS, overrides=words))


@pytest.mark.parametrize(
    "other",
    [
        replace(SETTINGS, images=512),
        replace(SETTINGS, evaluations=2),
        replace(SETTINGS, prompts=60),
        replace(SETTINGS, precision="fp16"),
        replace(SETTINGS, overrides=("--config.train.max_grad_norm=2.0",)),
    ],
)
def test_a_setting_of_the_comparison_is_one(other):
    assert digest(JOB, SETTINGS) != digest(JOB, other)


def test_any_key_of_the_configuration_is_one():
    arm = Arm("x", "", overrides=(*ARM.overrides, "--config.sample.eval_num_steps=20"), grid=GRID)
    assert digest(JOB, SETTINGS) != digest(final_jobs("a", arm, GRID[0], SETTINGS)[0], SETTINGS)


def test_a_key_that_a_later_version_adds_leaves_results_valid(monkeypatch: pytest.MonkeyPatch):
    before, default, resolved = digest(JOB, SETTINGS), identity.default_config, identity.resolved

    def with_key(value: str):
        def make(*arguments: Any) -> ConfigDict:
            config = resolved(*arguments)
            with config.unlocked():
                config.new_key = value
            return config

        identity._configuration.cache_clear()
        monkeypatch.setattr(identity, "resolved", make)

    def default_with_key() -> ConfigDict:
        config = default()
        with config.unlocked():
            config.new_key = "as before"
        return config

    monkeypatch.setattr(identity, "default_config", default_with_key)
    try:
        with_key("as before")
        assert digest(JOB, SETTINGS) == before
        with_key("otherwise")
        assert digest(JOB, SETTINGS) != before
    finally:
        identity._configuration.cache_clear()


def test_a_tuning_run_depends_on_its_own_budget_alone():
    job = tuning_jobs("a", ARM, SETTINGS)[0]
    assert digest(job, SETTINGS) != digest(JOB, SETTINGS)
    given = replace(SETTINGS, tuning_images=512)
    assert digest(job, given) != digest(job, SETTINGS) and digest(JOB, given) == digest(JOB, SETTINGS)


def test_every_arm_samples_with_its_adapters_apart():
    configurations = [resolved(arm.words(arm.grid[0]), SETTINGS, name) for name, arm in ARMS.items()]
    assert {configuration.sample.merge_lora for configuration in configurations} == {False}


def test_changes_are_what_distinguishes_an_arm_from_the_quickstart():
    plain = Arm("", "", grid=GRID[:1])
    arm = Arm("", "", "quickstart_simpo_exp", ("--config.train.beta=0.25",), grid=GRID[:1])
    assert changes(final_jobs("x", plain, GRID[0], SETTINGS)[0], SETTINGS) == {"train.learning_rate": 1e-3}
    found = changes(final_jobs("x", arm, GRID[0], SETTINGS)[0], SETTINGS)
    assert found["train.algorithm"] == "simpo" and found["train.beta"] == 0.25
    assert not {"run_name", "seed", "num_epochs"} & found.keys()
