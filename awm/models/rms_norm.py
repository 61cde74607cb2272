"""SD3's normalisation of queries and keys, a few images at a time, in half precision on CPUs.

y = x / sqrt(mean(x^2) + eps) * w over the last dimension, https://arxiv.org/abs/1910.07467, eq. 4. The library's takes
seven passes through memory, part of them in float32, and its backward pass some twenty; those of a piece that fits the
cores' caches never reach memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor

PIECE = 2**17
"""Numbers of a piece for each thread, 512 KiB in float32: half as many and twice as many took the same time."""


def use_rms_norm_in_pieces(transformer: Any) -> None:
    """Make every ``RMSNorm`` of ``transformer``, a diffusers ``SD3Transformer2DModel``, an ``RmsNormInPieces``."""
    for module in transformer.modules():
        if type(module) is RMSNorm:
            module.__class__ = RmsNormInPieces


class RmsNormInPieces(RMSNorm):  # type: ignore[misc]  # the library has no types
    """The layer of diffusers, computed in float32 and rounded once.

    The same numbers with gradient and without. With trained weights, a shift, other dtypes than one of half precision,
    or compiled, it is the library's own.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, ..., D] -> the same."""
        x, weight = hidden_states, self.weight
        fits = weight is not None and self.bias is None and weight.dtype == x.dtype and x.dtype.itemsize == 2
        y: Tensor
        if not fits or weight.requires_grad or torch.compiler.is_compiling():
            y = super().forward(x)
        else:
            y = cast(Any, _RmsNorm).apply(x, weight, self.eps)
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
    """Images of all, as many at a time as make a piece of the first tensor; at least one, however large it is."""
    first = tensors[0]
    images = max(1, PIECE * torch.get_num_threads() * len(first) // max(1, first.numel()))
    return zip(*(torch.split(tensor, images) for tensor in tensors), strict=True)
