from __future__ import annotations

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from awm.command_line import parse, split_dry_run
from awm.configuration import config_to_dict
from awm.validation import validate
from config.awm import get_config

ROOT = Path(__file__).parents[2]
QUICKSTART = ["--config", f"{ROOT}/config/awm.py:quickstart"]


def run(*arguments: str):
    return parse([*QUICKSTART, *arguments], program="awm-train", purpose="")


def test_overrides_reach_their_keys():
    config = run("--config.train.learning_rate=2e-4", "--config.reward_fn.jpeg_compressibility=0.5", "--config.seed=7")
    assert config.train.learning_rate == 2e-4
    assert config.reward_fn["jpeg_compressibility"] == 0.5
    assert config.seed == 7


def test_rewards_can_be_replaced_as_a_whole():
    config = run("--config.reward_fn=geneval.strict=1,jpeg_compressibility=0.5")
    assert config.reward_fn.to_dict() == {"geneval.strict": 1.0, "jpeg_compressibility": 0.5}


def test_a_scorer_can_have_servers_of_its_own(tmp_path: Path):
    key = "--config.reward_server.urls_of"
    config = run(f"{key}.geneval=http://a:1,http://b:2", f"{key}.pickscore=https://c", "--config.reward_fn.pickscore=1")
    expected = {"geneval": ("http://a:1", "http://b:2"), "pickscore": ("https://c",)}
    assert config.reward_server.urls_of.to_dict() == expected
    validate(config)
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    again = parse(
        ["--config", str(tmp_path / "config.json"), f"{key}.geneval=http://d"], program="awm-train", purpose=""
    )
    assert again.reward_server.urls_of.to_dict() == expected | {"geneval": ("http://d",)}


@pytest.mark.parametrize("urls", ["http://a", (), (1,)])
def test_a_scorer_s_servers_are_a_tuple_of_urls(urls: object):
    config = run()
    with config.unlocked():
        config.reward_server.urls_of = ConfigDict({"geneval": urls})
    with pytest.raises(ValueError, match=r"urls_of\['geneval'\]=.* must be a tuple of URLs"):
        validate(config)


def test_how_long_to_wait_for_a_server_is_a_key():
    config = run("--config.reward_server.server_wait_s=20", "--config.reward_server.allow_changed_scorer=True")
    validate(config)
    assert (config.reward_server.server_wait_s, config.reward_server.allow_changed_scorer) == (20.0, True)
    assert (run().reward_server.server_wait_s, run().reward_server.allow_changed_scorer) == (300.0, False)


def test_a_run_s_config_json_can_be_fed_back(tmp_path: Path):
    config = run("--config.train.beta=0.02")
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    again = parse(["--config", str(tmp_path / "config.json"), "--config.seed=3"], program="awm-train", purpose="")
    assert again.train.beta == 0.02
    assert again.seed == 3
    assert config_to_dict(again) | {"seed": 0} == config_to_dict(config) | {"seed": 0}


def test_the_token_is_never_written():
    assert config_to_dict(run("--config.reward_server.token=secret"))["reward_server"]["token"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.leraning_rate=1"], r"unknown configuration key 'train.leraning_rate'.*'train.learning_rate'"),
        (["--config.train.learning_rate=fast"], r"train.learning_rate=fast"),
        (["--config.sample.num_prompts_per_epoch=1.5"], r"num_prompts_per_epoch=1.5"),
        (["--config.reward_fn.geneval=high"], r"needs numbers"),
        (["--config.reward_server.urls_of.geneval"], r"needs a scorer and URLs"),
        (["--config.reward_server.urls_of.geneval=a:18080"], r"needs a scorer and URLs"),
        (["--config.reward_server.urls_of=geneval=http://a"], r"needs a scorer and URLs"),
        (["--config.seed"], r"--config.seed needs a value"),
        (["--learning_rate=1"], r"learning_rate"),
        (["surplus"], r"do not know what to do with 'surplus'"),
    ],
)
def test_mistakes_are_one_clear_message(arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        run(*arguments)


def test_a_missing_file_and_an_unknown_recipe(tmp_path: Path):
    with pytest.raises(ValueError, match="no configuration file"):
        parse(["--config", f"{tmp_path}/nothing.py:x"], program="awm-train", purpose="")
    with pytest.raises(ValueError, match="unknown recipe 'quick'"):
        parse(["--config", f"{ROOT}/config/awm.py:quick"], program="awm-train", purpose="")


def test_an_unknown_key_in_a_json_file_is_an_error(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"train": {"btea": 1}}')
    with pytest.raises(ValueError, match=r"unknown configuration key 'train.btea'. Did you mean 'beta'"):
        parse(["--config", str(tmp_path / "config.json")], program="awm-train", purpose="")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.weighting=ghubr", r"train.weighting='ghubr' is not valid.*'ghuber'.*Did you mean 'ghuber'"),
        ("train.algorithm=awmm", r"unknown train.algorithm 'awmm'; .*known: awm, .*Did you mean 'awm'"),
        ("sample.sampler=sa_slover", r"unknown sampler 'sa_slover'.*Did you mean 'sa_solver'"),
        ("prompt_fn=genval", r"unknown prompt_fn 'genval'.*Did you mean 'geneval'"),
        ("train.beta=-1.0", r"train.beta=-1.0 is not valid; it must be at least 0"),
        ("train.timestep_fraction=1.5", r"greater than 0 and at most 1"),
        ("reward_server.server_wait_s=-1.0", r"reward_server.server_wait_s=-1.0 is not valid; it must be at least 0"),
        ("sample.num_image_per_prompt=1", r"every advantage zero"),
        ("train.cfg=True", r"guidance_scale is 1.0"),
        ("trackers=('tensorbord',)", r"unknown tracker 'tensorbord'"),
    ],
)
def test_values_are_checked_before_anything_loads(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        validate(run(f"--config.{override}"))


@pytest.mark.parametrize("algorithm", ["simpo", "rfm"])
def test_every_algorithm_starts_from_the_quickstart(algorithm: str):
    validate(run(f"--config.train.algorithm={algorithm}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["simpo_weighting=lineal"], r"train.simpo_weighting='lineal' is not valid.*Did you mean 'linear'"),
        (["simpo_floor=-0.5"], r"simpo_floor.* do not fit: floor=-0.5 has no meaning for weighting 'exp'"),
        (["simpo_weighting=wd1", "simpo_floor=-0.5"], r"floor=-0.5 has no meaning for weighting 'wd1'"),
        (["simpo_weighting=linear", "simpo_floor=0.5"], r"train.simpo_floor=0.5 is not valid.*at most 0"),
        (["simpo_weighting=square", "simpo_power=3.0"], r"power=3 is an option of weighting 'power'"),
        (["simpo_weighting=power", "simpo_power=0.0"], r"train.simpo_power=0.0 is not valid"),
        (["simpo_temperature=0.0"], r"train.simpo_temperature=0.0 is not valid; it must be a finite number greater"),
        (["simpo_min_temperature=0.0"], r"train.simpo_min_temperature=0.0 is not valid"),
        (
            ["simpo_temperature=1.0", "simpo_target_kl=1.0"],
            r"train.simpo_temperature and train.simpo_target_kl are set, but each decides the temperature",
        ),
        (["simpo_target_kl=2.1"], r"train.simpo_target_kl=2.1 is out of reach with .*_per_prompt=8: .* log 8 = 2.08"),
        (["simpo_target_entropy=2.1"], r"train.simpo_target_entropy=2.1 is out of reach"),
        (["simpo_weighting=wd1", "simpo_target_kl=1.0"], r"'wd1' have mean 0 and .*; set train.simpo_temperature"),
        (["simpo_pull=-1.0"], r"train.simpo_pull=-1.0 is not valid; it must be at least 0"),
        (["simpo_error_clip=0.0"], r"train.simpo_error_clip=0.0 is not valid; it must be greater than 0"),
    ],
)
def test_simpo_s_values_are_checked_before_anything_loads(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        validate(run("--config.train.algorithm=simpo", *(f"--config.train.{override}" for override in overrides)))


@pytest.mark.parametrize("algorithm", ["simpo", "rfm"])
def test_weights_need_groups_of_several_images(algorithm: str):
    given = f"--config.train.algorithm={algorithm}"
    with pytest.raises(ValueError, match=r"num_image_per_prompt=1 leaves nothing to compare; sample at least 2"):
        validate(run(given, "--config.sample.num_image_per_prompt=1"))
    with pytest.raises(ValueError, match=r"no use for per_prompt_stat_tracking=False; set it to True"):
        validate(run(given, "--config.per_prompt_stat_tracking=False"))


def test_wd1_needs_no_target():
    given = ["--config.train.algorithm=simpo", "--config.train.simpo_weighting=wd1"]
    validate(run(*given))
    validate(run(*given, "--config.train.simpo_temperature=0.5", "--config.sample.num_image_per_prompt=4"))


def test_four_images_are_too_few_for_the_default_divergence_of_simpo():
    given = ["--config.train.algorithm=simpo", "--config.sample.num_image_per_prompt=4"]
    with pytest.raises(ValueError, match=r"train.simpo_target_kl=1.5 is out of reach.* log 4 = 1.39 nats"):
        validate(run(*given))
    validate(run(*given, "--config.train.simpo_target_kl=0.8"))
    validate(run(*given, "--config.train.simpo_target_entropy=0.8"))
    validate(run(*given, "--config.train.simpo_temperature=1"))


def test_beta_and_ema_beta_may_each_be_zero():
    validate(run("--config.train.beta=0"))
    validate(run("--config.train.ema_beta=0"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "x"], (False, None)),
        (["--config", "x", "--dry_run"], (True, None)),
        (["--dry-run", "--config", "x", "--world-size", "32"], (True, 32)),
        (["--world_size=8", "--config", "x", "--dry_run"], (True, 8)),
    ],
)
def test_a_dry_run_is_asked_for_anywhere_on_the_line(arguments: list[str], expected: tuple[bool, int | None]):
    assert split_dry_run(arguments) == (*expected, ["--config", "x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world_size", "8"], "plans for so many ranks with --dry_run.*torchrun"),
        (["--dry_run", "--world_size=0"], "--world_size=0 is no number of ranks"),
        (["--dry_run", "--world_size"], "--world_size= is no number of ranks"),
        (["--dry_run", "--world_size=-2"], "--world_size=-2 is no number"),
    ],
)
def test_a_world_size_must_be_one_and_only_plans(arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        split_dry_run(arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("algorithm=simpo",), r"negative coefficients, and nothing holds the policy"),
        (("algorithm=simpo", "simpo_pull=0", "old_policy=rollout"), r"nothing holds the policy"),
        (("algorithm=rfm",), r"negative coefficients, and nothing holds the policy"),
        (("algorithm=rfm", "rfm_temperature=inf"), r"rfm_temperature=inf is not valid"),
    ],
)
def test_a_loss_without_a_minimum_is_refused(given: tuple[str, ...], message: str):
    overrides = [f"--config.train.{word}" for word in (*given, "ema_beta=0.0", "beta=0.0")]
    with pytest.raises(ValueError, match=message):
        validate(run(*overrides))
    held = [f"--config.train.{word}" for word in (given[0], "ema_beta=0.0", "old_policy=rollout")]
    validate(run(*held))


@pytest.mark.parametrize("algorithm", ["simpo", "rfm"])
def test_scores_are_in_units_of_the_epoch(algorithm: str):
    with pytest.raises(ValueError, match=r"no use for sample.global_std=False; set it to True"):
        validate(run(f"--config.train.algorithm={algorithm}", "--config.sample.global_std=False"))


def test_reward_gradients_are_not_followed_under_guidance_that_is_not_trained():
    config = get_config("pickscore_sd3_rfm_gradient_1node")
    config.sample.guidance_scale = 4.5
    with pytest.raises(ValueError, match=r"guidance_scale=4.5 samples from another one; set it to 1.0, or train.cfg"):
        validate(config)
    config.train.cfg = True
    validate(config)
