"""A linear layer with its low-rank adapter as one operation, in half precision on CPUs.

y = x W' + b + s (x A') B', https://arxiv.org/abs/2106.09685, eq. 3, with s = alpha / rank. PEFT scales the adapter's
output and adds it in two more passes through memory, and its backward pass scales the whole gradient once more; here
the second product adds to what the layer gave, and scales as it does.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear


def use_adapted_linear(transformer: Any) -> None:
    """Let every adapted linear layer of ``transformer`` compute by ``adapted_linear``, where it can."""
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear):
            layer.forward = partial(adapted_linear, layer)


def adapted_linear(layer: Any, x: Tensor) -> Tensor:
    """``forward`` of a PEFT layer with one adapter as ``add_lora`` makes it, [..., inputs] -> [..., outputs].

    Gradients are those of x, A and B. The same numbers with gradient and without. With the adapter switched off,
    trained weights, or other dtypes than one of half precision for x and W, it is PEFT's own.
    """
    base = layer.get_base_layer()
    fits = x.dtype == base.weight.dtype and x.dtype.itemsize == 2
    y: Tensor
    if not fits or layer.disable_adapters or base.weight.requires_grad or torch.compiler.is_compiling():
        y = type(layer).forward(layer, x)
    else:
        (name,) = layer.active_adapters
        down, up, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        y = cast(Any, _AdaptedLinear).apply(x, base.weight, base.bias, down, up, scale)
    return y


class _AdaptedLinear(torch.autograd.Function):
    """dx = dy W + g A with g = s dy B, dA = g' x, dB = s dy' (x A')."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        down, up = down.to(x.dtype), up.to(x.dtype)
        low = rows @ down.T
        y = linear(rows, weight, bias)
        torch.addmm(y, low, up.T, alpha=scale, out=y)
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, down, up, low = ctx.saved_tensors
        dy = gradients[0].reshape(-1, len(weight))
        g = (dy @ up).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            dx = torch.addmm(dx, g, down, out=dx).view(ctx.shape)
        return dx, None, None, (g.T @ rows).float(), (dy.T @ low).float().mul_(ctx.scale), None
