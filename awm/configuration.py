"""The public configuration: every key with its default and its meaning, and how a config is loaded.

Recipes in ``config/*.py`` start from :func:`default_config` and change what makes them a recipe. The command
line is ``--config FILE.py:RECIPE`` (or ``--config RUN/config.json``) followed by overrides such as
``--config.train.learning_rate=1e-4``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from awm.registry import nearest

DATA_KEYS = ("reward_fn", "reward_server.urls_of")
"""Keys whose value is a dictionary with names that are data, not keys."""


def default_config() -> ConfigDict:
    """A locked config with every public key at its default."""
    config = ConfigDict()
    config.run_name = ""  # folder below logdir; empty: recipe name and a time stamp
    config.seed = 42
    config.logdir = "logs"
    config.num_epochs = 100000
    config.save_freq = 20  # epochs between checkpoints; the last epoch is always saved
    config.eval_freq = 20  # epochs between evaluations; before the first and after the last one always; 0: never
    config.num_checkpoint_limit = 5  # newest checkpoints kept
    config.mixed_precision = "bf16"  # no | fp16 | bf16
    config.allow_tf32 = True
    config.resume_from = ""  # "" | "auto" (newest checkpoint of this run, if any) | path of a checkpoint
    config.use_lora = True
    config.lora_type = "attn"  # attn | ffn | all
    config.lora_rank = 32
    config.lora_alpha = 64
    config.dataset = ""  # folder with train and test prompt files (.jsonl or .txt)
    config.prompt_fn = "geneval"  # geneval | general_ocr | pickscore: how a line becomes prompt and metadata
    config.resolution = 512  # pixels a side
    config.reward_fn = ConfigDict({}, allow_dotted_keys=True)  # reward name -> weight; weight 0 only logs it
    config.reward_standardize = False  # divide each reward by its std over the epoch before weighting it
    config.per_prompt_stat_tracking = True  # advantages relative to the prompt's own mean
    config.time_type = "discrete"  # discrete | discrete_wo_init | discrete_with_init | uniform | logit_normal
    config.time_shift = 3.0  # shift of the uniform and logit_normal training times and of the sampling grid
    config.trackers = ("none",)  # any of wandb, tensorboard, none; metrics.jsonl is always written

    config.pretrained = ConfigDict()
    config.pretrained.model = "stabilityai/stable-diffusion-3.5-medium"  # hub id, local folder, or "tiny"
    config.pretrained.revision = ""
    config.pretrained.transformer = ""  # start from this fully fine-tuned transformer: folder with transformer/ in it
    config.pretrained.max_sequence_length = placeholder(int)  # T5 tokens; unset: 128, or the tokenizer's own if shorter
    config.pretrained.text_encoder_device = ""  # "cpu" frees 10 GB of a GPU and encodes an epoch's prompts more slowly

    config.sample = ConfigDict()
    config.sample.num_steps = 14
    config.sample.eval_num_steps = 40
    config.sample.guidance_scale = 1.0  # 1.0 = no classifier-free guidance
    config.sample.train_batch_size = 6  # images per device and sampling batch; 0: the largest that fits, see README
    config.sample.test_batch_size = 6  # likewise in evaluations; 0: as in sampling
    config.sample.num_image_per_prompt = 24  # group size
    config.sample.num_prompts_per_epoch = placeholder(int)  # if set, num_batches_per_epoch follows from it
    config.sample.num_batches_per_epoch = placeholder(int)  # sampling batches per device and epoch
    config.sample.noise_level = 0.0  # SA-Solver: tau; flow_sde: a; dance_sde, cps and ddpm: eta; 0 = ODE
    config.sample.sde_frac = 0.0  # of the last four: fraction of the steps, from the start, that are stochastic
    config.sample.window = ""  # "" | random | sliding | decay | exp_decay: instead of sde_frac, a few steps are
    config.sample.window_size = 2  # this many neighbouring ones, and all others deterministic
    config.sample.window_range = ()  # (first, end) steps a window may cover; empty: all but the last
    config.sample.window_interval = 25  # epochs between moves of a sliding window
    config.sample.window_stride = 1  # steps it then moves by
    config.sample.shared_start = False  # the images of a prompt start from the same noise
    config.sample.global_std = True  # advantages in units of the whole epoch's std, not each group's
    config.sample.sampler = ""  # sa_solver | ddim | flow_sde | dance_sde | cps | ddpm; empty: by train.use_sa_solver
    config.sample.eval_sampler = "ddim"  # sampler of evaluations
    config.sample.merge_lora = False  # sample and evaluate with a second transformer that the LoRA is merged into
    config.sample.fp8 = False  # and whose blocks compute in eight bits: compute capability 8.9 or more
    config.sample.max_reward_gap = 0.2  # by how much that may change the mean reward, in its standard deviations

    config.train = ConfigDict()
    config.train.algorithm = "awm"  # awm | simpo | rfm | a rival, see README
    config.train.batch_size = 3  # samples per micro-batch, each at all train_timesteps in one forward; 0: what fits
    config.train.updates_per_inner_epoch = placeholder(int)  # optimizer steps per pass; unset: 1, or as implied below
    config.train.gradient_accumulation_steps = placeholder(int)  # micro-batches per optimizer step
    config.train.num_batches_per_epoch = placeholder(int)  # micro-batches per device and pass
    config.train.num_inner_epochs = 1  # passes over each epoch's samples, each with fresh times and noise
    config.train.off_policy = False  # sample and measure ratios with the anchor
    config.train.old_policy = "rollout"  # after the first update: rollout = exact ratio, current = ratio 1
    config.train.cfg = False  # train the guided velocity (guidance_scale) instead of the conditional one
    config.train.train_timesteps = 6  # training times per sample and update
    config.train.group_noise = False  # a prompt's images share times and noise: same gradient on average, less variance
    config.train.kl_timesteps = placeholder(int)  # of these, a random few at which KL terms are evaluated; unset: all
    config.train.skip_zero_advantage = False  # no forward for images with advantage 0; drops their KL terms
    config.train.timestep_fraction = 0.9  # part of the rollout grid, from the noise end, that is trained
    config.train.learning_rate = 3e-4
    config.train.adam_beta1 = 0.9
    config.train.adam_beta2 = 0.999
    config.train.adam_weight_decay = 1e-4
    config.train.adam_epsilon = 1e-8
    config.train.use_8bit_adam = False
    config.train.max_grad_norm = 1.0
    config.train.beta = 0.001  # KL to the reference
    config.train.kl_weight = "Uniform"  # Uniform | ELBO
    config.train.clip_range = 1.0
    config.train.adv_clip_max = 5.0  # advantages clipped to this many standard deviations ...
    config.train.advantage_max = 1.0  # ... and rescaled to this largest value
    config.train.loss_type = "exp_first"  # exp_first | sum_first
    config.train.weighting = "ghuber"  # Uniform | t | t**2 | huber | ghuber
    config.train.ghuber_power = 0.25
    config.train.ema_beta = 1.0  # KL to the anchor
    config.train.kl_ema_weight = "Uniform"  # Uniform | ELBO
    config.train.kl_ema_decay = 0.3
    config.train.kl_ema_decay_type = "linear"  # constant | linear | delayed | offset
    config.train.ema = True  # keep an average of the weights for evaluation
    config.train.ema_decay = 0.99
    config.train.ema_update_step_interval = 1  # epochs between updates of the average
    config.train.simpo_weighting = "exp"  # exp | linear | square | power | wd1: rewards of a group -> weights, mean 1
    config.train.simpo_floor = 0.0  # smallest weight of linear, square and power; below 0, bad images repel
    config.train.simpo_power = 2.0  # of weighting power: max((q - nu) / temperature, 0)^power
    config.train.simpo_temperature = placeholder(float)  # in std of the rewards; unset: for a target (wd1: 1)
    config.train.simpo_target_kl = placeholder(float)  # nats of KL(weights || uniform) in a group; unset: 1.5
    config.train.simpo_target_entropy = placeholder(float)  # nats; instead of the KL
    config.train.simpo_min_temperature = 0.05  # smallest solved one; tied rewards can put a target out of reach
    config.train.simpo_centred = True  # weights minus one, as an advantage, beside the pull: less variance
    config.train.simpo_pull = 1.0  # pull to the policy that sampled; none if old_policy is current
    config.train.simpo_error_clip = 5.0  # bound on a feature's squared error where the loss repels
    config.train.rfm_estimator = "noise"  # noise | gradient | combined: the latter two need a differentiable reward
    config.train.rfm_temperature = 1.0  # in std of the rewards: the target is the policy times exp(reward / this)
    config.train.rfm_score = "policy"  # policy | gaussian: where gradient and combined take the policy's score from
    config.train.rfm_form = "weighted"  # weighted | anchored
    config.train.rfm_centred = True  # of weighted with noise: subtract what equal rewards would give; less variance
    config.train.rfm_gradient_clip = 3.0  # largest rms of the gradient term per dimension; 0: no bound
    config.train.rfm_score_time = 0.05  # time at which the policy's score is evaluated
    config.train.reference_guidance_scale = placeholder(float)  # guidance of the reference; unset: as train.cfg says
    config.train.sde_steps = placeholder(int)  # flow_grpo, grpo_guard: stochastic steps trained a pass; unset: all
    config.train.kl_time_scaled = False  # flow_grpo, grpo_guard: KL times the step's length, as in Flow-GRPO's code
    config.train.guard_div_dt = True  # grpo_guard: each step's loss over its length
    config.train.nft_beta = 1.0  # nft: share of the current velocity in the two it compares
    config.train.nft_adaptive = True  # nft: each of the two errors over its mean absolute value
    config.train.flow_awr_max = placeholder(float)  # flow_awr: largest weight; unset: none
    config.train.vgrpo_soft_clip = placeholder(float)  # v_grpo: advantages eta tanh(A / eta) with this eta
    config.train.vgrpo_kl = 0.0  # v_grpo: KL to the policy that sampled, weight t^2
    config.train.rwr_temperature = 1.0  # rwr: of the softmax over a prompt's rewards, in their units
    config.train.awr_temperature = 1.0  # awr: of exp((reward - mean) / this)
    config.train.awr_max_weight = 20.0  # awr: largest weight
    config.train.dpmd_temperature = 1.0  # dpmd: of exp(standardised reward / this)
    config.train.qvpo_best_only = False  # qvpo: only the best image of a prompt, weighted with its advantage
    config.train.dpo_beta = 100.0  # dpo: strength of the implicit reward
    config.train.dgpo_beta = 100.0  # dgpo: likewise
    config.train.dgpo_clip = placeholder(float)  # dgpo: range of exp(error of the anchor - error) that has a gradient
    config.train.crd_beta = 1.0  # crd: implicit reward per unit of likelihood gain
    config.train.crd_loss = "mse"  # crd: mse | bce
    config.train.crd_adaptive = True  # crd: errors over their mean absolute value
    config.train.crd_weight_temperature = placeholder(float)  # crd: of the group means; unset: uniform
    config.train.crd_adaptive_pull = True  # crd: pull good images less toward the reference
    config.train.use_sa_solver = True
    config.train.lora_path = ""  # start from this LoRA folder
    config.train.gradient_checkpointing = False
    config.train.compile = False  # compile the transformer's blocks, in minutes at the start; training and sampling

    config.evaluation = ConfigDict()
    config.evaluation.num_images_per_prompt = 1
    config.evaluation.max_prompts = 0  # 0: the whole test file; else evenly spaced prompts of it
    config.evaluation.num_saved_images = 32  # images written per evaluation, for the report's pairs
    config.evaluation.current = False  # also evaluate the current weights, not only the average
    config.evaluation.seed = 0  # noise of image j of prompt p is keyed by (seed, p, j): the same in every run

    config.guardrails = ConfigDict()  # beyond these the run goes on and says so; metric `warnings` counts them
    config.guardrails.zero_std_ratio = 0.8  # share of prompts whose images all score the same
    config.guardrails.invalid_fraction = 0.02  # share of images without a score
    config.guardrails.velocity_norm_low = 0.8  # norm of the velocity, current over reference
    config.guardrails.velocity_norm_high = 1.25
    config.guardrails.repeat_epochs = 20  # epochs until the same warning is given again

    config.reward_server = ConfigDict()
    config.reward_server.urls = ("http://127.0.0.1:18080",)  # each of them has every scorer; requests are spread
    config.reward_server.urls_of = ConfigDict({}, allow_dotted_keys=True)  # scorer -> its own servers, instead of urls
    config.reward_server.timeout_s = 120.0  # longest wait for one answer
    config.reward_server.max_retries = 8  # when a proxy before a server, or scoring one image, fails for now
    config.reward_server.server_wait_s = 300.0  # longest wait for servers that restart or are overloaded
    config.reward_server.allow_changed_scorer = False  # go on when a server comes back with other versions
    config.reward_server.token = ""  # never written to disk; better: environment variable AWM_REWARD_TOKEN
    config.reward_server.max_invalid_fraction = 0.1  # stop when more of an epoch's samples lack a reward
    return config.lock()


def config_from_json(path: str) -> ConfigDict:
    """The config a run wrote to ``config.json``; unknown keys are errors, so that typos do not pass silently."""
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from error
    config = default_config()
    with config.unlocked():
        _merge(config, values, "")
    return config.lock()


def copy_config(config: ConfigDict) -> ConfigDict:
    """An equal config of its own; ``copy.deepcopy`` stops at names with dots."""
    copied = default_config()
    with copied.unlocked():
        _merge(copied, config.to_dict(), "")
    return copied.lock()


def config_to_dict(config: ConfigDict) -> dict[str, Any]:
    """Plain nested dictionary for ``config.json``, without the token."""
    values: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    values["reward_server"]["token"] = ""
    return values


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionary -> {"a.b": value}; the value of one of ``DATA_KEYS`` stays one."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict) and name not in DATA_KEYS:
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


def _merge(config: ConfigDict, values: dict[str, Any], prefix: str) -> None:
    for key, value in values.items():
        if prefix + key in DATA_KEYS:
            config[key] = ConfigDict({name: _unlisted(v) for name, v in value.items()}, allow_dotted_keys=True)
        elif key not in config:
            raise ValueError(f"unknown configuration key {prefix + key!r}.{nearest(key, list(config))}")
        elif isinstance(value, dict):
            _merge(config[key], value, prefix + key + ".")
        elif value is not None:
            config[key] = _unlisted(value)


def _unlisted(value: Any) -> Any:
    """JSON has lists only, configs have tuples."""
    return tuple(value) if isinstance(value, list) else value
