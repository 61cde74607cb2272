"""SD3's joint attention written out, for half precision on CPUs, where the fused kernel is slow on short sequences.

softmax(Q K' / sqrt(d)) V over the tokens of image and text together, https://arxiv.org/abs/2403.03206, figure 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

MAX_TOKENS = 512
"""Longer sequences take the fused kernel: the scores, tokens^2 for each head, are kept for the backward pass."""


def use_short_attention(transformer: Any) -> None:
    """Let every attention of ``transformer``, a diffusers ``SD3Transformer2DModel``, compute by ``ShortAttention``."""
    transformer.set_attn_processor(ShortAttention())


class ShortAttention:
    """An attention processor of diffusers; the fused kernel's numbers up to rounding.

    Scores are rounded to the compute dtype before the softmax, which computes in float32 and rounds once more.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend.

        Args:
            attn: the diffusers ``Attention`` that asks, with its projections and norms.
            hidden_states: [B, N, D] tokens of the image.
            encoder_hidden_states: [B, M, D] tokens of the text; None where the image attends to itself.
            attention_mask: SD3 has none.

        Returns:
            [B, N, D] of the image; with text the pair of both. The last block has no use for the text, which it leaves
            unprojected.

        Raises:
            ValueError: there is a mask.
        """
        if attention_mask is not None:
            raise ValueError("SD3's attention has no mask; use diffusers' own processor for a model that has one.")
        heads = attn.heads
        q = _heads(attn.to_q(hidden_states), heads, attn.norm_q)
        k = _heads(attn.to_k(hidden_states), heads, attn.norm_k)
        v = _heads(attn.to_v(hidden_states), heads)
        if encoder_hidden_states is None:
            return _projected(attn, _tokens(attention(q, k, v)))
        q = torch.cat([q, _heads(attn.add_q_proj(encoder_hidden_states), heads, attn.norm_added_q)], dim=2)
        k = torch.cat([k, _heads(attn.add_k_proj(encoder_hidden_states), heads, attn.norm_added_k)], dim=2)
        v = torch.cat([v, _heads(attn.add_v_proj(encoder_hidden_states), heads)], dim=2)
        both, split = _tokens(attention(q, k, v)), hidden_states.shape[1]
        # Whole in memory: a linear layer is half as fast on a slice of each row, and copies its weight for each row.
        image, text = both[:, :split].contiguous(), both[:, split:].contiguous()
        return _projected(attn, image), text if attn.context_pre_only else attn.to_add_out(text)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v of [B, heads, tokens, d] each."""
    if k.shape[-2] > MAX_TOKENS:
        return scaled_dot_product_attention(q, k, v)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.softmax(-1), v)


def _heads(projected: Tensor, heads: int, norm: nn.Module | None = None) -> Tensor:
    """[B, N, D] -> [B, heads, N, D / heads], normalised if there is a norm."""
    split = projected.view(*projected.shape[:-1], heads, -1).transpose(1, 2)
    normalised: Tensor = split if norm is None else norm(split)
    return normalised


def _tokens(split: Tensor) -> Tensor:
    """[B, heads, N, d] -> [B, N, heads * d]."""
    return split.transpose(1, 2).flatten(2)


def _projected(attn: Any, tokens: Tensor) -> Tensor:
    projection, dropout = attn.to_out
    out: Tensor = dropout(projection(tokens))
    return out
