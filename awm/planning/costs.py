"""What a configuration's model costs, without its weights."""

from __future__ import annotations

from typing import Any

from awm.models.flops import Costs, count_costs, module_bytes
from awm.models.lora import add_lora
from awm.models.weightless import Weightless


def add_adapters(parts: Weightless, config: Any) -> int:
    """Make the transformer trainable as ``config`` says; the bytes of what it was before."""
    frozen = module_bytes(parts.transformer)
    if config.use_lora:
        add_lora(parts.transformer, lora_type=config.lora_type, rank=config.lora_rank, alpha=config.lora_alpha, seed=0)
        parts.transformer.to(parts.autoencoder.dtype)  # autocast computes adapters in the model's precision
    else:
        parts.transformer.requires_grad_(True)
    return frozen


def costs_of(parts: Weightless, config: Any) -> Costs:
    """Operations and bytes of ``parts`` after ``add_adapters``."""
    return count_costs(parts, resolution=config.resolution, gradient_checkpointing=config.train.gradient_checkpointing)
