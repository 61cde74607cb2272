"""Masked (absorbing-state) diffusion with the linear schedule: masking, the loss and the ancestral sampler.

At time t each letter has been replaced by the mask with probability t. With p(. | x_t) the denoiser's probabilities,

    -log p(x_0) <= E_t [ (1 / t) sum_{l masked in x_t} -log p_l(x_0,l | x_t) ],   t ~ U(0, 1)

which is MDLM's and SEDD's bound for alpha_t = 1 - t: Shi et al. 2024 (https://arxiv.org/abs/2406.04329; Lou et al.
2023, https://arxiv.org/abs/2310.16834). Shapes: T masked versions first, then B sequences, then L letters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from awm.lab.sequences.denoiser import MASK

LogProbs = Callable[[Tensor], Tensor]
"""tokens [..., L] with masks -> log-probabilities [..., L, 4] of the clean letters."""


def draw_times(versions: int, batch: int, generator: torch.Generator) -> Tensor:
    """[T, B] times in (0, 1], one in each of T B equal strata, in random order over the whole batch."""
    number = versions * batch
    order = torch.randperm(number, generator=generator)
    times: Tensor = 1 - (order + torch.rand(number, generator=generator)) / number
    return times.reshape(versions, batch)


def mask_tokens(tokens: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """x_t [T, B, L]: each letter of tokens [B, L] is the mask with probability t [T, B], independently."""
    if bool(((t <= 0) | (t > 1)).any()):
        raise ValueError(f"times run from {float(t.min()):g} to {float(t.max()):g}; they must be in (0, 1].")
    hidden = torch.rand((*t.shape, tokens.shape[-1]), generator=generator) < t[..., None]
    return torch.where(hidden, MASK, tokens)


def cross_entropy(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """[T, B, L] minus the log-probability of the clean letters tokens [B, L], from log_probs [T, B, L, 4]."""
    index = tokens.expand(log_probs.shape[:-1])
    return -log_probs.gather(-1, index[..., None])[..., 0]


def weighted_by_time(per_letter: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """[T, B] mean over the L letters of (1 / t) 1{masked} value; per_letter and x_t are [T, B, L], t [T, B]."""
    return (per_letter * (x_t == MASK)).mean(-1) / t


def denoising_loss(log_probs: Tensor, tokens: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """[T, B] bound on -log p(x_0) in nats per letter, one unbiased draw per masked version, see the module."""
    return weighted_by_time(cross_entropy(log_probs, tokens), x_t, t)


@torch.no_grad()
def sample(model: LogProbs, number: int, length: int, *, steps: int, generator: torch.Generator) -> Tensor:
    """[number, length] int64 sequences: start with masks only, uncover each with probability (t - s) / t from t to s.

    The letters uncovered in one step are drawn independently of each other; with many steps that is rarely more than
    one at a time, and the samples follow the model exactly.

    Args:
        model: the denoiser.
        number: sequences.
        length: L.
        steps: model calls, on the grid 1, 1 - 1/steps, ..., 0; the last uncovers what is left.
        generator: all randomness.
    """
    if steps < 1:
        raise ValueError(f"a sampler with {steps} steps uncovers nothing; use at least 1.")
    tokens = torch.full((number, length), MASK, dtype=torch.int64)
    for step in range(steps):
        drawn = draw_letters(model(tokens), generator)
        uncover = torch.rand(tokens.shape, generator=generator) < 1 / (steps - step)  # (t - s) / t
        tokens = torch.where((tokens == MASK) & uncover, drawn, tokens)
    return tokens


def draw_letters(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """[..., L] letters drawn from log_probs [..., L, 4], by the largest of log p plus Gumbel noise."""
    uniform = torch.rand(log_probs.shape, generator=generator).clamp(min=torch.finfo(torch.float32).tiny)
    return (log_probs - (-uniform.log()).log()).argmax(-1)
