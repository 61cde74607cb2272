"""GELU by a sigmoid is torch's tanh-GELU, gradients included, and stands in for it only where it is meant to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.nn.functional import gelu

from awm.models import sigmoid_gelu as module
from awm.models.sd3 import SD3
from awm.models.sigmoid_gelu import sigmoid_gelu, use_sigmoid_gelu


def tanh_gelu(x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


def values_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)).sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("chunk", [7, 1000])
def test_equals_torch_in_float32(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", chunk)  # 7 does not divide 99
    x = torch.linspace(-40, 40, 99).view(3, 33)
    torch.testing.assert_close(values_and_gradient(sigmoid_gelu, x), values_and_gradient(tanh_gelu, x))
    for edge in (torch.tensor([float("inf"), -0.0, 0.0]), torch.zeros(0, 4), torch.tensor(2.0)):
        torch.testing.assert_close(sigmoid_gelu(edge), tanh_gelu(edge))
    assert sigmoid_gelu(torch.tensor(float("nan"))).isnan()


def test_a_transposed_input_and_its_shape(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 5)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).t()
    torch.testing.assert_close(values_and_gradient(sigmoid_gelu, x), values_and_gradient(tanh_gelu, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_rounds_once(dtype: torch.dtype):
    x = (4 * torch.randn(50_000, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = tanh_gelu(x.double())

    def error(found: Tensor) -> float:
        return float((found.double() - exact).abs().max())

    assert sigmoid_gelu(x).dtype == dtype
    assert error(sigmoid_gelu(x)) <= 1.001 * error(tanh_gelu(x))


def test_the_network_uses_it(model: SD3):
    def velocity() -> Tensor:
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return model.velocity(x, torch.tensor([0.3, 0.8]), model.encode(["a circle", "a star"]))

    expected = velocity()
    use_sigmoid_gelu(model.transformer)
    torch.testing.assert_close(velocity(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(velocity(), expected), "the same bits: it was not used"
    copied = copy.deepcopy(model.transformer)  # as the rollout copy is
    assert users(copied) == users(model.transformer) == {True}


def users(transformer: Any) -> set[bool]:
    return {each.gelu is sigmoid_gelu for each in transformer.modules() if isinstance(each, GELU)}


def test_the_exact_gelu_is_left_alone():
    layers = nn.Sequential(GELU(4, 4, approximate="tanh"), GELU(4, 4))
    use_sigmoid_gelu(layers)
    assert [layer.gelu is sigmoid_gelu for layer in layers] == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_for_half_precision_on_cpus(checkpoint: Path, dtype: torch.dtype):
    assert users(SD3.load(str(checkpoint), dtype=dtype).transformer) == {dtype != torch.float32}
