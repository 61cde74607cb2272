"""Sums and means over the images of a prompt, for losses that couple them.

The images of an optimizer step lie in many micro-batches and on many ranks. What a prompt's images have in common is
computed from all of them, in float64 and in the order of the epoch, so that it does not depend on that split; images
without a valid reward count nowhere. An objective uses it in ``prepare_step`` (``awm.interfaces.PreparesStep``):

    groups = StepGroups(micro_batches, gather)
    mean = groups.mean(groups.collect(per_sample))      # per_sample: [B_j, ...] of each micro-batch j
    return groups.spread(mean)                          # the same shapes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from awm.objectives.forward_process import ForwardProcess
from awm.types import Experience


class StepGroups:
    """The N samples of an optimizer step, of all micro-batches and ranks, ordered by their number in the epoch.

    Making one, and ``collect``, are collectives: every rank does both equally often. Tensors are on the CPU.

    Args:
        micro_batches: this rank's; all ranks have equally many samples.
        gather: see ``PreparesStep``.

    Attributes:
        group: [N] int64 row of each sample's group, 0 to G - 1.
        valid: [N] bool.
        advantage: [N] float64.
    """

    def __init__(self, micro_batches: Sequence[Experience], gather: Callable[[Tensor], Tensor]) -> None:
        self._batches, self._gather = micro_batches, gather
        # One table, hence one collective; whole numbers below 2^53 are exact in it.
        index, group, valid, advantage = gather(torch.cat([_table(batch) for batch in micro_batches])).unbind(1)
        self._order = index.argsort()
        self._rows = [torch.searchsorted(index[self._order], b.sample_index.cpu().double()) for b in micro_batches]
        names, self.group = torch.unique(group[self._order], return_inverse=True)
        self.valid, self.advantage = valid[self._order] > 0, advantage[self._order]
        self._num_groups = len(names)

    def collect(self, parts: Sequence[Tensor]) -> Tensor:
        """[N, ...] float64 of all ranks from [B_j, ...] of each of this rank's micro-batches j."""
        return self._gather(torch.cat([part.detach().cpu().double() for part in parts]))[self._order]

    def spread(self, values: Tensor) -> list[Tensor]:
        """[B_j, ...] of each of this rank's micro-batches from [N, ...], in the micro-batch's precision and place."""
        return [values[rows].to(batch.x_0) for rows, batch in zip(self._rows, self._batches, strict=True)]

    def sum(self, values: Tensor) -> Tensor:
        """[N, ...] float64 sum of values [N, ...] over the valid samples of each sample's group."""
        known = self.valid.reshape(-1, *(1,) * (values.ndim - 1))
        counted = torch.where(known, values.double(), 0.0)  # not a product: an invalid sample may be NaN
        return counted.new_zeros(self._num_groups, *values.shape[1:]).index_add(0, self.group, counted)[self.group]

    def mean(self, values: Tensor) -> Tensor:
        """[N, ...] float64 mean over the valid samples of each sample's group; 0 if it has none."""
        count = self.sum(self.valid.double()).clamp(min=1)
        return self.sum(values) / count.reshape(-1, *(1,) * (values.ndim - 1))

    def softmax(self, score: Tensor) -> Tensor:
        """[N] float64 softmax of score [N] over the valid samples of each group; 0 for the others."""
        known = score.double().masked_fill(~self.valid, -math.inf)
        top = known.new_full((self._num_groups,), -math.inf).scatter_reduce(0, self.group, known, "amax")
        share = torch.where(self.valid, (known - top[self.group]).exp(), 0.0)
        return share / self.sum(share).clamp(min=1e-300)


def require_group_noise(forward: ForwardProcess, algorithm: str) -> None:
    """Raise ValueError unless the images of a prompt share their times and noise."""
    if not forward.group_noise:
        raise ValueError(
            f"train.algorithm={algorithm!r} compares the images of a prompt at the same times and noise, but "
            f"train.group_noise=False; set train.group_noise=True."
        )


def require_terms(batch: Experience, algorithm: str) -> Tensor:
    """The batch's [B, ...] group terms; ValueError if it has none."""
    if batch.group_terms is None:
        raise ValueError(
            f"the samples of {algorithm!r} have no group terms; give Experience.group_terms what prepare_step() "
            f"returned for their micro-batch."
        )
    return batch.group_terms


def _table(batch: Experience) -> Tensor:
    """[B, 4] float64 number, group, validity and advantage of each sample."""
    columns = (batch.sample_index, batch.group, batch.valid, batch.advantage)
    return torch.stack([column.detach().cpu().double() for column in columns], 1)
