"""One constructor for each plug-in: which values of the configuration become which arguments."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn

from awm.configuration import default_config
from awm.data.prompts import PromptSet
from awm.flow.times import edit_ends, shifted_grid
from awm.interfaces import Objective, Policy, Reward, Sampler, WeightSet
from awm.models.policy import Policy as SD3Policy
from awm.models.sd3 import SD3
from awm.models.weightless import Weightless, load_weightless
from awm.models.weights import find_transformer
from awm.objectives.forward_process import ForwardProcess
from awm.rewards.mixture import MixtureReward
from awm.rewards.table import make_mixture
from awm.training.distributed import Distributed
from awm.training.evaluation import Evaluation
from awm.training.rollout import Rollout
from awm.validation import OBJECTIVES, SAMPLERS, rollout_sampler

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_objective(config: ConfigDict) -> Objective:
    """The objective ``train.algorithm`` names, with those of its arguments that are keys of ``train``.

    An argument ``forward`` is what objectives on the forward process share, made from the same keys.
    """
    settings = config.train.to_dict() | {
        "grid": shifted_grid(config.sample.num_steps, config.time_shift),
        "time_type": config.time_type,
        "time_shift": config.time_shift,
        "guidance_scale": config.sample.guidance_scale if config.train.cfg else 1.0,
    }
    kind = OBJECTIVES.load(config.train.algorithm)
    if "forward" in inspect.signature(kind).parameters:
        settings["forward"] = _construct(ForwardProcess, settings)
    objective: Objective = _construct(kind, settings)
    return objective


def without_effect(config: ConfigDict) -> list[str]:
    """Settings of learning rules that were changed from their defaults and that ``train.algorithm`` does not take.

    ``train.ema_beta`` counts also at its default, which is a pull that one may rely on; what the trainer itself
    uses does not.
    """
    taken = _keys_of(OBJECTIVES.load(config.train.algorithm))
    known = set().union(*(_keys_of(OBJECTIVES.load(name)) for name in OBJECTIVES))
    train, default = config.train.to_dict(), default_config().train.to_dict()
    of_objectives = known - taken - {"advantage_max", "off_policy", "batch_size"}
    changed = {key for key in train.keys() & of_objectives if train[key] != default[key]}
    if train["ema_beta"] > 0 and "ema_beta" not in taken:
        changed.add("ema_beta")
    return sorted(f"train.{key}" for key in changed)


def _keys_of(objective: Callable[..., Any]) -> set[str]:
    names = set(inspect.signature(objective).parameters)
    return names | set(inspect.signature(ForwardProcess).parameters) if "forward" in names else names


def build_sampler(config: ConfigDict, name: str, num_steps: int) -> Sampler:
    """A sampler over ``num_steps`` steps of the SD3 grid, without a window: one that is the same in every epoch."""
    sample = config.sample
    return make_sampler(name, num_steps, config.time_shift, noise_level=sample.noise_level, sde_frac=sample.sde_frac)


def build_rollout_sampler(config: ConfigDict) -> Sampler:
    """The sampler of the rollouts, with the window of stochastic steps if ``sample.window`` asks for one."""
    sample = config.sample
    return make_sampler(
        rollout_sampler(config),
        sample.num_steps,
        config.time_shift,
        noise_level=sample.noise_level,
        sde_frac=sample.sde_frac,
        window=sample.window,
        window_size=sample.window_size,
        window_range=tuple(sample.window_range) or None,
        window_interval=sample.window_interval,
        window_stride=sample.window_stride,
    )


def make_sampler(name: str, num_steps: int, shift: float, **options: Any) -> Sampler:
    """The sampler called ``name`` on the SD3 grid, its ends edited if it says so, with those options that it has."""
    kind, grid = SAMPLERS.load(name), shifted_grid(num_steps, shift)
    if getattr(kind, "starts_below_one", False):
        grid = edit_ends(grid)
    sampler: Sampler = _construct(kind, options | {"grid": grid})
    return sampler


def set_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions on GPUs have 10 bits after the point; nothing is changed if not."""
    if allowed:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def build_model(config: ConfigDict, device: torch.device, *, full_precision: bool) -> SD3:
    """The frozen model: ``pretrained.model`` with the transformer of ``pretrained.transformer``, if there is one.

    Raises:
        ValueError: they do not fit each other or the resolution; as far as possible before weights are read.
    """
    set_tf32(config.allow_tf32)
    pretrained = config.pretrained
    weights = find_transformer(pretrained.transformer, pretrained.model, pretrained.revision)
    model = SD3.load(
        pretrained.model,
        revision=pretrained.revision,
        dtype=DTYPES[config.mixed_precision],
        transformer_dtype=torch.float32 if full_precision else None,
        device=device,
        max_sequence_length=pretrained.max_sequence_length,
        gradient_checkpointing=config.train.gradient_checkpointing,
    )
    model.latent_shape(config.resolution)  # an impossible resolution is an error now, not after the first batch
    if weights is not None:
        model.apply(weights)
    if pretrained.text_encoder_device:
        model.offload_text_encoders(pretrained.text_encoder_device)
    return model


def build_weightless(config: ConfigDict) -> Weightless:
    """The parts of ``pretrained.model`` with sizes and no contents, in the dtype they are computed in.

    Raises:
        MissingConfigError: the model's configuration is not on this machine.
    """
    pretrained = config.pretrained
    return load_weightless(
        pretrained.model,
        revision=pretrained.revision,
        max_sequence_length=pretrained.max_sequence_length,
        dtype=DTYPES[config.mixed_precision],
    )


def build_policy(
    config: ConfigDict, device: torch.device, shard: Callable[[nn.Module], None] | None = None
) -> SD3Policy:
    """The model with its weight sets; ``shard`` spreads the transformer over the ranks, in place."""
    model = build_model(config, device, full_precision=not config.use_lora)
    policy = SD3Policy(
        model,
        use_lora=config.use_lora,
        lora_type=config.lora_type,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_path=config.train.lora_path,
        seed=config.seed,
        shard=shard,
        merge_lora=config.sample.merge_lora,
        fp8=config.sample.fp8,
    )
    if config.train.compile:
        model.compile_blocks()
        if policy.rollout_copy is not None:
            model.compile_blocks(policy.rollout_copy.transformer)
    return policy


def build_optimizer(config: ConfigDict, policy: Policy) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, in 8 bits if asked."""
    train = config.train
    options: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "weight_decay": train.adam_weight_decay,
        "eps": train.adam_epsilon,
    }
    if not train.use_8bit_adam and _takes_one_kernel(config, policy):
        options["fused"] = True
    if not train.use_8bit_adam:
        return torch.optim.AdamW(policy.trainable_parameters(), **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("train.use_8bit_adam=True needs bitsandbytes: pip install bitsandbytes.") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(policy.trainable_parameters(), **options)
    return optimizer


def _takes_one_kernel(config: ConfigDict, policy: Policy) -> bool:
    """Whether AdamW can run as one kernel without changing what else a run relies on.

    On CPUs it rounds otherwise than the form that the committed results were made with. With fp16 it would skip steps
    by itself, unseen by Accelerate, which counts them.
    """
    on_gpu = all(parameter.device.type == "cuda" for parameter in policy.trainable_parameters())
    return on_gpu and config.mixed_precision != "fp16"


def build_reward(config: ConfigDict, stop: threading.Event | None = None) -> MixtureReward:
    """The weighted rewards of ``reward_fn``; once ``stop`` is set, they no longer wait for a missing server."""
    server = config.reward_server
    return make_mixture(
        config.reward_fn.to_dict(),
        list(server.urls),
        server.urls_of.to_dict(),
        timeout_s=server.timeout_s,
        max_retries=server.max_retries,
        server_wait_s=server.server_wait_s,
        allow_changed_scorer=server.allow_changed_scorer,
        token=server.token.strip() or os.environ.get("AWM_REWARD_TOKEN", ""),
        stop=stop,
    )


def build_evaluation(
    config: ConfigDict,
    policy: Policy,
    reward: Reward,
    distributed: Distributed,
    prompts: PromptSet,
    weights: WeightSet,
    stop: threading.Event | None = None,
) -> Evaluation:
    """The evaluation of one weight set on ``prompts``; once ``stop`` is set, it no longer waits for scores."""
    rollout = Rollout(
        policy=policy,
        sampler=build_sampler(config, config.sample.eval_sampler, config.sample.eval_num_steps),
        reward=reward,
        distributed=distributed,
        batch_size=config.sample.test_batch_size,
        resolution=config.resolution,
        guidance_scale=config.sample.guidance_scale,
        weights=weights,
        stop=stop,
    )
    options = config.evaluation
    return Evaluation(
        rollout=rollout,
        prompts=prompts,
        distributed=distributed,
        images_per_prompt=options.num_images_per_prompt,
        max_prompts=options.max_prompts,
        num_saved_images=options.num_saved_images,
        seed=options.seed,
    )


def _construct(kind: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """``kind`` with the settings that its signature names: plug-ins take what they use."""
    return kind(**{name: settings[name] for name in inspect.signature(kind).parameters if name in settings})
