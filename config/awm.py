"""Advantage Weighted Matching on Stable Diffusion 3.5 Medium, and the quickstart on the shipped tiny model.

    awm-train --config config/awm.py:geneval_sd3_no_cfg_1node --config.train.learning_rate=1e-4

Published set-up (arXiv 2509.25050): 512 px, 14 rollout steps, no guidance, 6 training times, LoRA r 32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from ml_collections import ConfigDict

from awm.configuration import default_config
from awm.registry import nearest
from config.base import sd35_medium
from config.reverse_matching import rfm, with_gradient
from config.rivals import PUBLISHED, rival
from config.simpo import SIMPO, simpo


def geneval(nodes: int) -> ConfigDict:
    """GenEval: 72 prompts x 24 images an epoch, strong stochasticity in the rollout."""
    config = sd35_medium("geneval", nodes)
    config.prompt_fn = "geneval"
    config.sample.num_prompts_per_epoch = 72
    config.sample.noise_level = 0.4
    config.time_type = "discrete_wo_init"
    config.train.beta = 0.001
    return config


def ocr(nodes: int) -> ConfigDict:
    """OCR: as GenEval, three times the pull to the reference."""
    config = sd35_medium("ocr", nodes)
    config.prompt_fn = "general_ocr"
    config.sample.num_prompts_per_epoch = 72
    config.sample.noise_level = 0.4
    config.time_type = "discrete_wo_init"
    config.train.beta = 0.003
    return config


def pickscore(nodes: int) -> ConfigDict:
    """PickScore: 24 prompts x 24 images an epoch, deterministic rollout, t = 1 trained too."""
    config = sd35_medium("pickscore", nodes)
    config.prompt_fn = "pickscore"
    config.sample.num_prompts_per_epoch = 24
    config.sample.noise_level = 0.0
    config.time_type = "discrete"
    config.train.beta = 0.0001
    return config


def quickstart() -> ConfigDict:
    """The tiny model on its shapes world: minutes on two CPU cores, the same code path as SD3.5.

    Many prompts with few images each, one pass: with so few images, what is learnt must carry over to other
    prompts. bfloat16 where the processor multiplies it natively, which halves the time; rollouts with merged adapters.
    """
    config = default_config()
    config.run_name = "quickstart"
    config.seed = 0
    config.pretrained.model = "tiny"
    config.dataset = "dataset/shapes"
    config.prompt_fn = "geneval"
    config.resolution = 64
    config.mixed_precision = "bf16" if has_fast_bfloat16() else "no"
    config.lora_rank = 16
    config.lora_alpha = 32
    with config.unlocked():
        config.reward_fn = ConfigDict({"geneval.strict": 1.0}, allow_dotted_keys=True)
    config.num_epochs = 34
    config.save_freq = 1
    config.eval_freq = 17
    config.sample.num_prompts_per_epoch = 32
    config.sample.num_image_per_prompt = 8
    config.sample.num_steps = 10
    config.sample.eval_num_steps = 14
    config.sample.train_batch_size = 64
    config.sample.test_batch_size = 64
    config.sample.noise_level = 0.4
    config.sample.merge_lora = True
    config.evaluation.num_images_per_prompt = 2
    config.time_type = "discrete_wo_init"
    config.train.batch_size = 32
    config.train.train_timesteps = 4
    config.train.updates_per_inner_epoch = 4
    config.train.old_policy = "current"
    config.train.learning_rate = 4e-3
    config.train.beta = 0.0
    config.train.ema_decay = 0.9
    return config


def quickstart_full() -> ConfigDict:
    """The quickstart for up to an hour."""
    config = quickstart()
    config.run_name = "quickstart_full"
    config.num_epochs = 150
    config.eval_freq = 25
    config.save_freq = 5
    return config


def geneval_simpo(kind: str) -> ConfigDict:
    """GenEval with SiMPO's weights of that kind instead of advantages."""
    return simpo(geneval(nodes=1), f"geneval_sd3_simpo_{kind}_1node", kind)


def quickstart_simpo(kind: str) -> ConfigDict:
    """The quickstart with SiMPO's weights of that kind.

    With 8 images of a prompt, scored 0 or 1, a KL of 1.5 nats would leave only the best one or two; and several
    updates of an epoch need the pull to the policy that sampled.
    """
    config = simpo(quickstart(), f"quickstart_simpo_{kind}", kind)
    config.train.simpo_target_kl = 0.5
    config.train.old_policy = "rollout"
    return config


def geneval_rival(algorithm: str) -> ConfigDict:
    """GenEval with another algorithm as it was published."""
    return rival(geneval(nodes=1), algorithm, f"geneval_sd3_{algorithm}_1node")


def quickstart_rival(algorithm: str) -> ConfigDict:
    """The quickstart with another algorithm."""
    return rival(quickstart(), algorithm, f"quickstart_{algorithm}", tiny=True)


def has_fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware: any recent GPU, or a CPU with avx512_bf16 or AMX."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


RECIPES: dict[str, Callable[[], ConfigDict]] = {
    "quickstart": quickstart,
    "quickstart_full": quickstart_full,
    "geneval_sd3_no_cfg_1node": partial(geneval, nodes=1),
    "geneval_sd3_no_cfg_4nodes": partial(geneval, nodes=4),
    "ocr_sd3_no_cfg_1node": partial(ocr, nodes=1),
    "ocr_sd3_no_cfg_4nodes": partial(ocr, nodes=4),
    "pickscore_sd3_no_cfg_1node": partial(pickscore, nodes=1),
    "pickscore_sd3_no_cfg_4nodes": partial(pickscore, nodes=4),
    "pickscore_sd3_rfm_1node": lambda: rfm(pickscore(nodes=1), "pickscore_sd3_rfm_1node"),
    "pickscore_sd3_rfm_gradient_1node": lambda: with_gradient(
        rfm(pickscore(nodes=1), "pickscore_sd3_rfm_gradient_1node")
    ),
    "quickstart_rfm": lambda: rfm(quickstart(), "quickstart_rfm"),
}
RECIPES |= {f"geneval_sd3_simpo_{kind}_1node": partial(geneval_simpo, kind) for kind in SIMPO}
RECIPES |= {f"quickstart_simpo_{kind}": partial(quickstart_simpo, kind) for kind in SIMPO}
RECIPES |= {f"geneval_sd3_{name}_1node": partial(geneval_rival, name) for name in PUBLISHED}
RECIPES |= {f"quickstart_{name}": partial(quickstart_rival, name) for name in PUBLISHED}


def get_config(name: str = "quickstart") -> ConfigDict:
    """The recipe called ``name``; an unknown name lists those that exist."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}.{nearest(name, list(RECIPES))}")
    return RECIPES[name]()
