"""A whole run from its configuration: what is cheap is checked before the model is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from ml_collections import ConfigDict

from awm.building.batch_sizes import bytes_of_training, check_open_sizes, settle_batch_sizes
from awm.building.equal_servers import check_equal_servers
from awm.building.objects import build_objective, build_optimizer, build_policy, build_reward, build_rollout_sampler
from awm.building.outputs import build_outputs
from awm.building.resume import resume_state
from awm.configuration import config_to_dict
from awm.data.prompts import PromptSet, load_prompts
from awm.interfaces import Objective, Policy, Reward, WeighsGroups
from awm.models.float8 import CAPABILITY
from awm.rewards.mixture import MixtureReward
from awm.training.credit import Credit
from awm.training.distributed import Distributed
from awm.training.geometry import Geometry, require_whole_groups
from awm.training.outputs import RunOutputs
from awm.training.parity import ParityCheck
from awm.training.reward_gradient import RewardGradient
from awm.training.rollout import Rollout
from awm.training.settings import Advantages, Averaging, Schedule
from awm.training.stopping import StopRequest
from awm.training.trainer import Trainer
from awm.training.update import Update
from awm.validation import geometry, validate


def build_trainer(config: ConfigDict, distributed: Distributed, stop: StopRequest) -> Trainer:
    """Check everything that can be checked cheaply, then load the model and put the run together.

    Raises:
        ValueError, RewardError, CheckpointError: before the model is loaded.
    """
    validate(config)
    _check_engine(config, distributed)
    sizes = geometry(config, distributed.world_size)
    train_prompts = load_train_prompts(config, sizes)
    test_prompts = load_prompts(config.dataset, "test", config.prompt_fn) if config.eval_freq else None
    run, resolved = Path(config.logdir) / config.run_name, config_to_dict(config)
    resume = resume_state(run, config.resume_from, resolved, sizes, distributed)
    objective = build_objective(config)
    reward = build_reward(config, stop.requested)
    _check_needs(config, objective, reward)
    check_groups(config, objective, sizes)
    check_fast_sampling(config, objective)
    check_open_sizes(config, objective, distributed)
    reward.check()
    check_equal_servers(reward, distributed, allow_changed_scorer=config.reward_server.allow_changed_scorer)

    policy = build_policy(config, distributed.device, distributed.shard)
    settled = settle_batch_sizes(
        config,
        sizes,
        policy=policy,
        objective=objective,
        distributed=distributed,
        run=run,
        bytes_per_number=bytes_of_training(
            config, keeps_rollout_weights=keeps_rollout_weights(config, objective) and sizes.updates_per_epoch > 1
        ),
    )
    config, sizes = settled.config, settled.sizes
    if settled.metrics:
        objective, resolved = build_objective(config), config_to_dict(config)
    optimizer: torch.optim.Optimizer = build_optimizer(config, policy)
    policy.model.transformer, optimizer = distributed.prepare(policy.model.transformer, optimizer)
    if resume is not None:
        policy.load_state_dict(resume.policy)
        distributed.load_optimizer_state(optimizer, resume.optimizer)
        distributed.load_scaler_state(None if resume.scaler is None else dict(resume.scaler))
    epoch, step = (0, 0) if resume is None else (resume.epoch, resume.step)
    rollout = _rollout(config, policy, objective, reward, distributed, stop)
    outputs = build_outputs(
        config,
        run=run,
        resolved=resolved,
        policy=policy,
        optimizer=optimizer,
        reward=reward,
        distributed=distributed,
        stop=stop,
        sizes=sizes,
        found=settled.metrics,
        test_prompts=test_prompts,
        first_epoch=epoch + 1 if epoch else 0,  # the base model's evaluation is the first thing a run does
    )
    return Trainer(
        policy=policy,
        rollout=rollout,
        update=_update(config, policy, objective, optimizer, distributed, sizes),
        outputs=outputs,
        distributed=distributed,
        geometry=sizes,
        prompts=train_prompts,
        seed=config.seed,
        schedule=Schedule(config.num_epochs, config.save_freq, config.eval_freq),
        credit=_credit(config, policy, objective, reward, distributed),
        averaging=_averaging(config),
        parity=_parity(config, rollout, outputs, distributed, train_prompts, sizes),
        shared_start=config.sample.shared_start,
        epoch=epoch,
        step=step,
    )


def load_train_prompts(config: ConfigDict, sizes: Geometry) -> PromptSet:
    """The training prompts; ValueError if there are fewer than an epoch needs."""
    prompts = load_prompts(config.dataset, "train", config.prompt_fn)
    if len(prompts) < sizes.num_prompts:
        raise ValueError(
            f"{sizes.num_prompts} prompts per epoch, but {config.dataset} has only {len(prompts)} for training; "
            f"lower sample.num_prompts_per_epoch or add prompts."
        )
    return prompts


def _check_engine(config: ConfigDict, distributed: Distributed) -> None:
    if config.train.use_8bit_adam and distributed.engine.cuts_optimizer_state:
        raise ValueError(
            f"train.use_8bit_adam=True keeps its state in blocks that {distributed.engine.name} cannot cut; use DDP, "
            f"or set it to False."
        )
    if config.sample.merge_lora and distributed.engine.forwards_are_collective:
        raise ValueError(
            f"sample.merge_lora=True needs whole weights on every rank, and {distributed.engine.name} cuts them; use "
            f"DDP or DeepSpeed ZeRO-1 or 2, or set it to False."
        )
    if config.sample.fp8:
        _check_float8(distributed.device)


def _rollout(
    config: ConfigDict,
    policy: Policy,
    objective: Objective,
    reward: Reward,
    distributed: Distributed,
    stop: StopRequest,
) -> Rollout:
    return Rollout(
        policy=policy,
        sampler=build_rollout_sampler(config),
        reward=reward,
        distributed=distributed,
        batch_size=config.sample.train_batch_size,
        resolution=config.resolution,
        guidance_scale=config.sample.guidance_scale,
        weights="anchor" if config.train.off_policy else "current",
        keep_states=objective.needs.trajectory,
        keep_velocities=objective.needs.velocities,
        stop=stop.requested,
    )


def _parity(
    config: ConfigDict,
    rollout: Rollout,
    outputs: RunOutputs,
    distributed: Distributed,
    prompts: PromptSet,
    sizes: Geometry,
) -> ParityCheck | None:
    if not config.sample.merge_lora:
        return None
    return ParityCheck(
        rollout=rollout,
        prompts=prompts,
        num_prompts=sizes.num_prompts,
        distributed=distributed,
        seed=config.seed,
        max_gap=config.sample.max_reward_gap,
        progress=outputs.progress,
    )


def _update(
    config: ConfigDict,
    policy: Policy,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    distributed: Distributed,
    sizes: Geometry,
) -> Update:
    return Update(
        policy=policy,
        objective=objective,
        optimizer=optimizer,
        distributed=distributed,
        geometry=sizes,
        max_grad_norm=config.train.max_grad_norm,
        seed=config.seed,
        keep_rollout_weights=keeps_rollout_weights(config, objective),
        allow_skipped_steps=config.mixed_precision == "fp16",
        skip_zero_advantage=config.train.skip_zero_advantage,
    )


def _credit(
    config: ConfigDict, policy: Policy, objective: Objective, reward: MixtureReward, distributed: Distributed
) -> Credit:
    advantages = Advantages(
        global_std=config.sample.global_std,
        per_prompt=config.per_prompt_stat_tracking,
        standardized=config.reward_fn.to_dict() if config.reward_standardize else {},
        adv_clip_max=config.train.adv_clip_max,
        advantage_max=config.train.advantage_max,
        max_invalid_fraction=config.reward_server.max_invalid_fraction,
    )
    gradient = None
    if objective.needs.reward_gradient:
        gradient = RewardGradient(policy.model, reward.score, config.train.batch_size)
    return Credit(policy, objective, advantages, distributed, config.seed, gradient)


def _check_needs(config: ConfigDict, objective: Objective, reward: MixtureReward) -> None:
    needs = objective.needs
    if (needs.reward_gradient or needs.group_mates) and not isinstance(objective, WeighsGroups):
        raise ValueError(
            f"train.algorithm={config.train.algorithm!r} asks for group mates or reward gradients, which are made for "
            f"objectives with a method weigh(reward, group, valid), see awm/interfaces.py; give "
            f"{type(objective).__name__} one."
        )
    if not objective.needs.reward_gradient:
        return
    if missing := reward.without_gradient():
        raise ValueError(
            f"train.algorithm={config.train.algorithm!r} with these settings follows the reward's gradient, but "
            f"{', '.join(map(repr, missing))} in reward_fn {'has' if len(missing) == 1 else 'have'} none: a gradient "
            f"needs a reward computed in this process, such as 'differentiable_pickscore' or "
            f"'differentiable_clipscore'. Or use train.rfm_estimator='noise', which needs rewards only."
        )
    if config.reward_standardize:
        raise ValueError(
            "reward_standardize=True divides rewards by spreads that change from epoch to epoch, which reward "
            "gradients do not follow; set it to False and scale the weights in reward_fn instead."
        )


def keeps_rollout_weights(config: ConfigDict, objective: Objective) -> bool:
    """Whether updates after an epoch's first compare with the weights that sampled.

    The anchor is there anyway.
    """
    train = config.train
    return bool(objective.needs.rollout_weights and train.old_policy == "rollout" and not train.off_policy)


def check_groups(config: ConfigDict, objective: Objective, sizes: Geometry) -> None:
    """Refuse a geometry that cuts groups an objective needs whole; see ``require_whole_groups``."""
    if objective.needs.whole_groups:
        require_whole_groups(sizes, config.train.algorithm)


def check_fast_sampling(config: ConfigDict, objective: Objective) -> None:
    """Refuse merged weights for an objective that compares the rollout's own numbers with training forwards."""
    if config.sample.merge_lora and objective.needs.trajectory:
        raise ValueError(
            f"train.algorithm={config.train.algorithm!r} compares the likelihood of the rollout's steps with that of "
            f"the trained weights, which sample.merge_lora=True rounds, so that equal policies would differ; set it "
            f"to False."
        )


def _check_float8(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY:
        return
    found = f"compute capability {torch.cuda.get_device_capability(device)}" if device.type == "cuda" else "no GPU"
    raise ValueError(
        f"sample.fp8=True needs a GPU of compute capability 8.9 or more (Ada, Hopper), and this rank has {found}; set "
        f"it to False."
    )


def _averaging(config: ConfigDict) -> Averaging:
    return Averaging(
        anchor_decay=config.train.kl_ema_decay,
        anchor_schedule=config.train.kl_ema_decay_type,
        average_decay=config.train.ema_decay if config.train.ema else 0.0,
        average_interval=config.train.ema_update_step_interval if config.train.ema else 1,
    )
