"""What each algorithm asks of the rest of the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from awm.validation.tables import OBJECTIVES, STEPWISE, rollout_sampler


def _check_groups(config: ConfigDict) -> None:
    algorithm = config.train.algorithm
    if config.sample.num_image_per_prompt == 1:
        raise ValueError(
            f"train.algorithm={algorithm!r} compares the images of a prompt with each other, but "
            "sample.num_image_per_prompt=1 leaves nothing to compare; sample at least 2 images per prompt."
        )
    if not config.per_prompt_stat_tracking:
        raise ValueError(
            f"train.algorithm={algorithm!r} compares the images of a prompt with each other, and so has no use for "
            "per_prompt_stat_tracking=False; set it to True."
        )


def _check_global_units(config: ConfigDict) -> None:
    if not config.sample.global_std:
        raise ValueError(
            f"train.algorithm={config.train.algorithm!r} measures rewards in units of the epoch's standard deviation, "
            "and so has no use for sample.global_std=False; set it to True."
        )


def _check_minimum(config: ConfigDict) -> None:
    """Refuse a loss that several updates would drive to minus infinity."""
    train = config.train
    if train.algorithm == "rfm":
        repels = train.rfm_centred and train.rfm_form == "weighted"
    else:
        repels = train.simpo_centred or train.simpo_weighting == "wd1" or train.simpo_floor < 0
    pulled = train.old_policy == "rollout" and (train.algorithm == "rfm" or train.simpo_pull > 0)
    several = (train.updates_per_inner_epoch or 1) * train.num_inner_epochs > 1
    if repels and several and not (pulled or train.off_policy or train.ema_beta or train.beta):
        raise ValueError(
            f"train.algorithm={train.algorithm!r} gives bad images negative coefficients, and nothing holds the policy "
            "over several updates of an epoch; set train.old_policy='rollout' (with train.simpo_pull above 0), or "
            "train.ema_beta or train.beta above 0."
        )


def _check_rfm(config: ConfigDict) -> None:
    train = config.train
    follows_score = train.rfm_estimator != "noise" and train.rfm_score == "policy"
    if follows_score and config.sample.guidance_scale != 1.0 and not train.cfg:
        raise ValueError(
            f"train.rfm_estimator={train.rfm_estimator!r} takes the policy's score from the unguided model, but "
            f"sample.guidance_scale={config.sample.guidance_scale:g} samples from another one; set it to 1.0, or "
            "train.cfg=True."
        )


def _check_simpo(config: ConfigDict) -> None:
    # Imported late: --help and typos are answered before torch is loaded.
    from awm.objectives.group_weights import TARGET_KL
    from awm.weightings import MASSLESS, Weighting

    train, count = config.train, config.sample.num_image_per_prompt
    try:
        Weighting(train.simpo_weighting, floor=train.simpo_floor, power=train.simpo_power)
    except ValueError as error:
        raise ValueError(f"train.simpo_weighting, simpo_floor and simpo_power do not fit: {error}") from error
    names = ("simpo_temperature", "simpo_target_kl", "simpo_target_entropy")
    given = {f"train.{name}": train[name] for name in names if train[name] is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are set, but each decides the temperature; set one of them.")
    if "train.simpo_temperature" in given:
        return
    if train.simpo_weighting in MASSLESS:
        if given:
            raise ValueError(
                f"{', '.join(given)} is set, but the weights of train.simpo_weighting={train.simpo_weighting!r} have "
                "mean 0 and thus no KL or entropy; set train.simpo_temperature instead."
            )
        return
    most = math.log(count)
    for name, value in (given or {"train.simpo_target_kl": TARGET_KL}).items():
        if value >= most:
            raise ValueError(
                f"{name}={value:g} is out of reach with sample.num_image_per_prompt={count}: the weights of so many "
                f"images have less than log {count} = {most:.2f} nats. Set it below that, or sample more."
            )


def _check_likelihood(config: ConfigDict) -> None:
    """The rollout has stochastic steps, whose likelihood under the trained velocity is the one they were drawn with."""
    algorithm, sampler, sample = config.train.algorithm, rollout_sampler(config), config.sample
    wanted = SAMPLERS_OF.get(algorithm, STEPWISE)
    if sampler not in wanted:
        raise ValueError(
            f"train.algorithm={algorithm!r} needs the likelihood of the rollout's steps, which the sampler {sampler!r} "
            f"has none of for it; set sample.sampler to {' or '.join(map(repr, wanted))}."
        )
    if sample.noise_level == 0:
        raise ValueError(
            f"train.algorithm={algorithm!r} learns from the rollout's own noise, but sample.noise_level=0 makes it "
            f"deterministic; set it to 0.7, say."
        )
    if algorithm in WINDOWED and not sample.window:
        raise ValueError(
            f"train.algorithm={algorithm!r} is Flow-GRPO on a window of stochastic steps, but sample.window is ''; set "
            f"it to {WINDOWED[algorithm]!r}, or train.algorithm to 'flow_grpo'."
        )
    if not sample.window and sample.sde_frac == 0:
        raise ValueError(
            f"train.algorithm={algorithm!r} learns from the rollout's stochastic steps, but sample.sde_frac=0 leaves "
            f"none; set it to 1, or sample.window."
        )
    trained = int(sample.num_steps * config.train.timestep_fraction)
    if trained == 0:
        raise ValueError(
            f"train.timestep_fraction={config.train.timestep_fraction:g} of sample.num_steps={sample.num_steps} leaves "
            f"no step to train; set it to {1 / sample.num_steps:.2g} or more (published: 0.99)."
        )
    end = (tuple(sample.window_range) or (0, sample.num_steps - 1))[1]
    if sample.window and end > trained:
        raise ValueError(
            f"sample.window reaches step {end} of sample.num_steps={sample.num_steps}, but "
            f"train.timestep_fraction={config.train.timestep_fraction:g} trains the first {trained}; raise it, or end "
            f"sample.window_range there."
        )
    if sample.guidance_scale != 1.0 and not config.train.cfg:
        raise ValueError(
            f"train.algorithm={algorithm!r} compares likelihoods of the policy that sampled, which is guided "
            f"(sample.guidance_scale={sample.guidance_scale:g}), with the unguided one; set train.cfg=True, or the "
            f"scale to 1."
        )


def _check_anchor_samples(config: ConfigDict) -> None:
    if not config.train.off_policy:
        raise ValueError(
            f"train.algorithm={config.train.algorithm!r} moves away from the policy that sampled, which has to be the "
            f"anchor; set train.off_policy=True (train.kl_ema_decay=0 keeps the anchor at the trained weights)."
        )


def _check_all_images_alike(config: ConfigDict) -> None:
    if config.per_prompt_stat_tracking:
        raise ValueError(
            f"train.algorithm={config.train.algorithm!r} compares an image with all of the epoch; set "
            f"per_prompt_stat_tracking=False, or use 'flow_grpo', which compares those of a prompt."
        )


SAMPLERS_OF = {
    "flow_grpo": ("flow_sde", "dance_sde"),
    "cps": ("cps",),
    "ddpo": ("ddpm", "flow_sde", "dance_sde"),
    "grpo_guard": ("flow_sde", "dance_sde", "ddpm"),
}
"""Those that an algorithm's name stands for; any with a likelihood for the others."""
WINDOWED = {"flow_grpo_fast": "random", "mix_grpo": "sliding"}
"""Algorithms that need ``sample.window``, and the value they were published with."""
CHECKS: dict[str, tuple[Callable[[ConfigDict], None], ...]] = {
    "simpo": (_check_groups, _check_global_units, _check_minimum, _check_simpo),
    "rfm": (_check_groups, _check_global_units, _check_minimum, _check_rfm),
    **dict.fromkeys(("flow_grpo", "flow_grpo_fast", "mix_grpo", "cps", "grpo_guard"), (_check_likelihood,)),
    "ddpo": (_check_likelihood, _check_all_images_alike),
    "dpmd": (_check_global_units,),
    **dict.fromkeys(("nft", "flow_awr"), (_check_groups, _check_anchor_samples)),
    **dict.fromkeys(("v_grpo", "dpo", "dgpo", "crd", "rwr", "awr", "qvpo"), (_check_groups,)),
}
"""What an algorithm asks of the rest of the configuration."""


def check_algorithm(config: ConfigDict) -> None:
    """Raise ValueError if the configuration has no sense for its ``train.algorithm``."""
    for check in CHECKS.get(config.train.algorithm, ()):
        check(config)
    if config.train.skip_zero_advantage:
        _check_skipping(config.train.algorithm)


def _check_skipping(algorithm: str) -> None:
    # Imported late, with torch: only where it is asked for.
    if _is_zero_at_zero_advantage(algorithm):
        return
    able = ", ".join(name for name in OBJECTIVES if _is_zero_at_zero_advantage(name))
    raise ValueError(
        f"train.skip_zero_advantage=True leaves out images whose advantage is 0, but with "
        f"train.algorithm={algorithm!r} they teach, too; set it to False, or use one of {able}, whose loss is zero "
        f"there but for its KL terms."
    )


def _is_zero_at_zero_advantage(algorithm: str) -> bool:
    return bool(getattr(OBJECTIVES.load(algorithm), "zero_at_zero_advantage", False))
