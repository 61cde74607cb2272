"""What compiling blocks promises with the compiler that runs use: inductor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.devices import CUDA
from tests.models.test_compiled import assert_equal, compile_all, forwards_and_gradients, make

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),  # a C++ compiler for minutes
    CUDA,
]


@pytest.fixture(autouse=True)
def fresh(float32_products: None) -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(checkpoint: Path, device: str, dtype: torch.dtype, checkpointing: bool) -> list[Tensor]:
    policy = make(checkpoint, dtype, checkpointing, device)
    compile_all(policy, "inductor")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = forwards_and_gradients(policy)
    assert not [warning for warning in caught if "train.compile" in str(warning.message)]
    assert policy.model._compiler.is_active  # it did not give up
    return out


def distance(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Mean relative error of the tensors; those whose gradient is zero say nothing."""
    errors = [(a - b).norm() / b.norm() for a, b in zip(actual, expected, strict=True) if b.norm() > 0]
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_in_float32_all_forwards_and_gradients_are_the_plain_ones(checkpoint: Path, device: str, checkpointing: bool):
    expected = forwards_and_gradients(make(checkpoint, checkpointing=checkpointing, device=device))
    assert_equal(compiled(checkpoint, device, torch.float32, checkpointing), expected, 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_in_bfloat16_they_are_no_further_from_float32_than_the_plain_ones(checkpoint: Path, device: str):
    exact = forwards_and_gradients(make(checkpoint, device=device), rounds=1)
    plain = forwards_and_gradients(make(checkpoint, torch.bfloat16, device=device), rounds=1)
    fast = compiled(checkpoint, device, torch.bfloat16, checkpointing=False)[: len(exact)]
    assert 0 < distance(plain, exact) < 0.1
    assert distance(fast, exact) < 1.5 * distance(plain, exact)
