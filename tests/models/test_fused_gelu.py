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
from awm.models.fused_gelu import use_fused_gelu
from awm.models.lora import LoraType
from awm.models.policy import Policy
from awm.models.sd3 import SD3

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


def test_the_gradient_is_as_near_to_the_exact_one_as_the_library_s():
    exact, plain, fused = layer(torch.float64), layer(torch.bfloat16), layer(torch.bfloat16)
    exact.load_state_dict(plain.state_dict())
    use_fused_gelu(fused)
    towards = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(2), dtype=torch.float64).bfloat16()
    gradients = []
    for each, dtype in ((exact, torch.float64), (plain, torch.bfloat16), (fused, torch.bfloat16)):
        x = inputs(torch.bfloat16).to(dtype).requires_grad_()
        gradients.append(torch.autograd.grad(each(x), x, towards.to(dtype))[0])
    assert gradients[2].dtype == torch.bfloat16
    library, ours = ((found.double() - gradients[0]).norm() / gradients[0].norm() for found in gradients[1:])
    assert ours <= 1.1 * library < 0.01


def test_the_same_bits_with_gradient_and_without():
    fused, x = layer(torch.bfloat16), inputs(torch.bfloat16)
    use_fused_gelu(fused)
    with_gradient = fused(x.clone().requires_grad_())
    assert with_gradient.requires_grad
    with torch.no_grad():
        assert torch.equal(fused(x), with_gradient)


def test_trained_weights_have_the_library_s_gradient():
    plain, fused = layer(torch.bfloat16).requires_grad_(), layer(torch.bfloat16).requires_grad_()
    use_fused_gelu(fused)
    for each in (plain, fused):
        each(inputs(torch.bfloat16)).float().square().sum().backward()
    assert torch.equal(fused.proj.weight.grad, plain.proj.weight.grad)
    assert torch.equal(fused.proj.bias.grad, plain.proj.bias.grad)


@torch.no_grad()
@pytest.mark.parametrize(("lora_type", "expected"), [("attn", {True}), ("ffn", {False})])
def test_layers_with_an_adapter_keep_the_library_s_until_they_are_merged(
    checkpoint: Path, lora_type: LoraType, expected: set[bool], monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    apply, library = module._LinearGelu.apply, GELU.gelu
    monkeypatch.setattr(module._LinearGelu, "apply", lambda *given: calls.append("fused") or apply(*given))
    monkeypatch.setattr(GELU, "gelu", lambda *given: calls.append("library") or library(*given))
    model = SD3.load(str(checkpoint), dtype=torch.bfloat16)
    policy = Policy(model, lora_type=lora_type, lora_rank=4, lora_alpha=8, merge_lora=True)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told = x, torch.tensor([0.3, 0.8]), model.encode(["a circle", "a star"])
    calls.clear()
    model.velocity(*told)
    assert {call == "fused" for call in calls} == expected
    calls.clear()
    with policy.sampling("current"):
        model.velocity(*told)
    assert set(calls) == {"fused"}


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
    assert type(exact) is GELU
    monkeypatch.setattr(module, "is_available", lambda: False)
    tanh = layer(torch.bfloat16)
    use_fused_gelu(tanh)
    assert type(tanh) is GELU
