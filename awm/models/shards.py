"""Parameters that may be spread over the ranks (FSDP2): their local parts, and the whole of them.

A sharding engine replaces each parameter by a ``DTensor``. The weight sets are plain tensors shaped like the local
part, so that all arithmetic on them stays local; only saving needs the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This rank's part of ``tensor``, sharing its memory; ``tensor`` itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.data


@torch.no_grad()
def whole(part: Tensor, like: Tensor) -> Tensor:
    """The tensor that this rank's ``part`` belongs to, cut as ``like`` is; a collective if that is sharded."""
    if not isinstance(like, DTensor):
        return part
    sharded = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


@torch.no_grad()
def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``whole``: this rank's part of ``full``, which every rank has; no communication."""
    if not isinstance(like, DTensor):
        return full
    # Without a source rank nothing is sent: each cuts its own part.
    return local(distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None))


def forget_gathered(module: nn.Module) -> None:
    """Drop what was gathered from other ranks' parts, so that the next forward sees the parts as they are now."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()
