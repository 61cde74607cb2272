"""A linear layer whose matrix product is in eight-bit floats, without gradient.

y = (Q(x) Q(W)') s_x s_W + b with Q(a) = round(a / s) in float8_e4m3fn and s = max |a| / 448, one s for each row of x
(a token, found anew in every forward) and of W (an output). See FP8 formats, https://arxiv.org/abs/2209.05433.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max  # 448
MULTIPLE = 16  # of inputs and outputs, which the kernels ask for
CAPABILITY = (8, 9)
"""Least CUDA compute capability: Ada and Hopper."""


class Float8Linear(nn.Module):
    """Stands for a frozen ``nn.Linear``; its inputs, outputs and bias are bfloat16.

    Attributes:
        weight: [outputs, inputs] float8.
        scale: [outputs, 1] float32.
        bias: [outputs], shared with the layer it stands for, or None.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty_like(linear.weight, dtype=FLOAT8, requires_grad=False))
        self.register_buffer("scale", torch.empty(linear.out_features, 1, device=linear.weight.device))
        self.bias = linear.bias
        self.set_weight(linear.weight)

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Whether the kernels take a layer of this size."""
        return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Take over ``weight`` [outputs, inputs], rounded once."""
        values, scale = quantise_rows(weight)
        self.weight.copy_(values)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        values, scale = quantise_rows(x.reshape(-1, x.shape[-1]))
        y: Tensor = scaled_mm(
            values,
            self.weight.t(),
            scale,
            ScalingType.RowWise,
            self.scale.t(),
            ScalingType.RowWise,
            bias=self.bias,
            output_dtype=x.dtype,
            use_fast_accum=True,
        )
        return y.reshape(*x.shape[:-1], -1)


def quantise_rows(a: Tensor) -> tuple[Tensor, Tensor]:
    """[n, m] -> float8 [n, m] and float32 scales [n, 1], whose product is ``a`` up to rounding."""
    exact = a.float()
    # A row of zeros has no scale; any will do.
    scale = exact.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (exact / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale
