"""Bytes that a rank needs."""

from __future__ import annotations

import torch
from ml_collections import ConfigDict

from awm.models.flops import Costs, module_bytes
from awm.models.lora import count_lora
from awm.models.rollout_copy import RolloutCopy
from awm.models.weightless import Weightless
from awm.planning.columns import aligned
from awm.planning.plan import Plan
from awm.training.workload import groups_of

GIB, MIB = 2**30, 2**20
FLOAT32 = 4  # bytes


def memory_lines(config: ConfigDict, plan: Plan, parts: Weightless, frozen: int, costs: Costs) -> list[str]:
    """What a rank of a DDP run holds, item by item.

    Args:
        config: the configuration.
        plan: of its epochs.
        parts: the model, with its adapters.
        frozen: bytes of the transformer without them.
        costs: for what the backward pass keeps.
    """
    text_device, encoders, rows = config.pretrained.text_encoder_device, encoder_bytes(parts), _rows_of_a_forward(plan)
    table = [
        *([] if text_device else [("text encoders", encoders)]),
        *held(config, plan, parts, frozen),
        (f"activations of {rows} training rows, an estimate", rows * costs.saved_bytes),
    ]
    total = sum(size for _, size in table)
    table.append(("together, without the libraries' own", total))
    if text_device:
        table.append((f"text encoders, on {text_device}", encoders))
    unit, name = (GIB, "GiB") if total >= GIB else (MIB, "MiB")
    note = "as DDP holds it; FSDP2 and ZeRO spread weights, gradients and moments over the ranks"
    cells: list[tuple[str, ...]] = [(what, f"{size / unit:.2f}") for what, size in table]
    return [f"{name} per rank ({note})", *aligned(cells, numbers=True)]


def held(config: ConfigDict, plan: Plan, parts: Weightless, frozen: int) -> list[tuple[str, int]]:
    """What a rank holds all the time, item by item, but for text encoders; the arguments are those above."""
    sizes, merges = plan.sizes, bool(config.sample.merge_lora)
    groups = max(len(groups_of(rank, sizes)) for rank in range(sizes.world_size))
    return [
        ("transformer" + (", frozen" if config.use_lora else ", cast for computing"), frozen),
        ("autoencoder", module_bytes(parts.autoencoder)),
        _trained(config, plan, parts),
        *([(f"merged copy for sampling{', in 8 bits' * config.sample.fp8}", _copy(config, parts))] * merges),
        (f"latents of {sizes.images_per_rank} images", sizes.images_per_rank * _sample_bytes(config, plan, parts)),
        (f"embeddings of {groups} prompts", groups * _prompt_bytes(parts)),
    ]


def encoder_bytes(parts: Weightless) -> int:
    """The text encoders' weights."""
    return sum(module_bytes(encoder) for encoder in parts.text_encoders)


def _copy(config: ConfigDict, parts: Weightless) -> int:
    """The weights that sampling has of its own."""
    return RolloutCopy(parts.transformer, fp8=config.sample.fp8).own_bytes()


def _trained(config: ConfigDict, plan: Plan, parts: Weightless) -> tuple[str, int]:
    """Everything there is once per trained number, in float32."""
    numbers = sum(parameter.numel() for parameter in parts.transformer.parameters() if parameter.requires_grad)
    sets = _weight_sets(config, plan)
    what = f"LoRA on {count_lora(parts.transformer)} modules" if config.use_lora else "the transformer"
    label = f"{what}, {numbers / 1e6:.2f} M numbers: {', '.join(sets)}"
    return label, int(numbers * FLOAT32 * sum(sets.values()))


def _weight_sets(config: ConfigDict, plan: Plan) -> dict[str, float]:
    """What is held of every trained number, in units of a float32."""
    sets = {"current": 1.0, "gradient": 1.0, "anchor": 1.0, "average": 1.0}
    if plan.keeps_rollout_weights and plan.sizes.updates_per_epoch > 1:
        sets["rollout"] = 1.0
    if not config.use_lora:
        sets["reference"] = 1.0
    return sets | ({"8-bit moments": 0.5} if config.train.use_8bit_adam else {"two moments": 2.0})


def _rows_of_a_forward(plan: Plan) -> int:
    sizes = plan.sizes
    images = min(sizes.micro_batch_size, sizes.images_per_rank // sizes.updates_per_pass)
    return int(images * plan.training.trained / sizes.num_passes)


def _sample_bytes(config: ConfigDict, plan: Plan, parts: Weightless) -> int:
    latent = torch.Size(parts.latent_shape(config.resolution)).numel() * FLOAT32
    return latent * plan.latents_kept


def _prompt_bytes(parts: Weightless) -> int:
    config, tokens = parts.transformer.config, parts.clip_tokens + parts.t5_tokens
    numbers = tokens * config.joint_attention_dim + config.pooled_projection_dim
    return int(numbers * parts.transformer.dtype.itemsize)
