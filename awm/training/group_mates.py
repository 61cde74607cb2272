"""All images of a prompt on every rank that holds some of them."""

from __future__ import annotations

import torch
from torch import Tensor

from awm.training.distributed import Distributed
from awm.types import GroupMates


def gather_group_mates(
    x_0: Tensor, group: Tensor, weight: Tensor, valid: Tensor, distributed: Distributed
) -> GroupMates:
    """Complete this rank's groups with what other ranks hold of them; a collective.

    Only groups that cross a border between ranks are sent, which is at most two a rank.

    Args:
        x_0: [B, C, H, W] this rank's samples.
        group: [N] int64 group of every sample of the epoch.
        weight: [N] of every sample of the epoch.
        valid: [N] bool; the others are left out.
        distributed: the ranks; each holds B consecutive samples.

    Returns:
        The valid samples of this rank's groups, in their order in the epoch, on ``x_0``'s device.
    """
    size, rank = len(x_0), distributed.rank
    holder = torch.arange(len(group)) // size
    crosses = torch.isin(group, group[:-1][(group[1:] == group[:-1]) & (holder[1:] != holder[:-1])])
    rows = (valid & crosses & (holder == rank)).nonzero().flatten().tolist()
    # Copies, not views: pickling a view would send all latents of the rank with each of them.
    sent = [(row, x_0[row - rank * size].to("cpu", copy=True)) for row in rows]
    received = dict(distributed.gather_objects(sent))

    wanted = (valid & torch.isin(group, group[holder == rank])).nonzero().flatten()
    mates = [x_0[row - rank * size] if row // size == rank else received[row].to(x_0.device) for row in wanted.tolist()]
    return GroupMates(
        x_0=torch.stack(mates) if mates else x_0[:0],
        group=group[wanted],
        sample_index=wanted,
        weight=weight[wanted].to(x_0.device),
    )
