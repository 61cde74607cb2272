"""Every configuration value checked once, before anything expensive starts."""

from __future__ import annotations

from ml_collections import ConfigDict

from awm.configuration import flatten
from awm.data.prompts import PROMPT_FNS
from awm.registry import nearest
from awm.training.geometry import Geometry, resolve_geometry
from awm.validation.algorithms import check_algorithm
from awm.validation.rules import RULES
from awm.validation.tables import BOUNDED, OBJECTIVES, SAMPLERS, STEPWISE, TRACKERS, rollout_sampler


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
    _check_window(config)
    _check_noise(config)
    check_algorithm(config)
    _check_combinations(config)
    _check_open_sizes(config)


def geometry(config: ConfigDict, world_size: int) -> Geometry:
    """Sizes of an epoch on this many ranks; see :func:`awm.training.geometry.resolve_geometry`.

    A batch size of 0, to be found when the model is there, stands as 1; nothing else depends on it.
    """
    return resolve_geometry(
        world_size=world_size,
        images_per_prompt=config.sample.num_image_per_prompt,
        num_prompts=config.sample.num_prompts_per_epoch,
        sampling_batches=config.sample.num_batches_per_epoch,
        sample_batch_size=config.sample.train_batch_size or 1,
        micro_batch_size=config.train.batch_size or 1,
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
    _check_fast_sampling(config)
    if config.train.old_policy == "current" and config.train.off_policy:
        raise ValueError("train.off_policy=True measures ratios to the anchor; use train.old_policy='rollout' with it.")
    if config.per_prompt_stat_tracking and config.sample.num_image_per_prompt == 1:
        raise ValueError(
            "sample.num_image_per_prompt=1 with per_prompt_stat_tracking=True makes every advantage zero; sample at "
            "least 2 images per prompt, or set per_prompt_stat_tracking=False."
        )
    if config.train.cfg and config.sample.guidance_scale == 1.0:
        raise ValueError("train.cfg=True trains the guided velocity, but sample.guidance_scale is 1.0 (no guidance).")


def _check_fast_sampling(config: ConfigDict) -> None:
    if config.sample.merge_lora and not config.use_lora:
        raise ValueError("sample.merge_lora=True merges the LoRA, but use_lora is False; set one of them back.")
    if not config.sample.fp8:
        return
    if not config.sample.merge_lora:
        raise ValueError("sample.fp8=True computes with the merged weights; set sample.merge_lora=True with it.")
    if config.mixed_precision != "bf16":
        raise ValueError(
            f"sample.fp8=True has products that end in bfloat16, but mixed_precision={config.mixed_precision!r}; set "
            f"it to 'bf16'."
        )


def _check_open_sizes(config: ConfigDict) -> None:
    """A batch size that is found at start can decide nothing about the experiment."""
    for size, others, instead in (
        ("sample.train_batch_size", ("sample.num_batches_per_epoch",), "sample.num_prompts_per_epoch"),
        (
            "train.batch_size",
            ("train.gradient_accumulation_steps", "train.num_batches_per_epoch"),
            "train.updates_per_inner_epoch",
        ),
    ):
        values = flatten(config.to_dict())
        for key in others:
            if values[size] == 0 and values[key] is not None:
                raise ValueError(
                    f"{size}=0 lets the run find the largest batch that fits, but {key}={values[key]} counts in such "
                    f"batches; unset it and say the same with {instead}, or give {size} a number."
                )


def _check_window(config: ConfigDict) -> None:
    sample, sampler = config.sample, rollout_sampler(config)
    if not sample.window:
        return
    if sampler not in STEPWISE:
        raise ValueError(
            f"sample.window={sample.window!r} says which steps are stochastic, for which {sampler!r} has no "
            f"use; set sample.sampler to one of {', '.join(map(repr, STEPWISE))}, or sample.window to ''."
        )
    # Noise in the last step would stay in the image; a walk that ends there knows no such step.
    end_of_all = sample.num_steps - (sampler in BOUNDED)
    first, end = tuple(sample.window_range) or (0, sample.num_steps - 1)
    if not 0 <= first < end <= end_of_all or end - first < sample.window_size:
        raise ValueError(
            f"a window of sample.window_size={sample.window_size} steps does not fit into steps {first} to {end} of "
            f"sample.num_steps={sample.num_steps}; make it smaller, or sample.window_range wider (at most "
            f"(0, {end_of_all}))."
        )


def _check_noise(config: ConfigDict) -> None:
    sample, sampler = config.sample, rollout_sampler(config)
    for name in (sampler, sample.eval_sampler):
        if name in BOUNDED and sample.noise_level > 1:
            raise ValueError(
                f"sample.noise_level={sample.noise_level:g} is the eta of the sampler {name!r}, which lies in [0, 1]; "
                f"lower it, or take another sampler."
            )
    stochastic = sample.noise_level > 0 and sampler != "ddim"
    if sampler in STEPWISE and not sample.window:
        stochastic = stochastic and sample.sde_frac > 0
    if sample.shared_start and not stochastic:
        raise ValueError(
            "sample.shared_start=True starts a prompt's images from the same noise, and the rollout adds none, so that "
            "they would all be the same image; set it to False, or use a stochastic sampler with sample.noise_level "
            "above 0."
        )
