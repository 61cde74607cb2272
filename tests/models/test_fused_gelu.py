"""Linear layer and GELU in one product are the library's two, and stand in for them only where they are meant to."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GELU
from torch import Tensor
from torch.nn.functional import gelu

from awm.models import fused_gelu as module
from awm.models import rollout_copy
from awm.models.fused_gelu import use_fused_gelu
from awm.models.lora import LoraType
from awm.models.policy import Policy
from awm.models.sd3 import SD3
from tests.models.test_policy import disturb

pytestmark = pytest.mark.skipif(not module.is_available(), reason="needs a processor with bfloat16 products")


def layer(dtype: torch.dtype, *, bias: bool = True) -> GELU:
    torch.manual_seed(0)
    made: GELU = GELU(32, 48, approximate="tanh", bias=bias).to(dtype).requires_grad_(False)
    return made


def inputs(dtype: torch.dtype) -> Tensor:
    return 3 * torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_library_and_rounds_no_more_than_it(dtype: torch.dtype, bias: bool):
    both = layer(dtype, bias=bias)
    x, weight = inputs(dtype), both.proj.weight.double()
    shift = both.proj.bias.double() if bias else 0.0
    exact = gelu(x.double() @ weight.T + shift, approximate="tanh")

    def error(found: Tensor) -> float:
        assert found.dtype == dtype and found.shape == (2, 5, 48)
        return float((found.double() - exact).abs().max())

    library = error(both(x))
    use_fused_gelu(both)
    assert error(both(x)) <= 1.1 * library < 0.05


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32,), (0, 5, 32), (1, 32)])
def test_any_number_of_rows_and_slices_of_rows(shape: tuple[int, ...]):
    both, x = layer(torch.bfloat16), torch.ones(*shape[:-1], 40, dtype=torch.bfloat16)[..., 4:36]
    expected = both(x)
    use_fused_gelu(both)
    torch.testing.assert_close(both(x), expected, rtol=0.02, atol=0.02)


def test_with_gradient_it_is_the_library_s_bit_for_bit():
    plain, fused = layer(torch.bfloat16), layer(torch.bfloat16)
    use_fused_gelu(fused)
    found = []
    for each in (plain, fused):
        x = inputs(torch.bfloat16).requires_grad_()
        y = each(x)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("lora_type", ["attn", "ffn"])
def test_merged_rollouts_use_it_and_nothing_else_does(
    checkpoint: Path, lora_type: LoraType, monkeypatch: pytest.MonkeyPatch
):
    def velocities() -> tuple[Tensor, Tensor]:
        model = SD3.load(str(checkpoint), dtype=torch.bfloat16)
        policy = Policy(model, lora_type=lora_type, lora_rank=4, lora_alpha=8, merge_lora=True)
        disturb(policy, 1)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        told = x, torch.tensor([0.3, 0.8]), model.encode(["a circle", "a star"])
        with policy.sampling("current"):
            merged = model.velocity(*told)
        return merged, model.velocity(*told)

    merged, apart = velocities()
    monkeypatch.setattr(rollout_copy, "use_fused_gelu", lambda transformer: None)
    by_library, apart_by_library = velocities()
    torch.testing.assert_close(merged, by_library, rtol=0.05, atol=0.05)
    assert not torch.equal(merged, by_library)
    # What likelihoods and KL terms compare stays the same forward with gradient and without.
    assert torch.equal(apart, apart_by_library)


def test_a_copy_computes_with_its_own_weights():
    first = layer(torch.bfloat16)
    use_fused_gelu(first)
    second = copy.deepcopy(first)
    second.proj.weight.zero_()
    second.proj.bias.zero_()
    with torch.no_grad():
        assert second(inputs(torch.bfloat16)).abs().max() == 0 < first(inputs(torch.bfloat16)).abs().max()


def test_only_the_tanh_and_only_where_torch_has_the_operation(monkeypatch: pytest.MonkeyPatch):
    exact = GELU(4, 4)
    use_fused_gelu(exact)
    assert "forward" not in vars(exact)
    monkeypatch.setattr(module, "is_available", lambda: False)
    tanh = layer(torch.bfloat16)
    use_fused_gelu(tanh)
    assert "forward" not in vars(tanh)
