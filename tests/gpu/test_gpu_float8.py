"""What eight-bit layers and merged weights promise, wherever they are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awm.models.float8 import Float8Linear, quantise_rows
from awm.models.policy import Policy
from awm.models.rollout_copy import merged_weight
from awm.models.sd3 import SD3
from tests.devices import require_float8, tf32
from tests.models.test_policy import with_different_sets
from tests.models.test_rollout_copy import SETS, both


def make_policy(checkpoint: Path, device: torch.device, dtype: torch.dtype, fp8: bool = False) -> Policy:
    """Five weight sets that all differ."""
    model = SD3.load(str(checkpoint), dtype=dtype, device=device)
    return with_different_sets(Policy(model, lora_rank=4, lora_alpha=12, merge_lora=True, fp8=fp8))


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (1536, 512)])
def test_the_eight_bit_product_is_close_to_float32_and_closer_to_that_of_the_rounded_factors(
    device: torch.device, inputs: int, outputs: int, bias: bool
):
    require_float8(device)
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.copy_(torch.randn(outputs, inputs, generator=generator))
    x = torch.randn(3, 5, inputs, generator=generator) * torch.logspace(-3, 3, 15).reshape(3, 5, 1)
    linear, x = linear.to(device), x.bfloat16().to(device)
    layer = Float8Linear(linear)
    y, rows = layer(x), x.reshape(15, inputs)
    assert (y.shape, y.dtype, y.device.type) == ((3, 5, outputs), torch.bfloat16, device.type)

    def error(expected: torch.Tensor) -> float:  # of the worst row: scales are a row's own, whatever its size
        return float(((y.reshape(15, outputs).float() - expected).norm(dim=1) / expected.norm(dim=1)).max())

    added = linear.bias.float() if bias else torch.zeros(outputs, device=device)
    (values, scale), (w_values, w_scale) = quantise_rows(rows), quantise_rows(linear.weight)
    assert error(rows.float() @ linear.weight.float().t() + added) < 0.06
    assert error((values.float() * scale) @ (w_values.float() * w_scale).t() + added) < 0.01


def test_rows_of_zeros_stay_zero(device: torch.device):
    require_float8(device)
    layer = Float8Linear(torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16, device=device))
    x = torch.zeros(4, 64, dtype=torch.bfloat16, device=device)
    x[2] = 1
    y = layer(x)
    assert torch.isfinite(y).all() and y[2].abs().sum() > 0
    assert torch.equal(y[[0, 1, 3]], torch.zeros_like(y[:3]))


def test_every_set_samples_in_eight_bits_nearly_as_it_would_in_sixteen(checkpoint: Path, device: torch.device):
    require_float8(device)
    policy = make_policy(checkpoint, device, torch.bfloat16, fp8=True)
    assert policy.rollout_copy is not None
    assert sum(isinstance(part, Float8Linear) for part in policy.rollout_copy.transformer.modules()) == 25
    for name in SETS:
        plain, fast = both(policy, name)
        assert 0 < (fast - plain).norm() < 0.05 * plain.norm()


@pytest.mark.usefixtures("float32_products")
def test_every_set_samples_merged_as_it_would_unmerged(checkpoint: Path, device: torch.device):
    policy = make_policy(checkpoint, device, torch.float32)
    for name in SETS:
        plain, fast = both(policy, name)
        torch.testing.assert_close(fast, plain, rtol=0, atol=5e-5)


def test_neither_tf32_nor_autocast_rounds_what_is_merged(checkpoint: Path, device: torch.device):
    layer = make_policy(checkpoint, device, torch.bfloat16).model.transformer.transformer_blocks[0].attn.to_q
    down, up = (part["default"].weight.detach().cpu().double() for part in (layer.lora_A, layer.lora_B))
    exact = layer.base_layer.weight.cpu().double() + 3.0 * up @ down
    with torch.no_grad(), tf32(True), torch.autocast(device.type, torch.bfloat16):
        merged = merged_weight(layer)
        assert torch.backends.cuda.matmul.allow_tf32  # as it was
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.cpu().double(), exact, rtol=2e-6, atol=2e-7)
