"""Other people's algorithms on any task of ``config/awm.py``, with the settings they were published with.

    awm-train --config config/awm.py:geneval_sd3_nft_1node
    awm-train --config config/awm.py:quickstart_flow_grpo

``PUBLISHED`` has what each paper or its code says for SD3.5 and GenEval, and where it says nothing, AWM's recipe or,
for those without guidance, DiffusionNFT's. What was left out is in DECISIONS.md.
RWR, AWR, DPMD and QVPO have no published settings for images. ``TINY`` changes what the tiny model's scale demands:
its groups have 8 images, its epochs four updates, its learning rate is ten times larger.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

Settings = dict[str, Any]

LIKELIHOOD: Settings = {
    "sample.sampler": "flow_sde",
    "sample.noise_level": 0.7,
    "sample.sde_frac": 1.0,
    "sample.num_steps": 10,
    "sample.guidance_scale": 4.5,
    "sample.merge_lora": False,  # the rollout's likelihood is that of the weights that are trained
    "train.batch_size": 1,
    "train.cfg": True,
    "train.adv_clip_max": 5.0,
    "train.advantage_max": 5.0,
    "train.clip_range": 1e-4,
    "train.timestep_fraction": 0.99,
    "train.updates_per_inner_epoch": 2,
    "train.beta": 0.04,
    "train.kl_time_scaled": True,
    "train.ema_beta": 0.0,
}
"""Flow-GRPO (arXiv 2505.05470) on GenEval; its advantages are not scaled to 1.

One image in a training forward: its nine steps, each with guidance, are eighteen rows, as many as three images of AWM.
"""
FORWARD: Settings = {
    "sample.sampler": "sa_solver",
    "sample.noise_level": 0.0,
    "sample.num_steps": 10,
    "sample.num_prompts_per_epoch": 48,
    "time_type": "discrete",
    "train.adv_clip_max": 5.0,
    "train.advantage_max": 5.0,
    "train.batch_size": 2,
    "train.train_timesteps": 9,
    "train.timestep_fraction": 0.99,
    "train.ema_beta": 0.0,
}
"""DiffusionNFT (arXiv 2509.16117): no guidance, every time of the sampling grid but the last, once.

Its rollouts and V-GRPO's are of second-order solvers (DPM-Solver 2 and ++), as this one is; the others take from here
what they do not say themselves.
"""
PLAIN: Settings = {"train.ema_beta": 0.0}

PUBLISHED: dict[str, Settings] = {
    "flow_grpo": LIKELIHOOD,
    "flow_grpo_fast": LIKELIHOOD
    | {
        "sample.noise_level": 0.8,
        "sample.window": "random",
        "sample.window_size": 2,
        "sample.window_range": (0, 7),  # starts in the first half
        "sample.shared_start": True,
        "train.clip_range": 1e-5,
    },
    "cps": LIKELIHOOD | {"sample.sampler": "cps", "sample.noise_level": 0.8, "train.kl_time_scaled": False},
    "grpo_guard": LIKELIHOOD | {"train.clip_range": 2e-6},
    "mix_grpo": LIKELIHOOD
    | {
        "sample.num_steps": 25,
        "sample.num_image_per_prompt": 12,
        "sample.window": "sliding",
        "sample.window_size": 4,
        "sample.shared_start": True,
        "sample.guidance_scale": 1.0,  # of FLUX, whose guidance is distilled
        "train.cfg": False,
        "train.learning_rate": 1e-5,
        "train.beta": 0.0,
    },
    "ddpo": LIKELIHOOD
    | {
        "sample.sampler": "ddpm",
        "sample.noise_level": 1.0,
        "sample.num_steps": 50,
        "sample.guidance_scale": 5.0,
        "train.gradient_checkpointing": True,  # 98 rows an image
        "per_prompt_stat_tracking": False,
        "train.beta": 0.0,
    },
    "nft": FORWARD
    | {
        "train.off_policy": True,
        "train.kl_ema_decay": 0.5,
        "train.beta": 1e-4,
    },
    "flow_awr": FORWARD | {"train.off_policy": True, "train.kl_ema_decay": 0.5, "train.beta": 1e-4},
    "v_grpo": FORWARD
    | {
        "sample.num_steps": 16,
        "train.train_timesteps": 4,
        "train.group_noise": True,
        "train.clip_range": 1e-2,
        "train.vgrpo_soft_clip": 5.0,
        "train.beta": 0.0,
    },
    "dpo": FORWARD
    | {
        "time_type": "logit_normal",
        "train.train_timesteps": 1,
        "train.group_noise": True,
        "train.beta": 0.0,
    },
    "dgpo": FORWARD
    | {
        "train.train_timesteps": 4,
        "train.timestep_fraction": 0.7,  # its times are the grid's from 0.56 up
        "train.group_noise": True,
        "train.dgpo_clip": 0.01,
        "train.reference_guidance_scale": 4.5,
        "train.beta": 0.02,
    },
    "crd": FORWARD
    | {
        "train.group_noise": True,
        "train.updates_per_inner_epoch": 2,
        "train.kl_ema_decay": 0.999,
        "train.kl_ema_decay_type": "offset",
        "train.reference_guidance_scale": 4.5,
        "train.beta": 0.1,
    },
    "rwr": PLAIN,
    "awr": PLAIN,
    "dpmd": PLAIN,
    "qvpo": PLAIN,
}

SMALL_GROUPS: Settings = {
    "sample.num_prompts_per_epoch": 32,
    "sample.num_image_per_prompt": 8,
    "sample.num_steps": 10,
    "sample.guidance_scale": 1.0,
    "train.cfg": False,
    "train.reference_guidance_scale": None,
    "train.batch_size": 32,
    "train.gradient_checkpointing": False,
    "train.updates_per_inner_epoch": 4,
    "train.learning_rate": 4e-3,
}
"""What the tiny model has instead, whatever was published; it was not trained for guidance."""
TINY: dict[str, Settings] = {
    "flow_grpo": {"train.clip_range": 1e-3},
    "flow_grpo_fast": {"train.clip_range": 1e-3},
    "cps": {"train.clip_range": 1e-3},
    "grpo_guard": {"train.clip_range": 1e-4},
    "mix_grpo": {"train.clip_range": 1e-3, "sample.window_interval": 2},
    "ddpo": {"train.clip_range": 1e-3},
    "nft": {"train.train_timesteps": 4},
    "flow_awr": {"train.train_timesteps": 4},
    "crd": {"train.train_timesteps": 4},
    "dpo": {"train.train_timesteps": 4, "time_type": "discrete_wo_init"},
}


def rival(config: ConfigDict, algorithm: str, run_name: str, *, tiny: bool = False) -> ConfigDict:
    """``config`` with that algorithm and its settings, in place."""
    config.run_name = run_name
    config.train.algorithm = algorithm
    config.train.old_policy = "rollout"
    settings = dict(PUBLISHED[algorithm])
    if tiny:
        settings |= {**SMALL_GROUPS, **TINY.get(algorithm, {})}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    return config
