"""What the trainer's savings do to the gradient of one epoch, and write benchmarks/results/savings.json.

    python benchmarks/savings.py

The tiny model trains a few epochs, so that current, anchor and reference differ; then the gradient of AWM's loss on one
more epoch's images is computed with and without each saving, always at the same times and noise:

    train.kl_timesteps          many random subsets: is their mean the gradient with all times, and how much do they add
                                to the noise that the gradient has anyway, by its own times and noise?
    train.skip_zero_advantage   with and without KL terms
    anchor equal to current     against a forward of its own

If draws g_d with mean g and covariance C are right on average, n ||mean_d g_d - g||^2 / tr C is near 1, and t along any
direction fixed beforehand is a standard normal. Rewards are computed in process. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from provenance import ROOT, provenance
from torch import Tensor

from awm.building import build_objective, build_trainer
from awm.command_line import parse
from awm.configuration import copy_config
from awm.flow.rng import SampleNoise
from awm.objectives.noising import NoisedBatch, random_times
from awm.training.distributed import Distributed
from awm.training.epoch_rewards import gather_rewards
from awm.training.micro_batches import with_advantage
from awm.training.stopping import StopRequest
from awm.training.trainer import Trainer
from awm.training.update import masked_sum
from awm.types import Experience

DIRECTIONS = 16


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help="of 8 images each (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="before the one measured (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=48, help="random subsets (default: %(default)s)")
    parser.add_argument("--noises", type=int, default=8, help="other times and noise (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/savings.json")
    options = parser.parse_args()
    results: dict[str, Any] = provenance("torch", "diffusers", "peft") | {
        "prompts": options.prompts,
        "images_per_prompt": 8,
        "draws": options.draws,
        "noises": options.noises,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = settings(folder, options.prompts, options.epochs)
        trainer = build_trainer(config, Distributed(config.mixed_precision), StopRequest())
        for _ in range(options.epochs):
            trainer.train_epoch()
        measured = Gradients(config, trainer)
        results["train_timesteps"] = config.train.train_timesteps
        results["zero_advantage"] = 1 - float(with_advantage(measured.experience).float().mean())
        results["kl_timesteps"] = {k: subsets(measured, k, options.draws, options.noises) for k in (1, 2)}
        results["skip_zero_advantage"] = skipping(measured)
        results["anchor_equal_to_current"] = sparing(measured)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({name: results[name] for name in results if isinstance(results[name], dict)}, indent=2))


def settings(folder: str, prompts: int, epochs: int) -> ConfigDict:
    """The quickstart with few prompts, in float32, both KL terms, and an anchor that lags behind from the start."""
    config = parse(["--config", f"{ROOT}/config/awm.py:quickstart"], program="savings", purpose="")
    config.run_name, config.logdir, config.num_epochs, config.eval_freq = "savings", folder, epochs, 0
    config.mixed_precision = "no"
    config.sample.num_prompts_per_epoch = prompts
    config.sample.train_batch_size = config.train.batch_size = 8
    config.train.updates_per_inner_epoch = 2
    config.train.beta = 0.1
    config.train.kl_ema_decay_type = "constant"
    with config.unlocked():
        config.reward_fn = ConfigDict({"geneval_shapes.strict": 1.0}, allow_dotted_keys=True)
    return config


class Gradients:
    """Gradients of one epoch's loss, in float64, as one vector.

    Args:
        config: of the run.
        trainer: after some epochs; its weights stay as they are.
    """

    def __init__(self, config: ConfigDict, trainer: Trainer) -> None:
        self.config, self.policy = config, trainer.policy
        self.parameters = trainer.policy.trainable_parameters()
        prompts = trainer.epoch_prompts()
        rollout = trainer.rollout(prompts, trainer.rollout_noise, lambda _: None, keep=())
        rewards = gather_rewards(rollout.rewards, prompts.group, trainer.distributed)
        self.experience, _ = trainer.credit(rollout, rewards, prompts, trainer.epoch)
        self.epoch = trainer.epoch

    def __call__(
        self,
        samples: Experience | None = None,
        *,
        noise: int = 0,
        times: Callable[[Experience], Tensor] | None = None,
        **changes: Any,
    ) -> Tensor:
        """Of the mean over all valid samples of the epoch, of which only ``samples`` are run.

        Args:
            samples: None: all.
            noise: number of the pass, which decides times and noise.
            times: numbers of the times at which the KL terms are evaluated.
            **changes: of ``config.train``.
        """
        config = copy_config(self.config)
        config.train.update(changes)
        objective: Any = build_objective(config)
        if times is not None:
            plain = objective.forward.noised

            def noised(batch: Experience, **key: int) -> NoisedBatch:
                found: NoisedBatch = plain(batch, **key)
                return replace(found, kl_times=times(batch))

            objective.forward.noised = noised
        samples = self.experience if samples is None else samples
        for part in torch.arange(len(samples)).split(config.train.batch_size):
            batch = samples.take(part)
            out = objective(self.policy, batch, seed=config.seed, epoch=self.epoch, inner_epoch=noise, on_policy=True)
            (masked_sum(out.loss, batch.valid) / self.experience.valid.sum()).backward()
        gradient = torch.cat(
            [parameter.grad.flatten().double() for parameter in self.parameters if parameter.grad is not None]
        )
        for parameter in self.parameters:
            parameter.grad = None
        return gradient


def subsets(gradient: Gradients, count: int, draws: int, noises: int) -> dict[str, Any]:
    """How gradients with KL terms at ``count`` random times are spread around the one with all."""
    total = gradient.config.train.train_timesteps

    def draw(number: int) -> Tensor:
        def times(batch: Experience) -> Tensor:
            return random_times(SampleNoise(number, "savings", 0, batch.sample_index), total, count)

        return gradient(times=times)

    whole, policy = gradient(), gradient(beta=0.0, ema_beta=0.0)
    found = torch.stack([draw(number) for number in range(draws)])
    others = torch.stack([gradient(noise=number) for number in range(1, noises + 1)])
    error = found - whole
    variance = found.var(0).sum()
    along = torch.randn(DIRECTIONS - 2, len(whole), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.cat([along, whole[None], (whole - policy)[None]])  # the last is the KL terms' own gradient
    projected = error @ along.T
    t = projected.mean(0) / (projected.std(0) / math.sqrt(draws))
    return {
        "rows_without_gradient": f"{count}/{total}",
        "one_draw": {
            "cosine": compare(found[0], whole)["cosine"],
            "norm_ratio": compare(found[0], whole)["norm_ratio"],
        },
        "mean": compare(found.mean(0), whole),
        "kl_terms_of_the_mean": compare(found.mean(0) - policy, whole - policy),
        "squared_error_over_expected": float(draws * error.mean(0).square().sum() / variance),
        "t": [round(float(value), 2) for value in t],
        "noise_of_the_subset": float(variance.sqrt() / whole.norm()),
        "noise_of_times_and_noise": float(others.var(0).sum().sqrt() / whole.norm()),
    }


def skipping(gradient: Gradients) -> dict[str, Any]:
    """The gradient without the samples whose advantage is zero, against that with them.

    So that there are some, the first prompt's images count as if they had all scored alike.
    """
    tied = gradient.experience.group == gradient.experience.group[0]
    advantage = gradient.experience.advantage.masked_fill(tied.to(gradient.experience.x_0.device), 0.0)
    gradient.experience = replace(gradient.experience, advantage=advantage)
    kept = gradient.experience.take(with_advantage(gradient.experience).nonzero().flatten())
    no_kl = {"beta": 0.0, "ema_beta": 0.0}
    policy, whole = gradient(**no_kl), gradient()
    return {
        "rows": len(kept) / len(gradient.experience),
        "policy_term": compare(gradient(kept, **no_kl), policy),
        "with_kl": compare(gradient(kept), whole),
        "kl_terms": compare(gradient(kept) - policy, whole - policy),
        "kl_terms_over_whole": float((whole - policy).norm() / whole.norm()),
    }


def sparing(gradient: Gradients) -> dict[str, Any]:
    """The gradient while the anchor equals current, with its forward spared and made."""
    policy: Any = gradient.policy
    policy.update_anchor(0.0)
    assert policy.equals_current("anchor")
    spared = gradient()
    policy.current_moved()  # so that the policy no longer knows
    return compare(spared, gradient())


def compare(value: Tensor, expected: Tensor) -> dict[str, float]:
    """Cosine, ratio of norms, and the largest difference relative to the largest component."""
    return {
        "cosine": float(torch.cosine_similarity(value, expected, dim=0)),
        "norm_ratio": float(value.norm() / expected.norm()),
        "largest_difference": float((value - expected).abs().max() / expected.abs().max()),
    }


if __name__ == "__main__":
    main()
