"""Written-out attention is the fused kernel's, gradients included, and stands in for it only where it is meant to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from awm.models import short_attention
from awm.models.sd3 import SD3
from awm.models.short_attention import ShortAttention, attention, use_short_attention

PROMPTS = ["a photo of a red circle", "a photo of a star and a ring"]


def velocity_and_gradient(model: SD3) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    v = model.velocity(x, torch.tensor([0.3, 0.8]), model.encode(PROMPTS))
    (gradient,) = torch.autograd.grad(v.square().sum(), x)
    return v.detach(), gradient


def test_equals_diffusers_with_both_streams_and_dual_attention(model: SD3) -> None:
    assert any(block.attn2 is not None for block in model.transformer.transformer_blocks)
    expected = velocity_and_gradient(model)
    use_short_attention(model.transformer)
    found = velocity_and_gradient(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[1], expected[1]), "the same bits: the processor was not used"


def test_in_bfloat16_it_is_as_near_to_float32_as_the_fused_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 96, 32, generator=generator) for _ in range(3))
    exact = scaled_dot_product_attention(q, k, v)
    half = [x.bfloat16() for x in (q, k, v)]

    def error(found: Tensor) -> float:
        return float((found.float() - exact).square().mean().sqrt())

    assert error(attention(*half)) < 1.5 * error(scaled_dot_product_attention(*half)) < 0.01


def test_long_sequences_keep_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(1, 1, 9, 4) for _ in range(3))
    monkeypatch.setattr(short_attention, "MAX_TOKENS", 8)
    assert torch.equal(attention(q, k, v), scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_for_half_precision_on_cpus(checkpoint: Path, dtype: torch.dtype) -> None:
    processors = SD3.load(str(checkpoint), dtype=dtype).transformer.attn_processors.values()
    assert all(isinstance(each, ShortAttention) == (dtype != torch.float32) for each in processors)


def test_a_mask_is_refused(model: SD3) -> None:
    with pytest.raises(ValueError, match="no mask"):
        ShortAttention()(None, torch.zeros(1, 1, 1), attention_mask=torch.ones(1, 1))
