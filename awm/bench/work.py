"""What an epoch of an arm costs, and whether the arm is possible at all, before any run is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from awm.bench.arms import BASE, RECIPES, Arm
from awm.bench.jobs import Job, final_jobs, trainer_arguments
from awm.bench.settings import Settings
from awm.building.objects import DTYPES
from awm.command_line import parse
from awm.configuration import config_to_dict, flatten
from awm.models.flops import Costs, count_costs
from awm.models.lora import add_lora
from awm.models.weightless import load_weightless
from awm.planning.compute import epoch_work
from awm.planning.plan import make_plan


@dataclass(frozen=True, slots=True)
class Work:
    """An epoch of a run.

    Attributes:
        images: sampled and learnt from.
        operations: floating point operations, two per multiply-add: text encoders, sampling, decoding, and every
            forward and backward pass of the objective, counted on the model.
        changes: keys whose values are not the quickstart's.
    """

    images: int
    operations: float
    changes: Mapping[str, Any] = field(default_factory=dict)


def arm_work(arms: Mapping[str, Arm], settings: Settings) -> dict[tuple[str, str], Work]:
    """(arm, setting) -> work of an epoch, for the whole grid; resolves every configuration as its run will.

    Raises:
        ValueError: a configuration is not valid, or the budget is no whole number of its epochs.
    """
    work = {}
    for name, arm in arms.items():
        for setting in arm.grid:
            job = final_jobs(name, arm, setting, settings)[0]
            try:
                work[name, setting.name] = _work(job, settings)
            except ValueError as error:
                raise ValueError(f"arm {name}, setting {setting.name}: {error}") from error
            num_epochs(work[name, setting.name], settings, name)
    return work


def num_epochs(work: Work, settings: Settings, arm: str) -> int:
    """Epochs that make up the budget of images.

    Raises:
        ValueError: no whole number of them does.
    """
    epochs, rest = divmod(settings.images, work.images)
    if rest or not epochs:
        below = max(epochs, 1) * work.images
        above = below + work.images
        raise ValueError(
            f"--images {settings.images} is no multiple of the {work.images} images of an epoch of {arm}; "
            f"use {below} or {above}."
        )
    if settings.evaluations > epochs:
        raise ValueError(
            f"--evaluations {settings.evaluations} is more than the {epochs} epochs of a run; use {epochs} or fewer."
        )
    return epochs


def _work(job: Job, settings: Settings) -> Work:
    config = _resolved(job, settings)
    plan = make_plan(config, 1)
    pretrained = config.pretrained
    adapters = (config.lora_type, config.lora_rank, config.lora_alpha) if config.use_lora else None
    costs = _costs(
        pretrained.model,
        pretrained.revision,
        pretrained.max_sequence_length,
        config.mixed_precision,
        adapters,
        config.resolution,
        config.train.gradient_checkpointing,
    )
    operations = float(sum(cost * number for _, cost, number in epoch_work(plan, costs)))
    return Work(plan.sizes.images, operations, _changes(config, job, settings))


def _resolved(job: Job, settings: Settings) -> Any:
    return parse(trainer_arguments(job, settings, logdir="logs", epochs=1), program="awm-bench", purpose="")


def _changes(config: Any, job: Job, settings: Settings) -> dict[str, Any]:
    base = flatten(config_to_dict(_resolved(replace(job, words=(f"--config={RECIPES}:{BASE}",)), settings)))
    values = flatten(config_to_dict(config))
    return {key: value for key, value in values.items() if value != base[key]}


@cache
def _costs(
    model: str,
    revision: str,
    max_sequence_length: int | None,
    precision: str,
    adapters: tuple[Any, int, int] | None,
    resolution: int,
    gradient_checkpointing: bool,
) -> Costs:
    """As ``awm-train --dry_run`` counts them; the arms nearly always share them."""
    parts = load_weightless(model, revision=revision, max_sequence_length=max_sequence_length, dtype=DTYPES[precision])
    if adapters is None:
        parts.transformer.requires_grad_(True)
    else:
        lora_type, rank, alpha = adapters
        add_lora(parts.transformer, lora_type=lora_type, rank=rank, alpha=alpha, seed=0)
        parts.transformer.to(parts.autoencoder.dtype)
    return count_costs(parts, resolution=resolution, gradient_checkpointing=gradient_checkpointing)
