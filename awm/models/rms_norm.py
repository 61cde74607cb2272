"""SD3's normalisation of queries and keys in pieces that fit a core's cache, in half precision on CPUs.

y = x / sqrt(mean(x^2) + eps) * w over the last dimension, https://arxiv.org/abs/1910.07467, eq. 4. The library's takes
seven passes through memory, part of them in float32, and its backward pass some twenty.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor

PIECE = 2**18
"""Numbers of a piece, 1 MiB in float32: half as many and twice as many took the same time where 1 MiB is the cache."""


def use_rms_norm_in_pieces(transformer: Any) -> None:
    """Let every ``RMSNorm`` of ``transformer``, a diffusers ``SD3Transformer2DModel``, compute by this module."""
    for module in transformer.modules():
        if isinstance(module, RMSNorm):
            module.forward = partial(rms_norm_in_pieces, module)


def rms_norm_in_pieces(module: RMSNorm, x: Tensor) -> Tensor:
    """``RMSNorm.forward`` of diffusers, [B, ..., D] -> the same, computed in float32 and rounded once.

    With trained weights, a shift, or other dtypes than one of half precision, it is the library's own.
    """
    weight = module.weight
    fits = weight is not None and module.bias is None and weight.dtype == x.dtype and x.dtype.itemsize == 2
    y: Tensor
    if not fits or weight.requires_grad or torch.compiler.is_compiling():
        y = type(module).forward(module, x)
    else:
        y = cast(Any, _RmsNorm).apply(x, weight, module.eps)
    return y


class _RmsNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps) and n = r x: y = w n, dx = r (w dy - n mean(w dy n))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, w = torch.empty_like(x), weight.float()
        inverse = torch.empty_like(x[..., :1], dtype=torch.float32)
        for part, r, out in _pieces(x, inverse, y):
            n = part.float()
            torch.linalg.vector_norm(n, dim=-1, keepdim=True, out=r).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            out.copy_(n.mul_(r).mul_(w))
        ctx.save_for_backward(x, w, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, w, inverse = ctx.saved_tensors
        dx = torch.empty_like(x)
        for part, r, dy, out in _pieces(x, inverse, gradients[0], dx):
            n, dn = part.float().mul_(r), dy.float().mul_(w)
            mean = (dn * n).mean(-1, keepdim=True)
            out.copy_(dn.addcmul_(n, mean, value=-1).mul_(r))
        return dx, None, None


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the first dimension of all, as many at a time as make a piece of the first tensor."""
    rows = max(1, PIECE * len(tensors[0]) // max(1, tensors[0].numel()))
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
