"""The valid values of every key that has a range or a list of names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from awm.training.averaging import ANCHOR_SCHEDULES

Rule = tuple[Callable[[Any], bool], str]
POSITIVE: Rule = (lambda v: 0 < v < math.inf, "a finite number greater than 0")


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
    "sample.train_batch_size": at_least(0),
    "sample.test_batch_size": at_least(0),
    "sample.num_image_per_prompt": at_least(1),
    "sample.num_prompts_per_epoch": at_least(1),
    "sample.num_batches_per_epoch": at_least(1),
    "sample.noise_level": at_least(0),
    "sample.sde_frac": within(0, 1),
    "sample.window": one_of("", "random", "sliding", "decay", "exp_decay"),
    "sample.window_range": (
        lambda v: len(v) in (0, 2) and all(isinstance(i, int) for i in v),
        "empty, or the first step and the one after the last, such as (0, 5)",
    ),
    "sample.window_size": at_least(1),
    "sample.window_interval": at_least(1),
    "sample.window_stride": at_least(1),
    "sample.max_reward_gap": more_than(0),
    "train.batch_size": at_least(0),
    "train.updates_per_inner_epoch": at_least(1),
    "train.gradient_accumulation_steps": at_least(1),
    "train.num_batches_per_epoch": at_least(1),
    "train.num_inner_epochs": at_least(1),
    "train.old_policy": one_of("rollout", "current"),
    "train.train_timesteps": at_least(1),
    "train.kl_timesteps": at_least(1),
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
    "train.kl_ema_decay_type": one_of(*ANCHOR_SCHEDULES),
    "train.simpo_weighting": one_of("exp", "linear", "square", "power", "wd1"),
    "train.simpo_floor": (lambda v: -math.inf < v <= 0, "a finite number, at most 0"),
    "train.simpo_power": POSITIVE,
    "train.simpo_temperature": POSITIVE,
    "train.simpo_target_kl": more_than(0),
    "train.simpo_target_entropy": more_than(0),
    "train.simpo_min_temperature": (lambda v: 0 < v < 1e6, "greater than 0 and below 1e6"),
    "train.simpo_pull": at_least(0),
    "train.simpo_error_clip": more_than(0),
    "train.rfm_estimator": one_of("noise", "gradient", "combined"),
    "train.rfm_temperature": POSITIVE,
    "train.rfm_score": one_of("policy", "gaussian"),
    "train.rfm_form": one_of("weighted", "anchored"),
    "train.rfm_gradient_clip": at_least(0),
    "train.rfm_score_time": (lambda v: 0 < v < 1, "greater than 0 and below 1"),
    "train.reference_guidance_scale": at_least(0),
    "train.sde_steps": at_least(1),
    "train.nft_beta": POSITIVE,
    "train.flow_awr_max": POSITIVE,
    "train.vgrpo_soft_clip": POSITIVE,
    "train.vgrpo_kl": at_least(0),
    "train.rwr_temperature": POSITIVE,
    "train.awr_temperature": POSITIVE,
    "train.awr_max_weight": POSITIVE,
    "train.dpmd_temperature": POSITIVE,
    "train.dpo_beta": POSITIVE,
    "train.dgpo_beta": POSITIVE,
    "train.dgpo_clip": POSITIVE,
    "train.crd_beta": POSITIVE,
    "train.crd_loss": one_of("mse", "bce"),
    "train.crd_weight_temperature": POSITIVE,
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
