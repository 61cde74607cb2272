"""The part of a run that writes: its folder, its metrics, its evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from awm.building.objects import build_evaluation
from awm.data.prompts import PromptSet
from awm.interfaces import Policy, Reward, WeightSet
from awm.models.lora import count_lora
from awm.training.distributed import Distributed
from awm.training.evaluation import Evaluation
from awm.training.geometry import Geometry
from awm.training.guardrails import Limits
from awm.training.metrics import MetricsWriter
from awm.training.outputs import RunOutputs
from awm.training.settings import Schedule
from awm.training.stopping import StopRequest

GRID_IMAGES, GRID_IMAGES_PER_PROMPT = 24, 4


def build_outputs(
    config: ConfigDict,
    *,
    run: Path,
    resolved: Mapping[str, Any],
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    reward: Reward,
    distributed: Distributed,
    stop: StopRequest,
    sizes: Geometry,
    found: Mapping[str, float],
    test_prompts: PromptSet | None,
    first_epoch: int,
) -> RunOutputs:
    """Open the run folder and put together what writes into it.

    Args:
        config: the configuration.
        run: the run folder; from here on it holds ``config.json``.
        resolved: what is written there.
        policy: evaluated and saved.
        optimizer: saved.
        reward: of the evaluations.
        distributed: the ranks; only the main one writes.
        stop: whether somebody wants the run to end.
        sizes: of an epoch.
        found: metrics of sizes that the run found by itself.
        test_prompts: the held-out prompts; None for a run without evaluations.
        first_epoch: the first line of metrics.jsonl this process writes; later ones are dropped from it.
    """
    metrics = None
    if distributed.is_main:
        run.mkdir(parents=True, exist_ok=True)
        unfinished = run / "config.json.tmp"
        unfinished.write_text(json.dumps(resolved, indent=2))
        unfinished.replace(run / "config.json")  # it may be what the run is being continued with
        metrics = MetricsWriter(
            run,
            trackers=tuple(name for name in config.trackers if name != "none"),
            config=resolved,
            run_name=config.run_name,
            resume_epoch=first_epoch,
        )
        print(_summary(config, run, policy, distributed, sizes), flush=True)
    evaluated: dict[str, WeightSet] = {"eval/": "average"}
    if config.evaluation.current:
        evaluated["eval_current/"] = "current"
    evaluations: dict[str, Evaluation] = {}
    if test_prompts is not None:
        evaluations = {
            prefix: build_evaluation(config, policy, reward, distributed, test_prompts, weights, stop.requested)
            for prefix, weights in evaluated.items()
        }
    return RunOutputs(
        run=run,
        policy=policy,
        optimizer=optimizer,
        distributed=distributed,
        evaluations=evaluations,
        metrics=metrics,
        config=resolved,
        keep_last=config.num_checkpoint_limit,
        schedule=Schedule(config.num_epochs, config.save_freq, config.eval_freq),
        grid_rows=_grid_rows(sizes),
        sizes=sizes,
        limits=Limits(**config.guardrails.to_dict()),
        constants={**found, **({"lora/modules": count_lora(policy.model.transformer)} if config.use_lora else {})},
        stop=stop,
    )


def _summary(config: ConfigDict, run: Path, policy: Policy, distributed: Distributed, sizes: Geometry) -> str:
    """What is about to run, in one line."""
    millions = sum(parameter.numel() for parameter in policy.trainable_parameters()) / 1e6
    adapted = f"LoRA on {count_lora(policy.model.transformer)} modules" if config.use_lora else "all weights"
    trained = f"{adapted}, {millions:.2f} M parameters"
    ranks = f"{sizes.world_size} ranks ({distributed.engine.name})" if sizes.world_size > 1 else "1 process"
    return (
        f"{run}: {trained} | {sizes.images} images per epoch ({sizes.num_prompts} prompts x "
        f"{sizes.images_per_prompt}), {sizes.updates_per_epoch} optimizer steps | {ranks}"
    )


def _grid_rows(sizes: Geometry) -> list[int]:
    """Up to 24 of the main rank's samples: a few images of each of a few prompts."""
    per_prompt = min(GRID_IMAGES_PER_PROMPT, sizes.images_per_prompt)
    rows = [
        start + offset
        for start in range(0, sizes.images_per_rank, sizes.images_per_prompt)
        for offset in range(per_prompt)
    ]
    return [row for row in rows if row < sizes.images_per_rank][:GRID_IMAGES]
