"""Data, pre-trained model and the two reward models, made once per settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from awm.lab.sequences.cache import Cache, fingerprint
from awm.lab.sequences.data import measure, sample_sequences
from awm.lab.sequences.denoiser import Denoiser
from awm.lab.sequences.diffusion import sample
from awm.lab.sequences.evaluation import Bench, content
from awm.lab.sequences.measures import kmer_correlation, median, negative_log_likelihood
from awm.lab.sequences.pretrain import pretrain
from awm.lab.sequences.reward_model import RewardModel, correlation, train_reward_model
from awm.lab.sequences.settings import Settings

DATA_SEED, TEST_SEED, REWARD_SEED, HELD_OUT_SEED, PRETRAIN_SEED = 11, 12, 13, 14, 15


def prepare(settings: Settings, cache: Cache, *, log: Callable[[str], None]) -> Bench:
    """The shared parts of all runs, read from ``cache`` where they are there.

    Args:
        settings: sizes.
        cache: where trained models are kept.
        log: told about what takes long.
    """
    generator = torch.Generator().manual_seed(DATA_SEED)
    tokens = sample_sequences(settings.world, settings.data_size, generator)
    halves = measure(settings.world, tokens, generator).halves()
    key = fingerprint(settings, models_only=True)

    def make() -> dict[str, Any]:
        log("training two reward models and the masked-diffusion model; kept for the next time")
        seeds = (REWARD_SEED, HELD_OUT_SEED)
        pair = [
            train_reward_model(half, epochs=settings.reward_epochs, seed=seed)
            for half, seed in zip(halves, seeds, strict=True)
        ]
        denoiser = pretrain(tokens, steps=settings.pretrain_steps, seed=PRETRAIN_SEED)
        models = {"reward": pair[0], "held_out": pair[1], "denoiser": denoiser}
        return {name: model.state_dict() for name, model in models.items()}

    weights = cache.weights("models", key, make)
    reward, held_out, denoiser = RewardModel(), RewardModel(), Denoiser()
    reward.load_state_dict(weights["reward"])
    held_out.load_state_dict(weights["held_out"])
    denoiser.load_state_dict(weights["denoiser"])
    return Bench(settings, denoiser, reward.eval(), held_out.eval(), tokens)


def quality(bench: Bench) -> dict[str, Any]:
    """How good the shared models are, on sequences that none of them saw.

    "data" and "samples" are motif contents to be compared: of such sequences, and of as many samples of the pre-trained
    model, uncovered one letter at a time on average.
    """
    settings, world = bench.settings, bench.settings.world
    generator = torch.Generator().manual_seed(TEST_SEED)
    test = sample_sequences(world, max(2, settings.eval_size), generator)
    truth = world.activity(test)
    samples = sample(bench.pretrained, len(test), world.length, steps=world.length, generator=generator)
    nll = negative_log_likelihood(bench.pretrained, test, versions=settings.eval_versions, seed=TEST_SEED)
    return {
        "reward_correlation": correlation(bench.reward.score(test), truth),
        "held_out_correlation": correlation(bench.held_out.score(test), truth),
        "test_nll": nll.mean().item(),
        "test_activity": median(truth),
        "data": content(world, test) | {"kmer_correlation": kmer_correlation(test, bench.data)},
        "samples": content(world, samples) | {"kmer_correlation": kmer_correlation(samples, bench.data)},
    }
