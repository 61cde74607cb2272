"""When the policy says that a weight set equals the current one: never unless it does, whoever moved what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from awm.interfaces import WeightSet
from awm.models.equal_sets import EqualSets
from awm.models.policy import Policy
from awm.models.sd3 import SD3

SETS: tuple[WeightSet, ...] = ("current", "anchor", "reference", "average", "rollout")


@pytest.fixture(params=["lora", "full"])
def policy(request: pytest.FixtureRequest, checkpoint: Path) -> Policy:
    return Policy(SD3.load(str(checkpoint), dtype=torch.float32), use_lora=request.param == "lora", lora_rank=4)


def step(policy: Policy, **options: bool) -> None:
    """An optimizer's, which tells nobody."""
    for parameter in policy.trainable_parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(policy.trainable_parameters(), **options).step()


def truth(policy: Policy, name: WeightSet) -> bool:
    def held() -> list[Tensor]:
        return [parameter.detach().clone() for parameter in policy.trainable_parameters()]

    current = held()
    with policy.using(name):
        return all(torch.equal(a, b) for a, b in zip(held(), current, strict=True))


def known(policy: Policy) -> set[str]:
    """The sets that the policy says are equal, each of which is."""
    names = {name for name in ("anchor", "rollout") if policy.equals_current(name)}
    assert all(truth(policy, name) for name in names)
    return names


def test_the_anchor_is_equal_until_the_weights_move(policy: Policy) -> None:
    assert known(policy) == {"anchor"}
    for name in ("anchor", "reference", "average"):
        with policy.using(name):  # looking changes nothing
            pass
    assert known(policy) == {"anchor"}
    step(policy)
    assert known(policy) == set() and not truth(policy, "anchor")


def test_only_a_copy_makes_the_anchor_equal_again(policy: Policy) -> None:
    step(policy)
    policy.update_anchor(0.3)
    assert known(policy) == set() and not truth(policy, "anchor")
    policy.update_anchor(0.0)
    assert known(policy) == {"anchor"}
    step(policy)
    assert known(policy) == set()


def test_a_slow_update_ends_it_though_current_stayed(policy: Policy) -> None:
    policy.snapshot_rollout()
    policy.update_anchor(0.5)
    assert known(policy) == {"rollout"}


def test_the_rollout_s_is_equal_from_its_snapshot_to_the_next_step(policy: Policy) -> None:
    assert not policy.equals_current("rollout")
    step(policy)
    policy.snapshot_rollout()
    assert known(policy) == {"rollout"}
    step(policy)
    assert known(policy) == set() and not truth(policy, "rollout")
    policy.snapshot_rollout()
    assert known(policy) == {"rollout"}


def test_being_told_ends_it(policy: Policy) -> None:
    policy.snapshot_rollout()
    policy.current_moved()
    assert known(policy) == set()


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_restored_state_is_compared(policy: Policy, decay: float, checkpoint: Path) -> None:
    step(policy)
    policy.snapshot_rollout()
    policy.update_anchor(decay)
    state = policy.state_dict()
    step(policy)
    policy.update_anchor(0.0)
    policy.load_state_dict(state)
    assert known(policy) == ({"anchor"} if decay == 0 else set())
    assert truth(policy, "anchor") == (decay == 0)


def test_others_are_never_said_to_be(policy: Policy) -> None:
    """Adapters that are still zero, or an average that has not moved yet, have no forward worth sparing."""
    assert not any(policy.equals_current(name) for name in ("reference", "average"))


@pytest.mark.parametrize(
    "move",
    [
        lambda p: torch.optim.AdamW(p, foreach=True).step(),
        lambda p: torch.optim.AdamW(p, foreach=False).step(),
        lambda p: torch.optim.SGD(p, lr=0.1).step(),
        lambda p: torch._foreach_add_(p, 1.0),
        lambda p: p[1].copy_(torch.zeros(3)),
    ],
    ids=["foreach", "one by one", "sgd", "foreach_add", "copy"],
)
@torch.no_grad()
def test_what_moves_weights_is_noticed_without_being_told(move: Callable[[list[nn.Parameter]], object]) -> None:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    equal = EqualSets(parameters)
    equal.copied("anchor")
    parameters[0].data = torch.zeros(3)  # another set's turn ...
    parameters[0].data = torch.ones(3)  # ... and back
    assert "anchor" in equal and "rollout" not in equal
    move(parameters)
    assert "anchor" not in equal
