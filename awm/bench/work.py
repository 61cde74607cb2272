"""What an epoch of an arm costs, and whether the arm is possible at all, before any run is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from awm.bench.arms import Arm
from awm.bench.costs import model_costs
from awm.bench.identity import resolved
from awm.bench.jobs import Job, Stage, final_jobs
from awm.bench.settings import Settings
from awm.data.prompts import load_prompts
from awm.planning.compute import epoch_work
from awm.planning.plan import make_plan


@dataclass(frozen=True, slots=True)
class Work:
    """An epoch of a run.

    Attributes:
        images: sampled and learnt from.
        operations: floating point operations, two per multiply-add: text encoders, sampling, decoding, and every
            forward and backward pass of the objective, counted on the model.
    """

    images: int
    operations: float


def arm_work(arms: Mapping[str, Arm], settings: Settings) -> dict[tuple[str, str], Work]:
    """(arm, setting) -> work of an epoch, for the whole grid; resolves every configuration as its run will.

    Raises:
        ValueError: a configuration is not valid, the budget is no whole number of its epochs, or there are fewer
            held-out prompts than asked for.
    """
    work = {}
    for name, arm in arms.items():
        for setting in arm.grid:
            job = final_jobs(name, arm, setting, settings)[0]
            work[name, setting.name] = _work(job, settings)
            num_epochs(work[name, setting.name], settings, name, "tune")
            num_epochs(work[name, setting.name], settings, name, "final")
    return work


def num_epochs(work: Work, settings: Settings, arm: str, stage: Stage) -> int:
    """Epochs that make up the budget of images of a run.

    Raises:
        ValueError: no whole number of them does, or the evaluations cannot be spread evenly over them.
    """
    if stage == "tune":
        if settings.tuning_images is None:
            return -(-settings.images // (2 * work.images))
        return _whole("--tuning-images", settings.tuning_images, work.images, arm)
    epochs = _whole("--images", settings.images, work.images, arm)
    if epochs % settings.evaluations:
        divisors = ", ".join(str(n) for n in range(1, epochs + 1) if epochs % n == 0)
        raise ValueError(
            f"--evaluations {settings.evaluations} does not divide the {epochs} epochs of a run; use one of {divisors}."
        )
    return epochs


def _whole(option: str, images: int, per_epoch: int, arm: str) -> int:
    epochs, rest = divmod(images, per_epoch)
    if rest or not epochs:
        below = max(epochs, 1) * per_epoch
        raise ValueError(
            f"{option} {images} is no multiple of the {per_epoch} images of an epoch of {arm}; "
            f"use {below} or {below + per_epoch}."
        )
    return epochs


def _work(job: Job, settings: Settings) -> Work:
    config = resolved(job.words, settings, job.label)
    _check_prompts(config.dataset, config.prompt_fn, settings.prompts)
    try:
        plan = make_plan(config, 1)
    except ValueError as error:
        raise ValueError(f"{job.label}: {error}") from error
    costs = model_costs(config)
    operations = float(sum(cost * number for _, cost, number in epoch_work(plan, costs)))
    return Work(plan.sizes.images, operations)


@cache
def _check_prompts(dataset: str, prompt_fn: str, wanted: int) -> None:
    there = len(load_prompts(Path(dataset), "test", prompt_fn))
    if wanted > there:
        raise ValueError(f"--prompts {wanted} is more than the {there} of {dataset}'s test file; use {there} or fewer.")
