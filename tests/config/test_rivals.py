"""Recipes of other people's algorithms: what was published, and that each of them is a whole experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ml_collections import ConfigDict

from awm.building import build_objective, build_rollout_sampler
from awm.configuration import flatten
from awm.training.geometry import require_whole_groups
from awm.training.workload import training_rows
from awm.validation import OBJECTIVES, geometry, rollout_sampler, validate
from config.awm import get_config
from config.rivals import PUBLISHED

# Of the section of its algorithm in the papers or their code.
FACTS: dict[str, dict[str, Any]] = {
    "flow_grpo": {
        **{"sample.noise_level": 0.7, "sample.num_steps": 10, "sample.guidance_scale": 4.5, "train.cfg": True},
        **{"train.beta": 0.04, "train.kl_time_scaled": True, "train.clip_range": 1e-4, "train.advantage_max": 5.0},
    },
    "flow_grpo_fast": {"sample.window_size": 2, "sample.noise_level": 0.8, "train.clip_range": 1e-5},
    "cps": {"sample.sampler": "cps", "train.kl_time_scaled": False},
    "grpo_guard": {"train.clip_range": 2e-6, "train.guard_div_dt": True},
    "mix_grpo": {"sample.num_steps": 25, "sample.window_size": 4, "sample.window_interval": 25},
    "ddpo": {"sample.num_steps": 50, "sample.noise_level": 1.0, "per_prompt_stat_tracking": False},
    "nft": {"train.nft_beta": 1.0, "train.off_policy": True, "train.kl_ema_decay": 0.5, "train.beta": 1e-4},
    "flow_awr": {"train.off_policy": True, "train.beta": 1e-4},
    "v_grpo": {"train.train_timesteps": 4, "sample.num_steps": 16, "train.group_noise": True},
    "dpo": {"train.dpo_beta": 100.0, "time_type": "logit_normal", "train.train_timesteps": 1},
    "dgpo": {"train.dgpo_beta": 100.0, "train.reference_guidance_scale": 4.5, "train.beta": 0.02},
    "crd": {"train.crd_beta": 1.0, "train.kl_ema_decay_type": "offset", "train.beta": 0.1},
    "rwr": {},
    "awr": {"train.awr_max_weight": 20.0},
    "dpmd": {},
    "qvpo": {},
}


def recipes(name: str) -> tuple[ConfigDict, ConfigDict]:
    return get_config(f"geneval_sd3_{name}_1node"), get_config(f"quickstart_{name}")


def test_every_objective_has_recipes() -> None:
    assert {*PUBLISHED, "awm", "simpo", "rfm"} == set(OBJECTIVES) and set(FACTS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    values = flatten(recipes(name)[0].to_dict())
    expected = FACTS[name] | {"train.algorithm": name, "sample.num_image_per_prompt": 12 if name == "mix_grpo" else 24}
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_valid_and_their_losses_run(name: str) -> None:
    for config in recipes(name):
        validate(config)
        sizes = geometry(config, 8 if config.resolution == 512 else 1)
        objective, sampler = build_objective(config), build_rollout_sampler(config)
        if objective.needs.whole_groups:
            require_whole_groups(sizes, name)
        rows = training_rows(objective, sampler, sizes)
        assert rows.trained > 0
        if config.resolution == 512 and not config.train.gradient_checkpointing:
            # Each keeps 1.8 GiB of activations for the backward pass; AWM's recipe has 18 of them in a forward.
            images = 1 if name == "dpo" else config.train.batch_size  # of a pair, one is in most micro-batches
            assert images * rows.trained / sizes.num_passes <= 18
        if objective.needs.trajectory:
            assert rollout_sampler(config) in ("flow_sde", "cps", "ddpm")


def test_dpo_trains_on_pairs_and_pays_for_micro_batches_without_one() -> None:
    def rows(config: ConfigDict) -> float:
        sampler = build_rollout_sampler(config)
        return training_rows(build_objective(config), sampler, geometry(config, 1)).trained

    paper, tiny = recipes("dpo")
    assert rows(tiny) == pytest.approx(4 * 2 / 8)  # four times, two images of eight
    assert rows(paper) == pytest.approx(12 / 24)  # a row in each of a group's twelve micro-batches


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tiny_recipes_differ_from_the_quickstart_in_the_algorithm_only(name: str) -> None:
    ours, base = (flatten(get_config(recipe).to_dict()) for recipe in (f"quickstart_{name}", "quickstart"))
    same = ("pretrained.model", "dataset", "resolution", "reward_fn", "num_epochs", "eval_freq", "lora_rank", "seed")
    same += ("sample.num_prompts_per_epoch", "sample.num_image_per_prompt", "sample.num_steps", "sample.guidance_scale")
    same += ("sample.eval_sampler", "sample.eval_num_steps", "train.updates_per_inner_epoch", "train.learning_rate")
    assert {key: ours[key] for key in same} == {key: base[key] for key in same}


WRONG: list[tuple[str, Callable[[ConfigDict], None], str]] = [
    ("flow_grpo", lambda c: c.sample.update(sampler="ddim"), "likelihood of the rollout's steps.*'flow_sde'"),
    ("flow_grpo", lambda c: c.sample.update(noise_level=0.0), "noise_level=0 makes it deterministic"),
    ("flow_grpo", lambda c: c.sample.update(sde_frac=0.0), "sde_frac=0 leaves none"),
    ("flow_grpo", lambda c: c.train.update(cfg=False), "set train.cfg=True, or the scale to 1"),
    ("flow_grpo_fast", lambda c: c.sample.update(window=""), "set it to 'random'"),
    ("flow_grpo_fast", lambda c: c.sample.update(window_size=8), r"window_size=8 .* steps 0 to 7 of"),
    ("mix_grpo", lambda c: c.train.update(timestep_fraction=0.9), "reaches step 24 of .* trains the first 22"),
    ("mix_grpo", lambda c: c.sample.update(window=""), "set it to 'sliding'"),
    ("cps", lambda c: c.sample.update(sampler="flow_sde"), "set sample.sampler to 'cps'"),
    ("nft", lambda c: c.train.update(off_policy=False), "set train.off_policy=True"),
    ("nft", lambda c: c.sample.update(num_image_per_prompt=1), "leaves nothing to compare"),
    ("flow_grpo", lambda c: c.train.update(timestep_fraction=0.05), "leaves no step to train"),
    ("flow_grpo", lambda c: c.sample.update(sampler="cps"), "set sample.sampler to 'flow_sde' or 'dance_sde'"),
    ("ddpo", lambda c: c.update(per_prompt_stat_tracking=True), "compares an image with all of the epoch"),
    ("cps", lambda c: c.sample.update(noise_level=1.2), r"eta of the sampler 'cps', which lies in \[0, 1\]"),
    ("flow_grpo_fast", lambda c: c.sample.update(window_range=(3,)), "window_range=.* must be empty, or the first"),
    ("nft", lambda c: c.sample.update(shared_start=True), "would all be the same image"),
    ("dpmd", lambda c: c.sample.update(global_std=False), "has no use for sample.global_std=False"),
    ("rwr", lambda c: c.sample.update(window="random"), "for which 'sa_solver' has no use"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_what_does_not_fit_says_what_does(name: str, change: Callable[[ConfigDict], None], message: str) -> None:
    config = recipes(name)[0]
    change(config)
    with pytest.raises(ValueError, match=message):
        validate(config)


@pytest.mark.parametrize("name", ["v_grpo", "dpo", "dgpo", "crd"])
def test_group_coupled_losses_need_shared_noise(name: str) -> None:
    config = recipes(name)[0]
    config.train.group_noise = False
    with pytest.raises(ValueError, match=r"train\.group_noise=True"):
        build_objective(config)
