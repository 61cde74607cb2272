"""One method with one seed: fine-tune or select, sample, measure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from awm.lab.sequences.baselines import best_of_n, rejection_finetune
from awm.lab.sequences.denoiser import Denoiser
from awm.lab.sequences.diffusion import sample
from awm.lab.sequences.finetune import Score, finetune
from awm.lab.sequences.measures import kmer_correlation, mean_pairwise_hamming, median, negative_log_likelihood
from awm.lab.sequences.reward_model import RewardModel
from awm.lab.sequences.settings import FINETUNED, Settings, check_method
from awm.lab.sequences.world import World, gc_content
from awm.provenance import provenance

EVAL_SEED = 1_000_000  # added to the seed, so that evaluation shares no numbers with training


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share.

    Attributes:
        settings: sizes.
        pretrained: the model that every run starts from.
        reward: the reward model that is maximised.
        held_out: the reward model of the other half of the measurements.
        data: [M, L] background sequences, for k-mers.
    """

    settings: Settings
    pretrained: Denoiser
    reward: RewardModel
    held_out: RewardModel
    data: Tensor

    def scores(self) -> dict[str, Score]:
        """The two judges that no method sees."""
        return {"held_out": self.held_out.score, "true": self.settings.world.activity}


def run_method(bench: Bench, method: str, *, seed: int) -> dict[str, Any]:
    """One run: its numbers, and the commit and time that made them, which stay true when it is read from a cache.

    Returns:
        {"final": measures of eval_size sequences, "updates": records of ``finetune``, empty for the baselines,
        "cpu_seconds": time taken, "commit": of the code, None outside a checkout}.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    check_method(method)
    started = time.process_time()
    final, updates = _run(bench, method, seed)
    seconds, commit = time.process_time() - started, provenance("", ())["commit"]
    return {"final": final, "updates": updates, "cpu_seconds": seconds, "commit": commit}


def _run(bench: Bench, method: str, seed: int) -> tuple[Mapping[str, float], list[dict[str, float]]]:
    settings, start = bench.settings, bench.pretrained
    if method == "best_of_n":
        tokens, _ = best_of_n(start, bench.reward.score, settings, seed=seed)
        return measure_sequences(bench, tokens), []
    updates: list[dict[str, float]] = []
    model = start
    if method == "rejection":
        model = rejection_finetune(start, bench.reward.score, settings, seed=seed)
    elif method in FINETUNED:
        weighing = settings.weighing(method)
        model, updates = finetune(start, bench.reward.score, weighing, settings, seed=seed, watch=bench.scores())
    generator = torch.Generator().manual_seed(EVAL_SEED + seed)
    length, steps = settings.world.length, settings.sampler_steps
    tokens = sample(model, settings.eval_size, length, steps=steps, generator=generator)
    return measure_sequences(bench, tokens), updates


def measure_sequences(bench: Bench, tokens: Tensor) -> Mapping[str, float]:
    """Medians of the three activities, how unlikely the pre-trained model finds them, diversity and motif content.

    The KL from the pre-trained model is not among them: the difference of the two models' likelihood bounds is no
    estimate of it, because a fine-tuned model's own bound is loose where its conditionals contradict each other.

    Args:
        bench: judges, pre-trained model and data.
        tokens: [B, L] the method's sequences.
    """
    settings, world = bench.settings, bench.settings.world
    versions = settings.eval_versions
    nll = negative_log_likelihood(bench.pretrained, tokens, versions=versions, seed=EVAL_SEED).mean().item()
    return {
        "predicted": median(bench.reward.score(tokens)),
        **{name: median(score(tokens)) for name, score in bench.scores().items()},
        "nll_pretrained": nll,
        "kmer_correlation": kmer_correlation(tokens, bench.data),
        "hamming": mean_pairwise_hamming(tokens),
        **content(world, tokens),
    }


def content(world: World, tokens: Tensor) -> dict[str, float]:
    """Share of C and G, and the mean number of bound motifs of each kind and of pairs, in a sequence."""
    bound = world.binding(tokens)
    names = [f"motif_{motif.name}" for motif in world.motifs]
    return {
        "gc": gc_content(tokens).mean().item(),
        **dict(zip(names, bound.sum(2).mean(0).tolist(), strict=True)),
        "pairs": world.pair_count(bound).mean().item(),
    }
