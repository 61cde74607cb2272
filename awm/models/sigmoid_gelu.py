"""SD3's tanh-GELU by a sigmoid, for half precision on CPUs, where torch's kernel spends most of its time on the tanh.

x / 2 (1 + tanh z) = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3), https://arxiv.org/abs/1606.08415, section 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.activations import GELU
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK = 2**19
"""Elements computed at a time: their float32 intermediates stay in a processor's cache."""

CUBIC = 0.044715
SCALE = 2 * math.sqrt(2 / math.pi)


def use_sigmoid_gelu(transformer: Any) -> None:
    """Let every tanh-GELU of ``transformer``, a diffusers ``SD3Transformer2DModel``, compute by ``sigmoid_gelu``."""
    for module in transformer.modules():
        if isinstance(module, GELU) and module.approximate == "tanh":
            module.gelu = sigmoid_gelu


def sigmoid_gelu(x: Tensor) -> Tensor:
    """``torch.nn.functional.gelu(x, approximate="tanh")`` of any shape up to rounding; the same gradient.

    Intermediates are float32, and rounded to the dtype of x once.
    """
    y: Tensor = _SigmoidGelu.apply(x)  # type: ignore[no-untyped-call]
    return y


class _SigmoidGelu(torch.autograd.Function):
    """Keeps x alone for the backward pass, as torch's kernel does."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        buffers = torch.empty(2, min(CHUNK, x.numel()), dtype=torch.float32, device=x.device)
        for part, out in zip(torch.split(x.reshape(-1), CHUNK), torch.split(y.view(-1), CHUNK), strict=True):
            u, v = buffers[:, : part.numel()]
            u.copy_(part)
            torch.mul(u, u, out=v)
            torch.addcmul(u, v, u, value=CUBIC, out=v)
            out.copy_(v.mul_(SCALE).sigmoid_().mul_(u))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient: Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
        return gradient
