"""Every configuration value checked once, before anything expensive starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from awm.configuration import flatten
from awm.data.prompts import PROMPT_FNS
from awm.registry import Registry, nearest
from awm.training.geometry import Geometry, resolve_geometry

Rule = tuple[Callable[[Any], bool], str]

SAMPLERS = Registry(
    "sampler",
    {
        "sa_solver": "awm.samplers.sa_solver:SASolver",
        "ddim": "awm.samplers.ddim:DDIM",
        "flow_sde": "awm.samplers.flow_sde:FlowSDE",
    },
)
OBJECTIVES = Registry(
    "train.algorithm",
    {
        "awm": "awm.objectives.awm:AWM",
        "simpo": "awm.objectives.simpo:SiMPO",
        "rfm": "awm.objectives.rfm:RFM",
    },
)
TRACKERS = ("wandb", "tensorboard", "none")


def at_least(low: float) -> Rule:
    """A number not below ``low``."""
    return (lambda v: v >= low, f"at least {low:g}")


def more_than(low: float) -> Rule:
    """A number above ``low``."""
    return (lambda v: v > low, f"greater than {low:g}")


def within(low: float, high: float) -> Rule:
    """A number in [low, high]."""
    return (lambda v: low <= v <= high, f"between {low:g} and {high:g}")


def one_of(*names: str) -> Rule:
    """One of a few names."""
    return (lambda v: v in names, "one of " + ", ".join(repr(n) for n in names))


RULES: dict[str, Rule] = {
    "seed": at_least(0),
    "num_epochs": at_least(1),
    "save_freq": at_least(1),
    "eval_freq": at_least(0),
    "num_checkpoint_limit": at_least(1),
    "mixed_precision": one_of("no", "fp16", "bf16"),
    "lora_type": one_of("attn", "ffn", "all"),
    "lora_rank": at_least(1),
    "lora_alpha": more_than(0),
    "resolution": at_least(8),
    "time_type": one_of("discrete", "discrete_wo_init", "discrete_with_init", "uniform", "logit_normal"),
    "time_shift": more_than(0),
    "pretrained.max_sequence_length": at_least(1),
    "sample.num_steps": at_least(2),
    "sample.eval_num_steps": at_least(2),
    "sample.guidance_scale": at_least(0),
    "sample.train_batch_size": at_least(1),
    "sample.test_batch_size": at_least(1),
    "sample.num_image_per_prompt": at_least(1),
    "sample.num_prompts_per_epoch": at_least(1),
    "sample.num_batches_per_epoch": at_least(1),
    "sample.noise_level": at_least(0),
    "sample.sde_frac": within(0, 1),
    "train.batch_size": at_least(1),
    "train.updates_per_inner_epoch": at_least(1),
    "train.gradient_accumulation_steps": at_least(1),
    "train.num_batches_per_epoch": at_least(1),
    "train.num_inner_epochs": at_least(1),
    "train.old_policy": one_of("rollout", "current"),
    "train.train_timesteps": at_least(1),
    "train.timestep_fraction": (lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    "train.learning_rate": more_than(0),
    "train.adam_beta1": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "train.adam_beta2": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "train.adam_weight_decay": at_least(0),
    "train.adam_epsilon": more_than(0),
    "train.max_grad_norm": more_than(0),
    "train.beta": at_least(0),
    "train.kl_weight": one_of("Uniform", "ELBO"),
    "train.clip_range": more_than(0),
    "train.adv_clip_max": more_than(0),
    "train.advantage_max": more_than(0),
    "train.loss_type": one_of("exp_first", "sum_first"),
    "train.weighting": one_of("Uniform", "t", "t**2", "huber", "ghuber"),
    "train.ghuber_power": (lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    "train.ema_beta": at_least(0),
    "train.kl_ema_weight": one_of("Uniform", "ELBO"),
    "train.kl_ema_decay": within(0, 1),
    "train.kl_ema_decay_type": one_of("constant", "linear"),
    "train.simpo_weighting": one_of("exp", "linear", "square", "power", "wd1"),
    "train.simpo_floor": (lambda v: -math.inf < v <= 0, "a finite number, at most 0"),
    "train.simpo_power": (lambda v: 0 < v < math.inf, "a finite number greater than 0"),
    "train.simpo_temperature": (lambda v: 0 < v < math.inf, "a finite number greater than 0"),
    "train.simpo_target_kl": more_than(0),
    "train.simpo_target_entropy": more_than(0),
    "train.simpo_min_temperature": (lambda v: 0 < v < 1e6, "greater than 0 and below 1e6"),
    "train.simpo_pull": at_least(0),
    "train.simpo_error_clip": more_than(0),
    "train.rfm_estimator": one_of("noise", "gradient", "combined"),
    "train.rfm_temperature": (lambda v: 0 < v < math.inf, "a finite number greater than 0"),
    "train.rfm_score": one_of("policy", "gaussian"),
    "train.rfm_form": one_of("weighted", "anchored"),
    "train.rfm_gradient_clip": at_least(0),
    "train.rfm_score_time": (lambda v: 0 < v < 1, "greater than 0 and below 1"),
    "train.ema_decay": within(0, 1),
    "train.ema_update_step_interval": at_least(1),
    "evaluation.num_images_per_prompt": at_least(1),
    "evaluation.max_prompts": at_least(0),
    "evaluation.num_saved_images": at_least(0),
    "evaluation.seed": at_least(0),
    "guardrails.zero_std_ratio": within(0, 1),
    "guardrails.invalid_fraction": within(0, 1),
    "guardrails.velocity_norm_low": within(0, 1),
    "guardrails.velocity_norm_high": at_least(1),
    "guardrails.repeat_epochs": at_least(1),
    "reward_server.timeout_s": more_than(0),
    "reward_server.max_retries": at_least(0),
    "reward_server.server_wait_s": at_least(0),
    "reward_server.max_invalid_fraction": within(0, 1),
}


def validate(config: ConfigDict) -> None:
    """Check names and ranges of every value.

    Raises:
        ValueError: the first thing that is wrong: what was given, what is valid.
    """
    values = flatten(config.to_dict())
    for key, (holds, valid) in RULES.items():
        value = values[key]
        if value is not None and not holds(value):
            hint = nearest(value, valid.split("'")[1::2]) if isinstance(value, str) else ""
            raise ValueError(f"{key}={value!r} is not valid; it must be {valid}.{hint}")
    OBJECTIVES.check(config.train.algorithm)
    PROMPT_FNS.check(config.prompt_fn)
    for name in (rollout_sampler(config), config.sample.eval_sampler):
        SAMPLERS.check(name)
    for name in config.trackers:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}.{nearest(name, list(TRACKERS))}")
    _check_rewards(config)
    if config.train.algorithm in ("simpo", "rfm"):
        _check_groups(config)
    _check_combinations(config)
    if config.train.algorithm == "simpo":
        _check_simpo(config)
    if config.train.algorithm == "rfm":
        _check_rfm(config)


def rollout_sampler(config: ConfigDict) -> str:
    """The sampler's name: sample.sampler, or what train.use_sa_solver and sde_frac say when it is empty."""
    if config.sample.sampler:
        return str(config.sample.sampler)
    if config.train.use_sa_solver:
        return "sa_solver"
    return "flow_sde" if config.sample.sde_frac > 0 and config.sample.noise_level > 0 else "ddim"


def geometry(config: ConfigDict, world_size: int) -> Geometry:
    """Sizes of an epoch on this many ranks; see :func:`awm.training.geometry.resolve_geometry`."""
    return resolve_geometry(
        world_size=world_size,
        images_per_prompt=config.sample.num_image_per_prompt,
        num_prompts=config.sample.num_prompts_per_epoch,
        sampling_batches=config.sample.num_batches_per_epoch,
        sample_batch_size=config.sample.train_batch_size,
        micro_batch_size=config.train.batch_size,
        micro_batches_per_pass=config.train.num_batches_per_epoch,
        micro_batches_per_update=config.train.gradient_accumulation_steps,
        updates_per_pass=config.train.updates_per_inner_epoch,
        num_passes=config.train.num_inner_epochs,
    )


def _check_rewards(config: ConfigDict) -> None:
    weights = config.reward_fn.to_dict()
    if not weights:
        raise ValueError('reward_fn is empty; name at least one reward, for example {"geneval": 1.0}.')
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"reward_fn[{name!r}]={weight!r} is not a number; it is the weight of that reward.")
    if not any(weights.values()):
        raise ValueError(f"every weight in reward_fn={weights} is 0, so there is nothing to learn from.")
    for scorer, urls in config.reward_server.urls_of.to_dict().items():
        if not isinstance(urls, list | tuple) or not urls or not all(isinstance(url, str) for url in urls):
            raise ValueError(
                f"reward_server.urls_of[{scorer!r}]={urls!r} is not valid; it must be a tuple of URLs, such as "
                "('http://127.0.0.1:18080',)."
            )


def _check_combinations(config: ConfigDict) -> None:
    if not config.dataset:
        raise ValueError("dataset is empty; set it to a folder with train and test prompts, such as dataset/geneval.")
    if not config.use_lora and config.train.lora_path:
        raise ValueError("train.lora_path is set but use_lora is False; unset one of them.")
    if config.train.old_policy == "current" and config.train.off_policy:
        raise ValueError("train.off_policy=True measures ratios to the anchor; use train.old_policy='rollout' with it.")
    if config.per_prompt_stat_tracking and config.sample.num_image_per_prompt == 1:
        raise ValueError(
            "sample.num_image_per_prompt=1 with per_prompt_stat_tracking=True makes every advantage zero; sample at "
            "least 2 images per prompt, or set per_prompt_stat_tracking=False."
        )
    if config.train.cfg and config.sample.guidance_scale == 1.0:
        raise ValueError("train.cfg=True trains the guided velocity, but sample.guidance_scale is 1.0 (no guidance).")


def _check_groups(config: ConfigDict) -> None:
    algorithm = config.train.algorithm
    if config.sample.num_image_per_prompt == 1:
        raise ValueError(
            f"train.algorithm={algorithm!r} weighs the images of a prompt against each other, but "
            "sample.num_image_per_prompt=1 makes every weight one; sample at least 2 images per prompt."
        )
    if not config.per_prompt_stat_tracking:
        raise ValueError(
            f"train.algorithm={algorithm!r} weighs the images of a prompt against each other, and so has no use for "
            "per_prompt_stat_tracking=False; set it to True."
        )
    if not config.sample.global_std:
        raise ValueError(
            f"train.algorithm={algorithm!r} measures rewards in units of the epoch's standard deviation, and so has no "
            "use for sample.global_std=False; set it to True."
        )
    _check_minimum(config)


def _check_minimum(config: ConfigDict) -> None:
    """Refuse a loss that several updates would drive to minus infinity."""
    train = config.train
    if train.algorithm == "rfm":
        repels = train.rfm_centred and train.rfm_form == "weighted"
    else:
        repels = train.simpo_centred or train.simpo_weighting == "wd1" or train.simpo_floor < 0
    pulled = train.old_policy == "rollout" and (train.algorithm == "rfm" or train.simpo_pull > 0)
    several = (train.updates_per_inner_epoch or 1) * train.num_inner_epochs > 1
    if repels and several and not (pulled or train.off_policy or train.ema_beta or train.beta):
        raise ValueError(
            f"train.algorithm={train.algorithm!r} gives bad images negative coefficients, and nothing holds the policy "
            "over several updates of an epoch; set train.old_policy='rollout' (with train.simpo_pull above 0), or "
            "train.ema_beta or train.beta above 0."
        )


def _check_rfm(config: ConfigDict) -> None:
    train = config.train
    follows_score = train.rfm_estimator != "noise" and train.rfm_score == "policy"
    if follows_score and config.sample.guidance_scale != 1.0 and not train.cfg:
        raise ValueError(
            f"train.rfm_estimator={train.rfm_estimator!r} takes the policy's score from the unguided model, but "
            f"sample.guidance_scale={config.sample.guidance_scale:g} samples from another one; set it to 1.0, or "
            "train.cfg=True."
        )


def _check_simpo(config: ConfigDict) -> None:
    # Imported late: --help and typos are answered before torch is loaded.
    from awm.objectives.group_weights import TARGET_KL
    from awm.weightings import MASSLESS, Weighting

    train, count = config.train, config.sample.num_image_per_prompt
    try:
        Weighting(train.simpo_weighting, floor=train.simpo_floor, power=train.simpo_power)
    except ValueError as error:
        raise ValueError(f"train.simpo_weighting, simpo_floor and simpo_power do not fit: {error}") from error
    names = ("simpo_temperature", "simpo_target_kl", "simpo_target_entropy")
    given = {f"train.{name}": train[name] for name in names if train[name] is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are set, but each decides the temperature; set one of them.")
    if "train.simpo_temperature" in given:
        return
    if train.simpo_weighting in MASSLESS:
        if given:
            raise ValueError(
                f"{', '.join(given)} is set, but the weights of train.simpo_weighting={train.simpo_weighting!r} have "
                "mean 0 and thus no KL or entropy; set train.simpo_temperature instead."
            )
        return
    most = math.log(count)
    for name, value in (given or {"train.simpo_target_kl": TARGET_KL}).items():
        if value >= most:
            raise ValueError(
                f"{name}={value:g} is out of reach with sample.num_image_per_prompt={count}: the weights of so many "
                f"images have less than log {count} = {most:.2f} nats. Set it below that, or sample more."
            )
