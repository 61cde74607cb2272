"""SD3's first linear layer of a feed-forward and its tanh-GELU as one product, for merged rollouts in bfloat16 on CPUs.

GELU(x W' + b), GELU(y) = y / 2 (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))), https://arxiv.org/abs/1606.08415, sec. 2.
Torch's own kernel of the tanh takes longer than the product before it; oneDNN's computes it on the product's sums.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn


def use_fused_gelu(transformer: Any) -> None:
    """Let every tanh-GELU of ``transformer``, a diffusers ``SD3Transformer2DModel``, compute by ``fused_gelu``."""
    if not is_available():
        return
    for module in transformer.modules():
        if isinstance(module, GELU) and module.approximate == "tanh":
            module.forward = partial(fused_gelu, module)


def is_available() -> bool:
    """Whether torch and the processor have the operation, which ``torch.compile`` makes of such layers, too."""
    operations: Any = torch.ops.mkldnn
    return hasattr(operations, "_linear_pointwise") and bool(operations._is_mkldnn_bf16_supported())


def fused_gelu(module: GELU, x: Tensor) -> Tensor:
    """``GELU.forward`` of diffusers, [..., inputs] -> [..., outputs], rounded once instead of twice.

    With gradient, with an adapter, or in another dtype, it is the library's own. Not for networks whose numbers are
    compared with those of a training forward, which would differ by the rounding: likelihood ratios and KL terms.
    """
    linear: Any = module.proj
    fits = type(linear) is nn.Linear and x.dtype == linear.weight.dtype == torch.bfloat16
    y: Tensor
    if not fits or torch.is_grad_enabled() or torch.compiler.is_compiling():
        y = module.gelu(linear(x))
        return y
    y = torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, "gelu", [], "tanh")
    return y
