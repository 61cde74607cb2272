"""A linear layer with its low-rank adapter as one operation, in half precision on CPUs.

y = x W' + b + s (x A') B', https://arxiv.org/abs/2106.09685, eq. 3, with s = alpha / rank. PEFT scales the adapter's
output and adds it in two more passes through memory, and its backward pass scales the whole gradient once more; here
the second product adds to what the layer gave, and scales as it does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.nn.functional import linear


def use_adapted_linear(transformer: Any) -> None:
    """Make every adapted linear layer of ``transformer`` an ``AdaptedLinear``."""
    for layer in transformer.modules():
        if type(layer) is LoraLinear:
            layer.__class__ = AdaptedLinear


class AdaptedLinear(LoraLinear):  # type: ignore[misc]  # the library has no types
    """PEFT's layer with one adapter as ``add_lora`` makes it: no dropout, no bias of its own.

    The same numbers with gradient and without. With the adapter merged or switched off, with several, with trained
    weights, other dtypes than one of half precision for x and W, or compiled, it is PEFT's own.
    """

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        """[..., inputs] -> [..., outputs]; gradients are those of x, A and B."""
        weight = self.get_base_layer().weight
        fits = weight.dtype == x.dtype and x.dtype.itemsize == 2 and not weight.requires_grad and not args and not named
        alone = len(self.active_adapters) == 1 and not self.disable_adapters and not self.merged
        y: Tensor
        if not (fits and alone) or torch.compiler.is_compiling():
            y = super().forward(x, *args, **named)
        else:
            (name,) = self.active_adapters
            down, up, bias = self.lora_A[name].weight, self.lora_B[name].weight, self.get_base_layer().bias
            y = cast(Any, _AdaptedLinear).apply(x, weight, bias, down, up, self.scaling[name])
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
