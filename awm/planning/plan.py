"""The work of an epoch, and how it is spread over the ranks, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from awm.building.batch_sizes import check_open_sizes, open_sizes
from awm.building.objects import build_objective, build_rollout_sampler, build_sampler, without_effect
from awm.building.trainer import check_fast_sampling, check_groups, keeps_rollout_weights, load_train_prompts
from awm.data.prompts import load_prompts
from awm.held_out.items import evaluation_items
from awm.models.weights import find_transformer, find_weights
from awm.planning.columns import aligned
from awm.training.geometry import Geometry
from awm.training.workload import Rows, sampling_rows, shared_groups, training_rows
from awm.validation import geometry, rollout_sampler, validate


@dataclass(frozen=True, slots=True)
class Plan:
    """What an epoch of a configuration consists of.

    Attributes:
        sizes: its geometry.
        sampling: rows per sampled image.
        training: rows per image and epoch.
        evaluating: rows per evaluated image.
        held_out: images of one evaluation of one weight set; 0 without evaluations.
        latents_kept: of each image: x_0, and the rollout's states and velocities if the objective needs them.
        keeps_rollout_weights: whether the weights that sampled are kept for later updates.
        needs_reward_gradient: whether every image is decoded once more, with a backward pass.
        train_prompts: lines of the prompt file.
    """

    sizes: Geometry
    sampling: Rows
    training: Rows
    evaluating: Rows
    held_out: int
    latents_kept: int
    keeps_rollout_weights: bool
    needs_reward_gradient: bool
    train_prompts: int


def make_plan(config: ConfigDict, world_size: int) -> Plan:
    """Resolve ``config`` for ``world_size`` ranks.

    Raises:
        ValueError: what the run itself would raise.
    """
    validate(config)
    sizes = geometry(config, world_size)
    prompts = load_train_prompts(config, sizes)
    _check_start(config)
    held_out = 0
    if config.eval_freq:
        options, test = config.evaluation, load_prompts(config.dataset, "test", config.prompt_fn)
        held_out = len(evaluation_items(test, options.num_images_per_prompt, options.max_prompts))
    objective = build_objective(config)
    check_groups(config, objective, sizes)
    check_open_sizes(config, objective)
    check_fast_sampling(config, objective)
    needs = objective.needs
    sampler = build_rollout_sampler(config)
    evaluator = build_sampler(config, config.sample.eval_sampler, config.sample.eval_num_steps)
    scale = config.sample.guidance_scale
    return Plan(
        sizes=sizes,
        sampling=sampling_rows(sampler, scale),
        training=training_rows(objective, sampler, sizes),
        evaluating=sampling_rows(evaluator, scale),
        held_out=held_out,
        latents_kept=1 + needs.trajectory * (config.sample.num_steps + 1) + needs.velocities * config.sample.num_steps,
        keeps_rollout_weights=keeps_rollout_weights(config, objective),
        needs_reward_gradient=needs.reward_gradient,
        train_prompts=len(prompts),
    )


def _check_start(config: ConfigDict) -> None:
    """The weights the run starts from are there."""
    if config.pretrained.transformer:
        find_transformer(config.pretrained.transformer, config.pretrained.model, config.pretrained.revision)
    if config.train.lora_path and find_weights(Path(config.train.lora_path)) is None:
        raise ValueError(f"train.lora_path={config.train.lora_path} holds no LoRA; give the folder that contains it.")


def geometry_lines(config: ConfigDict, plan: Plan) -> list[str]:
    """Images, groups, batches and updates."""
    sizes, name = plan.sizes, config.run_name or "a run named by the time"
    unknown = open_sizes(config)
    epoch = (
        f"{sizes.num_prompts} of {plan.train_prompts} prompts x {sizes.images_per_prompt} images = {sizes.images} "
        f"images, {sizes.images_per_rank} per rank"
    )
    sampling = (
        f"{_count(sizes.sampling_batches, 'batch', 'batches')} of {sizes.sample_batch_size} per rank; "
        f"{rollout_sampler(config)} in {config.sample.num_steps} steps, {plan.sampling.plain:g} rows an image"
    )
    rows = [
        ("run", f"{name}: {config.num_epochs} epochs, a checkpoint every {config.save_freq}"),
        ("ranks", f"{sizes.world_size}"),
        ("epoch", epoch),
        ("groups", _groups(sizes)),
        ("sampling", sampling),
        ("training", _training(config, plan)),
        ("evaluation", _evaluation(config, plan)),
        *([("batch sizes", f"found when the run starts, here 1: {', '.join(unknown)}")] if unknown else []),
        *(("without effect", ", ".join(idle)) for idle in (without_effect(config),) if idle),
    ]
    return aligned(rows)


def _training(config: ConfigDict, plan: Plan) -> str:
    sizes = plan.sizes
    times = plan.training.trained / sizes.num_passes / (2 if config.train.cfg else 1)
    micro = min(sizes.micro_batch_size, sizes.images_per_rank // sizes.updates_per_pass)
    return (
        f"{_count(sizes.num_passes, 'pass', 'passes')} of {_count(sizes.updates_per_pass, 'optimizer step')} of "
        f"{_count(sizes.micro_batches_per_update, 'micro-batch', 'micro-batches')} of {micro} images x {times:g} "
        f"times; {plan.training.trained:g} rows an image with gradient, {plan.training.plain:g} without"
    )


def _groups(sizes: Geometry) -> str:
    shared = shared_groups(sizes)
    if not shared:
        return f"{_count(sizes.num_prompts // sizes.world_size, 'whole group')} per rank; none crosses ranks"
    shown = [f"{group} on ranks {ranks[0]}-{ranks[-1]}" for group, ranks in list(shared.items())[:4]]
    more = f" and {len(shared) - 4} more" if len(shared) > 4 else ""
    return f"{len(shared)} of {sizes.num_prompts} cross ranks: {', '.join(shown)}{more} (which changes no advantage)"


def _evaluation(config: ConfigDict, plan: Plan) -> str:
    if not plan.held_out:
        return "none (eval_freq=0)"
    per_rank = -(-plan.held_out // plan.sizes.world_size)
    batch = config.sample.test_batch_size or plan.sizes.sample_batch_size
    return (
        f"{plan.held_out} images before the run, every {config.eval_freq} epochs and at the end; up to {per_rank} per "
        f"rank in {_count(-(-per_rank // batch), 'batch', 'batches')} of {batch}; {config.sample.eval_sampler} in "
        f"{config.sample.eval_num_steps} steps"
    )


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
