"""A layer and its adapter in one operation are PEFT's, gradients included, and stand in for it only where they can."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from awm.models import adapted_linear as module
from awm.models.adapted_linear import use_adapted_linear
from awm.models.lora import count_lora, set_adapters_enabled
from awm.models.policy import Policy
from awm.models.sd3 import SD3

IN, OUT, RANK, ALPHA = 24, 40, 4, 12
Layers = tuple[LoraLinear, LoraLinear, LoraLinear]
"""In float64; PEFT's in bfloat16; ours in bfloat16."""


def adapted(*, bias: bool, dtype: torch.dtype = torch.bfloat16) -> LoraLinear:
    """A frozen layer with a float32 adapter, both of whose factors matter."""
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT, bias=bias).to(dtype).requires_grad_(False)
    layer = LoraLinear(base, "default", config=LoraConfig(r=RANK, lora_alpha=ALPHA), r=RANK, lora_alpha=ALPHA)
    for name in ("lora_A", "lora_B"):
        weight = getattr(layer, name)["default"].weight
        weight.data = torch.randn(weight.shape) / weight.shape[1] ** 0.5
    layer.cast_input_dtype_enabled = False
    return layer


@pytest.fixture(params=[True, False])
def layers(request: pytest.FixtureRequest) -> Layers:
    peft = adapted(bias=request.param)
    ours = copy.deepcopy(peft)
    use_adapted_linear(ours)
    return copy.deepcopy(peft).double(), peft, ours


def inputs() -> Tensor:
    return torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(1)).bfloat16()


def results(layer: LoraLinear, x: Tensor) -> list[Tensor]:
    """y, and the gradients of x, A and B for the same gradient of y."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        y = layer(x)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(y.dtype)
    wanted = x, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return [y.detach(), *torch.autograd.grad(y, wanted, towards)]


def test_is_as_near_to_the_exact_one_as_peft_s(layers: Layers):
    exact, peft, ours = layers
    true, its, mine = results(exact, inputs().double()), results(peft, inputs()), results(ours, inputs())
    for found, usual, right in zip(mine, its, true, strict=True):
        assert found.dtype == usual.dtype and found.shape == right.shape
        error, peft_error = ((each.double() - right).norm() / right.norm() for each in (found, usual))
        assert error < 1.1 * peft_error < 0.01


def test_the_same_bits_with_gradient_and_without(layers: Layers):
    ours = layers[2]
    with_gradient, *_ = results(ours, inputs())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(inputs()), with_gradient)


@pytest.mark.parametrize("shape", [(IN,), (0, 3, IN), (1, IN)])
def test_any_number_of_rows_and_slices_of_rows(layers: Layers, shape: tuple[int, ...]):
    x = torch.ones(*shape[:-1], IN + 6, dtype=torch.bfloat16)[..., 3:-3]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layers[2](x), layers[1](x), rtol=0.02, atol=0.02)


def test_inputs_that_need_no_gradient_get_none(layers: Layers):
    ours = layers[2]
    ours(inputs()).float().sum().backward()
    for factor in (ours.lora_A, ours.lora_B):
        gradient = factor["default"].weight.grad
        assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0


def same(ours: Callable[[Tensor], Tensor], peft: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.equal(ours(x), peft(x))


def test_switched_off_it_is_the_layer_alone(layers: Layers):
    _, peft, ours = layers
    set_adapters_enabled(ours, False)
    assert same(ours, peft.get_base_layer(), inputs())
    set_adapters_enabled(ours, True)
    assert not same(ours, peft.get_base_layer(), inputs())


@pytest.mark.parametrize("bias", [True, False])
def test_other_dtypes_are_peft_s(bias: bool):
    for dtype, x in ((torch.float32, inputs().float()), (torch.float32, inputs()), (torch.bfloat16, inputs().float())):
        peft = adapted(bias=bias, dtype=dtype)
        ours = copy.deepcopy(peft)
        use_adapted_linear(ours)
        assert same(ours, peft, x)


def test_trained_weights_have_peft_s_gradient():
    peft, ours = adapted(bias=True), adapted(bias=True)
    use_adapted_linear(ours)
    for layer in (peft, ours):
        layer.get_base_layer().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            layer(inputs()).float().square().sum().backward()
    assert torch.equal(ours.get_base_layer().weight.grad, peft.get_base_layer().weight.grad)


def test_merged_into_the_weights_it_is_not_added_twice(layers: Layers):
    _, peft, ours = layers
    for layer in (peft, ours):
        layer.merge()
    assert same(ours, peft, inputs()) and same(ours, peft.get_base_layer(), inputs())


@pytest.mark.parametrize("lora_type", ["attn", "ffn", "all"])
def test_a_policy_in_bfloat16_computes_by_it(checkpoint: Path, lora_type: Any, monkeypatch: pytest.MonkeyPatch):
    model = SD3.load(str(checkpoint), dtype=torch.bfloat16)
    Policy(model, lora_type=lora_type, lora_rank=4)
    calls: list[str] = []
    apply, forward = module._AdaptedLinear.apply, LoraLinear.forward
    monkeypatch.setattr(module._AdaptedLinear, "apply", lambda *given: calls.append("ours") or apply(*given))
    monkeypatch.setattr(LoraLinear, "forward", lambda *given: calls.append("PEFT's") or forward(*given))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model.velocity(x, torch.tensor([0.3, 0.8]), model.encode(["a circle", "a star"])).sum().backward()
    assert calls == ["ours"] * count_lora(model.transformer)
