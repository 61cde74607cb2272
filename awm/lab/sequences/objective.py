"""SiMPO's reweighted matching for masked diffusion: cross-entropy takes the place of the squared error.

    L = E_{x_0 ~ old, t} [ (1/t) sum_{l masked} ( c(x_0) CE_l(x_0) + alpha KL(p_old,l || p_l) ) ]

Its minimiser at a masked letter is p(v | x_t) = E[(c + alpha) 1{x_0 = v} | x_t] / E[c + alpha | x_t]. With c = W and
alpha = 0 that is SiMPO's reweighted measure (arXiv 2603.10250, eqs 7-8). The centred form of ``awm.objectives.simpo``,
c = W - 1 with alpha = 1, has the same minimiser, and a gradient that starts without the part that all samples share;
wd1's weights, of mean zero, need alpha = 1, too. What follows is our reconstruction.

What a sample adds to the loss of its own letter x_0 grows with -log p(x_0) at the rate c + alpha p_old(x_0 | x_t).
Where that is negative, the discrete Case II, the loss has no lower bound as p(x_0) goes to 0, even where the sample's
total weight c + alpha is positive, unlike for squared errors. There the cross-entropy stops pushing at ``error_clip``
nats. A letter's mass over all samples may still be negative, see ``case_two_share``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awm.lab.sequences.denoiser import MASK
from awm.lab.sequences.diffusion import cross_entropy, weighted_by_time
from awm.lab.sequences.world import LETTERS
from awm.types import LossOutput


def weighted_denoising_loss(
    log_probs: Tensor,
    log_probs_old: Tensor,
    tokens: Tensor,
    x_t: Tensor,
    t: Tensor,
    credit: Tensor,
    *,
    pull: float = 1.0,
    error_clip: float = 5.0,
) -> LossOutput:
    """Loss [B] of B sequences in T masked versions each, nats per letter; see the module's equation.

    Args:
        log_probs: [T, B, L, 4] of the model being trained; the only argument that gets a gradient.
        log_probs_old: [T, B, L, 4] of the model that sampled.
        tokens: [B, L] clean sequences x_0.
        x_t: [T, B, L] masked versions.
        t: [T, B] their times.
        credit: [B] c.
        pull: alpha, not negative.
        error_clip: largest cross-entropy, nats, at which a letter of negative mass is still repelled.

    Returns:
        The loss; metrics [B]: "matching" (unweighted), "distance" from the old model, "clipped" (share of masked
        letters that no longer push).
    """
    if pull < 0 or error_clip <= 0:
        raise ValueError(
            f"pull={pull:g} and error_clip={error_clip:g}: the pull must not be negative, the clip positive."
        )
    error = cross_entropy(log_probs, tokens)
    old = log_probs_old.detach()
    repelled = credit[:, None] + pull * (-cross_entropy(old, tokens)).exp() < 0
    matching = weighted_by_time(torch.where(repelled, error.clamp(max=error_clip), error), x_t, t).mean(0)
    distance = weighted_by_time((old.exp() * (old - log_probs)).sum(-1), x_t, t).mean(0)
    masked = x_t == MASK
    clipped = (masked & repelled & (error > error_clip)).sum((0, 2)) / masked.sum((0, 2)).clamp(min=1)
    metrics = {"matching": matching, "distance": distance, "clipped": clipped}
    return LossOutput(credit * matching + pull * distance, {name: value.detach() for name, value in metrics.items()})


def case_two_share(tokens: Tensor, total_weight: Tensor) -> float:
    """Share of the letters seen at each position whose total weight over the batch is negative.

    That is the discrete Case II at t = 1, where every sample is compatible with the state, so that it can be counted.

    Args:
        tokens: [B, L] clean sequences.
        total_weight: [B] c + alpha.
    """
    letters = torch.arange(len(LETTERS))
    is_letter = tokens[..., None] == letters  # [B, L, 4]
    mass = (total_weight[:, None, None] * is_letter).sum(0)
    seen = is_letter.any(0)
    return float((mass[seen] < 0).double().mean())
