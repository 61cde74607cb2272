from __future__ import annotations

from typing import Any

import pytest

from awm.building import build_objective, build_sampler
from awm.building.trainer import check_fast_sampling
from awm.configuration import flatten
from awm.validation import geometry, rollout_sampler, validate
from config.awm import RECIPES, get_config
from config.rivals import PUBLISHED

SHARED = {
    "pretrained.model": "stabilityai/stable-diffusion-3.5-medium",
    "resolution": 512,
    "mixed_precision": "bf16",
    "sample.num_image_per_prompt": 24,
    "sample.num_steps": 14,
    "sample.eval_num_steps": 40,
    "sample.guidance_scale": 1.0,
    "sample.sde_frac": 0.0,
    "sample.global_std": True,
    "train.algorithm": "awm",
    "train.use_sa_solver": True,
    "train.train_timesteps": 6,
    "train.timestep_fraction": 0.9,
    "train.learning_rate": 3e-4,
    "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.999,
    "train.adam_weight_decay": 1e-4,
    "train.adam_epsilon": 1e-8,
    "train.max_grad_norm": 1.0,
    "train.ema_beta": 1.0,
    "train.kl_ema_decay": 0.3,
    "train.kl_ema_decay_type": "linear",
    "train.weighting": "ghuber",
    "train.ghuber_power": 0.25,
    "train.loss_type": "exp_first",
    "train.advantage_max": 1.0,
    "train.adv_clip_max": 5.0,
    "train.clip_range": 1.0,
    "train.ema": True,
    "train.ema_decay": 0.99,
    "train.cfg": False,
    "train.off_policy": False,
    "use_lora": True,
    "lora_type": "attn",
    "lora_rank": 32,
    "lora_alpha": 64,
}
OWN: dict[str, dict[str, Any]] = {
    "geneval": {
        "prompt_fn": "geneval",
        "sample.num_prompts_per_epoch": 72,
        "sample.noise_level": 0.4,
        "time_type": "discrete_wo_init",
        "train.beta": 0.001,
    },
    "ocr": {
        "prompt_fn": "general_ocr",
        "sample.num_prompts_per_epoch": 72,
        "sample.noise_level": 0.4,
        "time_type": "discrete_wo_init",
        "train.beta": 0.003,
    },
    "pickscore": {
        "prompt_fn": "pickscore",
        "sample.num_prompts_per_epoch": 24,
        "sample.noise_level": 0.0,
        "time_type": "discrete",
        "train.beta": 0.0001,
    },
}
RIVALS = [recipe for name in PUBLISHED for recipe in (f"geneval_sd3_{name}_1node", f"quickstart_{name}")]
SD3_RECIPES = [name for name in RECIPES if "_sd3_" in name and name not in RIVALS]
AWM_RECIPES = [name for name in SD3_RECIPES if "_no_cfg_" in name]
# What a recipe of another algorithm changes in AWM's, beside the name.
UNIFORM = {"train.weighting": "Uniform"}
SIMPO = {"train.algorithm": "simpo", "train.ema_beta": 0.0, **UNIFORM}
RFM = {"train.algorithm": "rfm", **UNIFORM}
WEIGHTS: dict[str, dict[str, Any]] = {
    "exp": {},
    "linear": {"train.simpo_weighting": "linear"},
    "square": {"train.simpo_weighting": "square"},
    "linear_neg": {"train.simpo_weighting": "linear", "train.simpo_floor": -0.5},
    "square_neg": {"train.simpo_weighting": "square", "train.simpo_floor": -0.5},
}
TINY = {"train.simpo_target_kl": 0.5, "train.old_policy": "rollout"}
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "pickscore_sd3_rfm_1node": ("pickscore_sd3_no_cfg_1node", RFM),
    "pickscore_sd3_rfm_gradient_1node": (
        "pickscore_sd3_no_cfg_1node",
        RFM | {"train.rfm_estimator": "combined", "reward_fn": {"differentiable_pickscore": 1.0}},
    ),
    "quickstart_rfm": ("quickstart", RFM),
    **{
        f"geneval_sd3_simpo_{kind}_1node": ("geneval_sd3_no_cfg_1node", SIMPO | weights)
        for kind, weights in WEIGHTS.items()
    },
    **{f"quickstart_simpo_{kind}": ("quickstart", SIMPO | TINY | weights) for kind, weights in WEIGHTS.items()},
}


def test_the_recipes_of_the_awm_readme_and_the_quickstart_exist():
    tasks = [f"{task}_sd3_no_cfg_{nodes}" for task in OWN for nodes in ("1node", "4nodes")]
    assert set(RECIPES) >= {*tasks, "quickstart"}


@pytest.mark.parametrize("name", AWM_RECIPES)
def test_published_values(name: str):
    config = get_config(name)
    task = name.split("_")[0]
    values = flatten(config.to_dict())
    expected = SHARED | OWN[task] | {"reward_fn": {task: 1.0}, "dataset": f"dataset/{task}", "run_name": name}
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", CHANGES)
def test_another_algorithm_changes_nothing_but_its_own(name: str):
    base, changes = CHANGES[name]
    ours, theirs = (flatten(get_config(recipe).to_dict()) for recipe in (name, base))
    assert {key: value for key, value in ours.items() if value != theirs[key]} == changes | {"run_name": name}


def test_every_recipe_is_published_a_change_a_rival_or_the_quickstart():
    assert {*AWM_RECIPES, *CHANGES, *RIVALS, "quickstart", "quickstart_full"} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_adapters_are_merged_on_the_tiny_model_where_the_objective_allows(name: str):
    config = get_config(name)
    objective: Any = build_objective(config)
    check_fast_sampling(config, objective)
    assert config.sample.merge_lora == (name.startswith("quickstart") and not objective.needs.trajectory)


@pytest.mark.parametrize("world_size", [1, 8, 32])
@pytest.mark.parametrize("name", SD3_RECIPES)
def test_the_same_experiment_on_any_number_of_ranks(name: str, world_size: int):
    config = get_config(name)
    validate(config)
    sizes = geometry(config, world_size)
    assert sizes.images == (576 if name.startswith("pickscore") else 1728)
    assert sizes.updates_per_epoch == 1
    assert sizes.sampling_batches * world_size * config.sample.train_batch_size == sizes.images


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in RIVALS])
def test_every_recipe_builds_its_objective_and_samplers(name: str):
    config = get_config(name)
    validate(config)
    sampler: Any = build_sampler(config, rollout_sampler(config), config.sample.num_steps)
    assert rollout_sampler(config) == "sa_solver"
    assert sampler.grid[0] == pytest.approx(0.999)
    objective: Any = build_objective(config)
    assert objective.forward.noise.num_times == config.train.train_timesteps
    assert objective.forward.beta == config.train.beta


def test_an_unknown_recipe_lists_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown recipe 'quickstrat'.*Did you mean 'quickstart'"):
        get_config("quickstrat")
