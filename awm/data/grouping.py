"""Which prompts an epoch uses and which samples a rank makes: pure functions of (seed, epoch, rank).

Nothing is shuffled in place and nothing is prefetched, so an epoch can be repeated or resumed anywhere.
"""

from __future__ import annotations

import numpy as np
import torch

from awm.data.prompts import PromptSet
from awm.types import Prompts


def epoch_prompt_indices(seed: int, epoch: int, num_available: int, num_prompts: int) -> list[int]:
    """``num_prompts`` distinct prompt numbers for this epoch.

    Epochs walk through a permutation of the prompt set; when fewer than an epoch's worth is left, a new
    permutation starts. A prompt therefore never appears twice in an epoch, which would merge two groups.
    """
    if num_available < num_prompts:
        raise ValueError(
            f"{num_prompts} prompts per epoch need at least as many in the train file, which holds {num_available}."
        )
    epochs_per_cycle = num_available // num_prompts
    cycle, position = divmod(epoch, epochs_per_cycle)
    order = np.random.default_rng([seed, cycle]).permutation(num_available)
    return [int(i) for i in order[position * num_prompts : (position + 1) * num_prompts]]


def rank_prompts(prompts: PromptSet, chosen: list[int], images_per_prompt: int, rank: int, per_rank: int) -> Prompts:
    """The contiguous slice of the prompt-sorted list of samples that ``rank`` makes.

    Sample i of the epoch belongs to prompt ``chosen[i // images_per_prompt]``; its group is that position.
    """
    samples = range(rank * per_rank, (rank + 1) * per_rank)
    group = [i // images_per_prompt for i in samples]
    return Prompts(
        text=tuple(prompts.text[chosen[g]] for g in group),
        group=torch.tensor(group, dtype=torch.int64),
        metadata=tuple(prompts.metadata[chosen[g]] for g in group),
    )


def update_chunks(
    seed: int, epoch: int, inner_epoch: int, first: int, count: int, updates: int, *, unit: int = 1
) -> list[torch.Tensor]:
    """Split a rank's samples ``first .. first + count - 1`` among the pass's optimizer steps.

    Of every ``updates`` consecutive units each step gets one, drawn at random per (seed, epoch, inner_epoch, block).
    With single samples as units every step sees every prompt; with whole groups, every step sees all images of its
    prompts. Either way the split does not depend on how many ranks there are.

    Args:
        seed: the run's seed.
        epoch: epoch number.
        inner_epoch: number of the pass.
        first: the rank's first sample, a multiple of ``unit * updates``, unless there is one update.
        count: the rank's samples, a multiple of it.
        updates: optimizer steps of the pass.
        unit: consecutive samples that stay together.

    Returns:
        ``updates`` tensors of local positions [count // updates], in ascending order.
    """
    blocks = count // (unit * updates)
    chunks: list[list[int]] = [[] for _ in range(updates)]
    for block in range(blocks):
        rng = np.random.default_rng([seed, epoch, inner_epoch, first // (unit * updates) + block])
        for offset, update in enumerate(rng.permutation(updates)):
            start = (block * updates + offset) * unit
            chunks[int(update)].extend(range(start, start + unit))
    return [torch.tensor(chunk, dtype=torch.int64) for chunk in chunks]
