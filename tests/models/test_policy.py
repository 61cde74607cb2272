"""What the weight sets promise: switching leaves no trace, averages follow their equation, state survives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awm.interfaces import WeightSet
from awm.models.policy import Policy
from awm.models.sd3 import SD3

MakePolicy = Callable[..., Policy]
SETS: list[WeightSet] = ["anchor", "reference", "average", "rollout"]


@pytest.fixture(params=["lora", "full"])
def make_policy(request: pytest.FixtureRequest, checkpoint: Path) -> MakePolicy:
    def make(dtype: torch.dtype = torch.float32, **options: object) -> Policy:
        model = SD3.load(str(checkpoint), dtype=dtype)
        return Policy(model, use_lora=request.param == "lora", lora_rank=4, lora_alpha=12, **options)

    return make


@pytest.fixture
def policy(make_policy: MakePolicy) -> Policy:
    """A policy whose five weight sets all differ."""
    return with_different_sets(make_policy())


def with_different_sets(policy: Policy) -> Policy:
    disturb(policy, 1)
    policy.update_anchor(0.5)
    disturb(policy, 2)
    policy.update_average(0.5)
    disturb(policy, 3)
    policy.snapshot_rollout()
    disturb(policy, 4)
    return policy


@torch.no_grad()
def disturb(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable_parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def copies(policy: Policy) -> list[Tensor]:
    return [p.detach().clone() for p in policy.trainable_parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def velocity(policy: Policy) -> Tensor:
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = policy.model.encode(["a photo of a red circle", "a photo of a star"])
    return policy.model.velocity(x_t, torch.tensor([0.3, 0.8]), condition)


@torch.no_grad()
def test_every_set_gives_its_own_velocity_and_current_comes_back(policy: Policy) -> None:
    weights, before = copies(policy), velocity(policy)
    pointers = [p.data_ptr() for p in policy.trainable_parameters()]
    seen = [before]
    for name in SETS:
        with policy.using(name):
            seen.append(velocity(policy))
        assert same(copies(policy), weights)
        assert [p.data_ptr() for p in policy.trainable_parameters()] == pointers
        assert torch.equal(velocity(policy), before)
    for i, a in enumerate(seen):
        assert not any(torch.equal(a, b) for b in seen[:i])


@torch.no_grad()
def test_reference_stays_the_pretrained_model(make_policy: MakePolicy) -> None:
    policy = make_policy()
    start = velocity(policy)
    disturb(policy, 0)
    assert not torch.equal(velocity(policy), start)
    with policy.using("reference"):
        assert torch.equal(velocity(policy), start)


def test_using_leaves_requires_grad_alone(policy: Policy) -> None:
    parameters = dict(policy.model.transformer.named_parameters())
    before = {name: p.requires_grad for name, p in parameters.items()}
    for name in SETS:
        with policy.using(name):
            assert {name: p.requires_grad for name, p in parameters.items()} == before
    assert {name: p.requires_grad for name, p in parameters.items()} == before


@torch.no_grad()
def test_blocks_nest_and_survive_exceptions(policy: Policy) -> None:
    expected: dict[str, Tensor] = {"current": velocity(policy)}
    for name in SETS:
        with policy.using(name):
            expected[name] = velocity(policy)
    with pytest.raises(KeyError), policy.using("reference"), policy.using("anchor"):
        with policy.using("current"):
            assert torch.equal(velocity(policy), expected["current"])
        with policy.using("reference"):
            assert torch.equal(velocity(policy), expected["reference"])
        assert torch.equal(velocity(policy), expected["anchor"])
        raise KeyError
    assert torch.equal(velocity(policy), expected["current"])


def test_no_grad_forwards_between_forward_and_backward_do_not_touch_the_gradient(make_policy: MakePolicy) -> None:
    def gradient(policy: Policy, disturbed: bool) -> list[Tensor]:
        disturb(policy, 1)
        policy.snapshot_rollout()
        disturb(policy, 2)
        loss = velocity(policy).square().mean()
        if disturbed:
            for name in SETS:
                with torch.no_grad(), policy.using(name):
                    velocity(policy)
        return list(torch.autograd.grad(loss, policy.trainable_parameters()))

    quiet = gradient(make_policy(), disturbed=False)
    assert same(gradient(make_policy(), disturbed=True), quiet)
    assert all(g.abs().sum() > 0 for g in quiet[:8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointed_blocks_are_recomputed_with_the_weights_of_their_forward(
    make_policy: MakePolicy, dtype: torch.dtype
) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(dtype)
        disturb(policy, 1)
        if checkpointing:
            policy.model.transformer.enable_gradient_checkpointing()
        loss = velocity(policy).square().mean()
        for name in ("anchor", "reference"):
            with torch.no_grad(), policy.using(name):
                velocity(policy)
        gradients.append(list(torch.autograd.grad(loss, policy.trainable_parameters())))
    assert same(*gradients)


def test_every_trainable_parameter_gets_a_gradient(policy: Policy) -> None:
    # DistributedDataParallel waits for all of them.
    velocity(policy).square().mean().backward()
    assert all(p.grad is not None for p in policy.trainable_parameters())


@torch.no_grad()
def test_averages_follow_their_equation(make_policy: MakePolicy) -> None:
    policy = make_policy()
    start = copies(policy)
    disturb(policy, 1)
    policy.update_anchor(0.25)
    policy.update_average(0.9)
    for name, decay in (("anchor", 0.25), ("average", 0.9)):
        with policy.using(name):
            for old, new, mean in zip(start, policy.state_dict()["current"].values(), copies(policy), strict=True):
                torch.testing.assert_close(mean, decay * old + (1 - decay) * new)
    policy.update_anchor(0.0)
    with policy.using("anchor"):
        anchor = copies(policy)
    assert same(anchor, copies(policy))


def test_training_moves_current_and_nothing_else(policy: Policy) -> None:
    # Public code kept p.detach().cpu(), on the CPU an alias: the swap back restored what it had overwritten.
    def rollout() -> list[Tensor]:
        with policy.using("rollout"):
            return copies(policy)

    before, sampled_with = policy.state_dict(), rollout()
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=0.01)
    velocity(policy).square().mean().backward()
    with torch.no_grad(), policy.using("average"):
        velocity(policy)
    optimizer.step()
    after = policy.state_dict()
    assert not same(list(after["current"].values()), list(before["current"].values()))
    for name in ("anchor", "average"):
        assert same(list(after[name].values()), list(before[name].values()))
    assert same(rollout(), sampled_with)
    assert same(list(after["current"].values()), copies(policy))


@torch.no_grad()
def test_state_round_trip(make_policy: MakePolicy, policy: Policy) -> None:
    state, other = policy.state_dict(), make_policy(seed=9)
    parameters = other.trainable_parameters()
    other.load_state_dict(state)
    assert all(a is b for a, b in zip(other.trainable_parameters(), parameters, strict=True))
    for name in ("current", *SETS[:-1]):
        with policy.using(name):
            expected = velocity(policy)
        with other.using(name):
            assert torch.equal(velocity(other), expected)
    with pytest.raises(ValueError, match=r"rollout needs snapshot_rollout\(\)"), other.using("rollout"):
        pass


def test_state_of_another_policy_is_refused_whole(make_policy: MakePolicy) -> None:
    policy = make_policy()
    before = copies(policy)
    state = policy.state_dict()
    first = next(iter(state["anchor"]))
    with pytest.raises(ValueError, match="has current, anchor and average; this one has current"):
        policy.load_state_dict({"current": state["current"]})
    with pytest.raises(ValueError, match="is only in this one"):
        policy.load_state_dict(state | {"anchor": {k: v for k, v in state["anchor"].items() if k != first}})
    with pytest.raises(ValueError, match=r"is \[1\] there"):
        policy.load_state_dict(state | {"average": state["average"] | {first: torch.zeros(1)}})
    assert same(copies(policy), before)


def test_saving_a_set_writes_that_set(policy: Policy, make_policy: MakePolicy, tmp_path: Path) -> None:
    policy.export(tmp_path / "average", policy.state_dict()["average"])
    policy.export(tmp_path / "current", policy.state_dict()["current"])
    files = [next((tmp_path / name).rglob("*.safetensors")).read_bytes() for name in ("average", "current")]
    assert files[0] != files[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_float32_masters(make_policy: MakePolicy, dtype: torch.dtype) -> None:
    policy = make_policy(dtype)
    disturb(policy, 0)
    loss = velocity(policy).square().mean()
    with torch.no_grad(), policy.using("reference"):
        velocity(policy)
    loss.backward()
    assert all(p.dtype == torch.float32 == p.grad.dtype for p in policy.trainable_parameters())
    assert all(p.grad.isfinite().all() for p in policy.trainable_parameters())


def test_a_callers_autocast_does_not_keep_old_weights(make_policy: MakePolicy) -> None:
    policy = make_policy(torch.bfloat16)
    disturb(policy, 0)
    with torch.no_grad():
        expected = velocity(policy)
        with policy.using("anchor"):
            anchor = velocity(policy)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), policy.using("anchor"):
            assert torch.equal(velocity(policy), anchor)
        v = velocity(policy)
    assert torch.equal(v, expected)
    assert all(g is not None for g in torch.autograd.grad(v.sum(), policy.trainable_parameters()))


def test_a_wrapped_transformer_is_used_and_saved(policy: Policy, tmp_path: Path) -> None:
    expected = velocity(policy)

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **inputs: object) -> object:
            self.calls += 1
            return self.module(**inputs)

    policy.model.transformer = Wrapper(policy.model.transformer)
    assert torch.equal(velocity(policy), expected)
    with policy.using("reference"):
        assert not torch.equal(velocity(policy), expected)
    assert policy.model.transformer.calls == 2
    policy.export(tmp_path, policy.state_dict()["current"])
    assert not any(name.startswith("module.") for name in policy.state_dict()["current"])
