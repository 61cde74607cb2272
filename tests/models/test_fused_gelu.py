"""Linear layer and GELU in one product are the library's two, and stand in for them only where they are meant to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GELU
from torch import Tensor
from torch.nn.functional import gelu

from awm.models import fused_gelu as module
from awm.models import sd3
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
@pytest.mark.parametrize("merge_lora", [False, True])
def test_a_network_s_velocity_with_adapters_apart_and_merged(
    checkpoint: Path, lora_type: LoraType, merge_lora: bool, monkeypatch: pytest.MonkeyPatch
):
    def velocity() -> Tensor:
        model = SD3.load(str(checkpoint), dtype=torch.bfloat16)
        policy = Policy(model, lora_type=lora_type, lora_rank=4, lora_alpha=8, merge_lora=merge_lora)
        disturb(policy, 1)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with policy.sampling("current"):
            return model.velocity(x, torch.tensor([0.3, 0.8]), model.encode(["a circle", "a star"]))

    fused = velocity()
    monkeypatch.setattr(sd3, "use_fused_gelu", lambda transformer: None)
    library = velocity()
    torch.testing.assert_close(fused, library, rtol=0.05, atol=0.05)
    # An adapter on the linear layer leaves both to the library.
    assert torch.equal(fused, library) == (lora_type == "ffn" and not merge_lora)


def test_a_copy_computes_with_its_own_weights():
    first = layer(torch.bfloat16)
    use_fused_gelu(first)
    second = copy.deepcopy(first)
    second.proj.weight.zero_()
    second.proj.bias.zero_()
    with torch.no_grad():
        assert second(inputs(torch.bfloat16)).abs().max() == 0 < first(inputs(torch.bfloat16)).abs().max()


def gelus(transformer: Any) -> list[Any]:
    return [each for each in transformer.modules() if isinstance(each, GELU)]


def test_only_the_tanh_and_only_where_torch_has_the_operation(monkeypatch: pytest.MonkeyPatch):
    exact = GELU(4, 4)
    use_fused_gelu(exact)
    assert "forward" not in vars(exact)
    monkeypatch.setattr(module, "is_available", lambda: False)
    tanh = layer(torch.bfloat16)
    use_fused_gelu(tanh)
    assert "forward" not in vars(tanh)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_for_half_precision_on_cpus(checkpoint: Path, dtype: torch.dtype):
    found = {"forward" in vars(each) for each in gelus(SD3.load(str(checkpoint), dtype=dtype).transformer)}
    assert found == {dtype != torch.float32}
