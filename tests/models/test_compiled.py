"""What compiling blocks promises: the same numbers for every kind of forward, few compilations, and never a crash."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from awm.models.float8 import Float8Linear
from awm.models.policy import Policy
from awm.models.sd3 import SD3


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def disturb(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable_parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def make(folder: Path, dtype: torch.dtype = torch.float32, checkpointing: bool = False, device: str = "cpu") -> Policy:
    model = SD3.load(str(folder), dtype=dtype, gradient_checkpointing=checkpointing, device=device)
    policy = Policy(model, lora_rank=4, lora_alpha=12, merge_lora=True)
    disturb(policy, 1)
    policy.update_anchor(0.5)
    disturb(policy, 2)
    return policy


def compile_all(policy: Policy, backend: Any) -> None:
    policy.model.compile_blocks(backend=backend)
    assert policy.rollout_copy is not None
    policy.model.compile_blocks(policy.rollout_copy.transformer)


def velocity(policy: Policy, rows: int) -> Tensor:
    x_t = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = policy.model.encode(["a photo of a star"] * rows)
    device = policy.model.device
    return policy.model.velocity(x_t.to(device), torch.linspace(0.1, 0.9, rows, device=device), condition)


def forwards_and_gradients(policy: Policy, rounds: int = 2) -> list[Tensor]:
    """What an epoch does: samples, and updates with no-grad forwards of other sets between forward and backward."""
    out: list[Tensor] = []
    optimizer = torch.optim.SGD(policy.trainable_parameters(), lr=0.1)
    for _ in range(rounds):
        with torch.no_grad(), policy.sampling("current"):
            out.append(velocity(policy, 3))
        current = velocity(policy, 4)
        with torch.no_grad(), policy.using("reference"):
            reference = velocity(policy, 4)
        with torch.no_grad(), policy.using("anchor"):
            anchor = velocity(policy, 4)
        ((current - reference).square().mean() + (current - anchor).square().mean()).backward()
        out += [current.detach(), reference, anchor, *(p.grad.clone() for p in policy.trainable_parameters())]
        optimizer.step()
        optimizer.zero_grad()
    return out


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize(("checkpointing", "backend"), [(False, "eager"), (True, "aot_eager")])
def test_all_forwards_and_gradients_are_those_of_the_plain_network(
    checkpoint: Path, checkpointing: bool, backend: str
) -> None:
    expected = forwards_and_gradients(make(checkpoint, checkpointing=checkpointing))
    policy, counter = make(checkpoint, checkpointing=checkpointing), CompileCounterWithBackend(backend)
    compile_all(policy, counter)
    assert_equal(forwards_and_gradients(policy), expected, 1e-5)
    # Two kinds of blocks; with gradient, without, without adapters, merged. The second round and other weights: none.
    assert counter.frame_count == 2 * 4
    assert policy.model._compiler.is_active


def test_in_half_precision_on_cpus_blocks_are_compiled_with_the_libraries_layers(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, counter = make(checkpoint, torch.bfloat16), CompileCounterWithBackend("aot_eager")
    compile_all(policy, counter)
    compiled = forwards_and_gradients(policy)
    assert counter.frame_count == 2 * 4 and policy.model._compiler.is_active
    plain = make(checkpoint, torch.bfloat16)
    assert not torch.equal(forwards_and_gradients(plain)[0], compiled[0])  # awm's own round otherwise
    for place in ("sd3.use_rms_norm_in_pieces", "sd3.use_fused_gelu", "lora.use_adapted_linear"):
        monkeypatch.setattr(f"awm.models.{place}", lambda transformer: None)
    assert_equal(compiled, forwards_and_gradients(make(checkpoint, torch.bfloat16)), 1e-5)


def test_another_batch_size_is_compiled_once_and_never_without_end(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awm.models.compiled.LIMIT", 6)
    policy, counter = make(checkpoint), CompileCounterWithBackend("eager")
    compile_all(policy, counter)
    with torch.no_grad():
        for rows in (4, 1, 4, 1):  # an epoch's batches and the last, smaller one
            velocity(policy, rows)
        assert counter.frame_count == 2 * 2
        plain = make(checkpoint)
        for rows in (2, 3, 5, 6, 7, 8):
            torch.testing.assert_close(velocity(policy, rows), velocity(plain, rows), rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 6


def failing(*_: object) -> Any:
    raise ValueError("no kernel for this")


def good(graph: Any, _: object) -> Any:
    return graph


@pytest.mark.parametrize(
    "backend",
    [failing, aot_autograd(fw_compiler=good, bw_compiler=failing)],
    ids=["forward", "backward"],
)
def test_what_cannot_be_compiled_runs_as_written_with_one_message(
    checkpoint: Path, backend: Callable[..., Any]
) -> None:
    expected = forwards_and_gradients(make(checkpoint))
    policy = make(checkpoint)
    compile_all(policy, backend)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = forwards_and_gradients(policy)
    assert_equal(actual, expected, 1e-5)
    said = [str(warning.message) for warning in caught if "train.compile" in str(warning.message)]
    assert len(said) == 1 and "the run goes on without" in said[0] and "no kernel for this" in said[0]
    assert not policy.model._compiler.is_active


def test_what_fails_while_code_runs_is_not_hidden(checkpoint: Path) -> None:
    def out_of_memory(*_: object) -> Any:
        raise torch.OutOfMemoryError("no memory")

    policy = make(checkpoint)
    compile_all(policy, lambda graph, _: out_of_memory)
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError, match="no memory"):
        velocity(policy, 2)
    assert policy.model._compiler.is_active


def test_an_eight_bit_layer_is_one_graph() -> None:
    layer, x = Float8Linear(torch.nn.Linear(32, 48, dtype=torch.bfloat16)), torch.randn(2, 5, 32).bfloat16()
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
        assert torch.equal(compiled(x), layer(x))


def test_torchs_own_settings_are_left_alone(checkpoint: Path) -> None:
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch

    before = (dynamo.recompile_limit, dynamo.optimize_ddp, functorch.force_non_lazy_backward_lowering)
    policy = make(checkpoint)
    compile_all(policy, "eager")
    with torch.no_grad():
        velocity(policy, 2)
    assert (dynamo.recompile_limit, dynamo.optimize_ddp, functorch.force_non_lazy_backward_lowering) == before
