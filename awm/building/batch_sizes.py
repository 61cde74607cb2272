"""``train.batch_size=0``, ``sample.train_batch_size=0``, ``sample.test_batch_size=0``: the largest that fit.

A GPU is asked by trials of the run's own forwards (``awm.training.trials``); for a CPU, where a process that takes too
much memory is killed rather than told, an estimate says what is safe. The answer is kept in the run folder, so that a
run that is continued on the same kind of machine computes with the same sizes, bit for bit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from awm.building.objects import build_rollout_sampler, build_weightless
from awm.building.resume import OPERATIONAL_SECTIONS
from awm.configuration import config_to_dict, copy_config, flatten
from awm.interfaces import Objective, Policy
from awm.planning.costs import add_adapters, costs_of
from awm.training.autosize import (
    CPU_SAMPLING_ROWS,
    CPU_TRAINING_ROWS,
    FLOAT32,
    ToCome,
    probe,
    sampling_sizes,
    size_for_cpu,
    training_sizes,
)
from awm.training.distributed import Distributed
from awm.training.fitting import Fit
from awm.training.geometry import Geometry
from awm.training.memory_meter import CudaMeter, MemoryMeter, available_memory
from awm.training.trials import SamplingTrial, TrainingTrial
from awm.training.workload import groups_of, training_rows
from awm.types import Condition

TRAINING, SAMPLING, EVALUATION = "train.batch_size", "sample.train_batch_size", "sample.test_batch_size"
RECORD = "batch_sizes.json"
NO_MATTER = {
    *("run_name", "logdir", "num_epochs", "save_freq", "eval_freq", "num_checkpoint_limit", "resume_from", "trackers")
}
"""Settings that an answer does not depend on."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Settled:
    """A configuration and a geometry without open sizes.

    Attributes:
        config: the one that was given, or a copy with the sizes that were found.
        sizes: likewise.
        metrics: those that were found, by name.
    """

    config: ConfigDict
    sizes: Geometry
    metrics: Mapping[str, float]


def open_sizes(config: ConfigDict) -> list[str]:
    """Keys whose value is 0."""
    values = {
        TRAINING: config.train.batch_size,
        SAMPLING: config.sample.train_batch_size,
        EVALUATION: config.sample.test_batch_size,
    }
    return [key for key, value in values.items() if value == 0]


def check_open_sizes(config: ConfigDict, objective: Objective, distributed: Distributed | None = None) -> None:
    """Refuse what cannot be found out safely, before a model is loaded.

    Raises:
        ValueError: an engine whose ranks would wait for one that ran out of memory, or memory that no trial sees.
    """
    wanted = open_sizes(config)
    if wanted and distributed is not None and distributed.engine.cuts_optimizer_state:
        raise ValueError(
            f"{', '.join(f'{key}=0' for key in wanted)}: batch sizes are found by trials of each rank alone, with "
            f"whole weights, but {distributed.engine.name} spreads them over the ranks, which would have to try "
            f"together and wait for ever for one that runs out of memory; give numbers. awm-train --dry_run "
            f"--memory_gb N proposes some, as if every rank held everything."
        )
    if TRAINING in wanted and objective.needs.reward_gradient:
        raise ValueError(
            f"train.batch_size=0 does not know what the reward's gradient needs, which is computed for as many images "
            f"at once; with train.algorithm={config.train.algorithm!r} and these settings give a number, such as 1."
        )


def settle_batch_sizes(
    config: ConfigDict,
    sizes: Geometry,
    *,
    policy: Policy,
    objective: Objective,
    distributed: Distributed,
    run: Path,
    bytes_per_number: float,
) -> Settled:
    """Find the sizes that are 0; nothing happens if none is. A collective, before the policy is wrapped.

    Args:
        config: the configuration.
        sizes: of an epoch, with 1 in the place of 0.
        policy: on its device.
        objective: as it will train, but for batch sizes.
        distributed: the ranks.
        run: the run folder, where the answer is kept.
        bytes_per_number: that will be held of every trained number, beside weights and gradient.

    Raises:
        ValueError: on all ranks, if not even one image fits.
    """
    wanted = open_sizes(config)
    if not wanted:
        return Settled(config, sizes, {})
    started, meter = time.perf_counter(), meter_of(distributed.device)
    question = _question(config, sizes, distributed)
    found: dict[str, int] | None = distributed.broadcast_object(_recorded(run, question))
    how = f"as before, from {run / RECORD}"
    if found is None:
        if meter is None:
            found, how = _for_cpu(config, sizes, wanted, objective, distributed), "by an estimate of their memory"
        else:
            fits = _by_trials(config, sizes, wanted, policy, objective, distributed, meter, bytes_per_number)
            found = {key: fit.size for key, fit in fits.items()}
            how = f"in {time.perf_counter() - started:.0f} s; " + "; ".join(map(_in_words, fits, fits.values()))
        if EVALUATION in wanted:  # an evaluation's forwards are those of a rollout
            found[EVALUATION] = found.get(SAMPLING, config.sample.train_batch_size)
        if distributed.is_main:
            _record(run, question, found)
    if distributed.is_main:
        print(f"batch sizes: {', '.join(f'{key}={size}' for key, size in found.items())}, found {how}", flush=True)
    config = copy_config(config)
    for key, size in found.items():
        section, name = key.split(".")
        config[section][name] = size
    sizes = replace(sizes, micro_batch_size=config.train.batch_size, sample_batch_size=config.sample.train_batch_size)
    return Settled(config, sizes, {f"batch_size/{key}": float(size) for key, size in found.items()})


def meter_of(device: torch.device) -> MemoryMeter | None:
    """What measures memory there; None if nothing can."""
    return CudaMeter(device) if device.type == "cuda" else None


def _by_trials(
    config: ConfigDict,
    sizes: Geometry,
    wanted: list[str],
    policy: Policy,
    objective: Objective,
    distributed: Distributed,
    meter: MemoryMeter,
    bytes_per_number: float,
) -> dict[str, Fit]:
    condition, shape = policy.model.encode([""]), policy.model.latent_shape(config.resolution)
    needs, steps = objective.needs, config.sample.num_steps
    to_come = ToCome(
        trained_numbers=sum(parameter.numel() for parameter in policy.trainable_parameters()),
        bytes_per_number=bytes_per_number,
        images=sizes.images_per_rank,
        latent_numbers=torch.Size(shape).numel(),
        latents_per_image=1 + needs.trajectory * (steps + 1) + needs.velocities * steps,
        prompts=len(groups_of(distributed.rank, sizes)),
        bytes_per_prompt=_bytes(condition),
    )
    trials: dict[str, tuple[list[int], Callable[[int], None]]] = {
        TRAINING: (
            training_sizes(sizes),
            TrainingTrial(
                policy, objective, build_rollout_sampler(config), condition, shape, sizes.images_per_prompt
            ),
        ),
        SAMPLING: (sampling_sizes(sizes), SamplingTrial(policy, condition, shape, config.sample.guidance_scale)),
    }  # fmt: skip
    fits = {
        key: probe(
            candidates,
            trial,
            meter=meter,
            to_come=to_come.bytes,
            device=distributed.device,
            distributed=distributed,
        )
        for key, (candidates, trial) in trials.items()
        if key in wanted
    }
    for key, fit in fits.items():
        if fit.size == 0:
            raise ValueError(
                f"{key}=0: memory runs out with a single image, where {fit.limit / GIB:.1f} GiB could be in use. Try "
                f"train.gradient_checkpointing=True, pretrained.text_encoder_device=cpu, or a GPU that no other "
                f"process uses."
            )
    return fits


def _in_words(key: str, fit: Fit) -> str:
    trials = f"{len(fit.tried)} trial{'s' if len(fit.tried) > 1 else ''}"
    words = f"{key}: {fit.peak / GIB:.2f} of {fit.limit / GIB:.2f} GiB in {trials}"
    return words + (", which is more than should be in use: memory may run out" if fit.is_tight else "")


def _for_cpu(
    config: ConfigDict, sizes: Geometry, wanted: list[str], objective: Objective, distributed: Distributed
) -> dict[str, int]:
    """Sizes that a CPU computes with at ease, and that fit by what a dry run knows; of the rank with least memory."""
    parts = build_weightless(config)
    add_adapters(parts, config)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = min(distributed.gather_objects([available_memory() // neighbours]))
    bytes_per_row = costs_of(parts, config).saved_bytes
    rows = training_rows(objective, build_rollout_sampler(config), sizes).trained / sizes.num_passes
    guided = 1 if config.sample.guidance_scale == 1.0 else 2
    choices: dict[str, tuple[list[int], float, int]] = {
        TRAINING: (training_sizes(sizes), max(rows, 1.0), CPU_TRAINING_ROWS),
        SAMPLING: (sampling_sizes(sizes), guided, CPU_SAMPLING_ROWS),
    }
    return {
        key: size_for_cpu(candidates, rows=n, most_rows=most, bytes_per_row=bytes_per_row, available=available)
        for key, (candidates, n, most) in choices.items()
        if key in wanted
    }


def _bytes(condition: Condition) -> int:
    return condition.embeds.nbytes + condition.pooled.nbytes


def bytes_of_training(config: ConfigDict, *, keeps_rollout_weights: bool) -> float:
    """Bytes of each trained number that come with the first epoch: moments, and the weights that sampled."""
    moments = 2.0 if config.train.use_8bit_adam else 2.0 * FLOAT32
    return moments + (FLOAT32 if keeps_rollout_weights else 0)


def _question(config: ConfigDict, sizes: Geometry, distributed: Distributed) -> dict[str, Any]:
    """What an answer belongs to: all settings that a forward can depend on, and the machines."""
    devices: list[str] = distributed.gather_objects([_device(distributed.device)])
    settings = flatten(config_to_dict(config))
    return {
        "devices": sorted(set(devices)),
        "ranks": sizes.world_size,
        "torch": str(torch.__version__),
        "settings": {
            key: value
            for key, value in settings.items()
            if key not in NO_MATTER and not key.startswith(OPERATIONAL_SECTIONS)
        },
    }


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / GIB:.1f} GiB"


def _recorded(run: Path, question: Mapping[str, Any]) -> dict[str, int] | None:
    """An earlier answer to the same question; None also if the file is damaged, for then it can be asked again."""
    try:
        known = json.loads((run / RECORD).read_text())
        return dict(known["found"]) if known["asked"] == json.loads(json.dumps(question)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(run: Path, question: Mapping[str, Any], found: Mapping[str, int]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    unfinished = run / f"{RECORD}.tmp"
    unfinished.write_text(json.dumps({"asked": question, "found": found}, indent=2))
    unfinished.replace(run / RECORD)
