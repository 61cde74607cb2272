"""SD3's first linear layer of a feed-forward and its tanh-GELU as one product, in bfloat16 on CPUs.

GELU(x W' + b), GELU(y) = y / 2 (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))), https://arxiv.org/abs/1606.08415, sec. 2.
Torch's own kernel of the tanh takes longer than the product before it; oneDNN's computes it on the product's sums.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.nn.functional import linear


def use_fused_gelu(transformer: Any) -> None:
    """Make every tanh-GELU of ``transformer``, a diffusers ``SD3Transformer2DModel``, a ``FusedGelu``."""
    if not is_available():
        return
    for module in transformer.modules():
        if type(module) is GELU and module.approximate == "tanh":
            module.__class__ = FusedGelu


def is_available() -> bool:
    """Whether torch and the processor have the operation, which ``torch.compile`` makes of such layers, too."""
    operations: Any = torch.ops.mkldnn
    return hasattr(operations, "_linear_pointwise") and bool(operations._is_mkldnn_bf16_supported())


class FusedGelu(GELU):  # type: ignore[misc]  # the library has no types
    """The layer of diffusers, rounded once instead of twice.

    The same numbers with gradient and without, as likelihood ratios and KL terms need. With an adapter, trained
    weights, another dtype, or compiled, it is the library's own.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        layer: Any = self.proj
        fits = type(layer) is nn.Linear and hidden_states.dtype == layer.weight.dtype == torch.bfloat16
        y: Tensor
        if not fits or layer.weight.requires_grad or torch.compiler.is_compiling():
            y = super().forward(hidden_states)
        else:
            y = cast(Any, _LinearGelu).apply(hidden_states, layer.weight, layer.bias)
        return y


class _LinearGelu(torch.autograd.Function):
    """The backward pass computes the product again: the sums before the GELU were never in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, weight, bias = ctx.saved_tensors
        sums = linear(x, weight, bias)
        return torch.ops.aten.gelu_backward(gradients[0], sums, approximate="tanh") @ weight, None, None
