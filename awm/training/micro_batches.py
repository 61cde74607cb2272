"""What an optimizer step runs: its samples in micro-batches, all of them or those that teach something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from awm.types import Experience


def micro_batches(samples: Experience, size: int) -> list[Experience]:
    """All samples in order, ``size`` at a time."""
    return [samples.take(part) for part in torch.split(torch.arange(len(samples)), size)]


def with_advantage(samples: Experience) -> Tensor:
    """[B] bool: valid samples whose advantage is not zero."""
    return samples.valid & (samples.advantage != 0)


def micro_batches_with_advantage(
    samples: Experience, size: int, gather: Callable[[Tensor], Tensor]
) -> list[Experience]:
    """The samples of ``with_advantage`` in order, in equally many micro-batches on every rank, at least one.

    Ranks run equally many forwards and backwards, and an optimizer step in which nobody learns is still one, of zero
    gradients, as it would be if its samples had been run. A rank that has fewer micro-batches than another, or none,
    therefore runs one sample for each that it lacks, which is not valid, so that it neither teaches nor is counted.

    Args:
        samples: this rank's share of the step, at least one.
        size: of a micro-batch; the last one may be smaller.
        gather: [B] of this rank -> [N] of all ranks; a collective.
    """
    rows = with_advantage(samples).cpu().nonzero().flatten()
    mine = -(-len(rows) // size)
    most = max(1, int(gather(torch.tensor([mine])).max()))
    batches = [samples.take(part) for part in torch.split(rows, size)][:mine]
    nobody = samples.take(torch.tensor([0]))
    nobody = replace(nobody, valid=torch.zeros_like(nobody.valid))
    return batches + [nobody] * (most - mine)
