"""How good, how likely and how diverse a set of sequences is."""

from __future__ import annotations

import torch
from torch import Tensor

from awm.lab.sequences.diffusion import LogProbs, denoising_loss, draw_times, mask_tokens
from awm.lab.sequences.reward_model import correlation
from awm.lab.sequences.world import LETTERS


def median(values: Tensor) -> float:
    """Median of a vector; of an even number, the mean of the two in the middle."""
    return values.quantile(0.5).item()


def kmer_frequencies(tokens: Tensor, k: int) -> Tensor:
    """[4^k] float64 share of every word of k letters in tokens [B, L], in the order of base-4 numbers."""
    if not 1 <= k <= tokens.shape[1]:
        raise ValueError(f"k={k} does not fit sequences of {tokens.shape[1]} letters.")
    words = tokens.unfold(1, k, 1)
    place = len(LETTERS) ** torch.arange(k - 1, -1, -1)
    counts = torch.bincount((words * place).sum(-1).flatten(), minlength=len(LETTERS) ** k)
    return counts.double() / counts.sum()


def kmer_correlation(tokens: Tensor, other: Tensor, *, k: int = 3) -> float:
    """Pearson correlation of the k-mer frequencies of two sets of sequences (DRAKES, arXiv 2410.13643, uses k = 3)."""
    return correlation(kmer_frequencies(tokens, k), kmer_frequencies(other, k))


def mean_pairwise_hamming(tokens: Tensor) -> float:
    """Mean share of differing letters over all pairs of distinct rows of tokens [B, L]; 0 if all are equal, or for one.

    Counted by letter and position: sum_v n_v (n_v - 1) of the B (B - 1) ordered pairs agree.
    """
    batch = tokens.shape[0]
    if batch < 2:
        return 0.0
    count = (tokens[..., None] == torch.arange(len(LETTERS))).sum(0).double()  # [L, 4]
    agree = (count * (count - 1)).sum(1) / (batch * (batch - 1))
    return float(1 - agree.mean())


@torch.no_grad()
def negative_log_likelihood(model: LogProbs, tokens: Tensor, *, versions: int, seed: int, batch: int = 256) -> Tensor:
    """[B] bound on -log p(x_0) in nats per sequence, from ``versions`` masked versions of each.

    The same seed masks alike whatever the model, so that the difference of two models has less noise than either value.

    Args:
        model: the denoiser.
        tokens: [B, L] letters.
        versions: masked versions of each, at stratified times.
        seed: of times and masks.
        batch: sequences per model call.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(tokens))
    for _ in range(versions):
        t = draw_times(1, len(tokens), generator)
        x_t = mask_tokens(tokens, t, generator)
        parts = zip(torch.split(tokens, batch), torch.split(x_t, batch, 1), torch.split(t, batch, 1), strict=True)
        total += torch.cat([denoising_loss(model(masked), clean, masked, time)[0] for clean, masked, time in parts])
    return total / versions * tokens.shape[1]
