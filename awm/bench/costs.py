"""What one unit of each kind of work of a configuration's model costs, as ``awm-train --dry_run`` counts it."""

from __future__ import annotations

from typing import Any

from awm.building.objects import build_weightless
from awm.models.flops import Costs
from awm.planning.costs import add_adapters, costs_of

_KNOWN: dict[tuple[Any, ...], Costs] = {}


def model_costs(config: Any) -> Costs:
    """Operations of the model of ``config``, with its adapters; configurations with equal models share one count."""
    pretrained = config.pretrained
    adapters = (config.lora_type, config.lora_rank, config.lora_alpha) if config.use_lora else None
    key = (
        *(pretrained.model, pretrained.revision, pretrained.max_sequence_length),
        *(config.mixed_precision, adapters, config.resolution, config.train.gradient_checkpointing),
    )
    if key not in _KNOWN:
        parts = build_weightless(config)
        add_adapters(parts, config)
        _KNOWN[key] = costs_of(parts, config)
    return _KNOWN[key]
