"""Critics: their targets by hand, their independence, and how the target copies follow."""

from __future__ import annotations

import pytest
import torch

from awm.lab.control.critics import DoubleCritic, move_toward, target_copy, td_target


def critics(seed: int = 0) -> DoubleCritic:
    generators = [torch.Generator().manual_seed(seed + k) for k in range(2)]
    return DoubleCritic(3, 2, generators, width=8, depth=2)


def test_target_by_hand() -> None:
    target = td_target(
        torch.tensor([1.0, 1.0, -2.0]),
        torch.tensor([0.0, 1.0, 0.0]),
        torch.tensor([[10.0, 10.0, 4.0], [8.0, 12.0, 6.0]]),
        discount=0.9,
    )
    # 1 + .9 min(10, 8);  terminated: the reward alone;  -2 + .9 min(4, 6)
    assert target.tolist() == pytest.approx([8.2, 1.0, 1.6])


def test_shapes_follow_the_leading_axes_and_score_is_the_mean() -> None:
    net = critics()
    state, action = torch.randn(4, 5, 3), torch.randn(4, 5, 2)
    values = net(state, action)
    assert values.shape == (2, 4, 5)
    torch.testing.assert_close(net.score(state, action), (values[0] + values[1]) / 2)
    torch.testing.assert_close(net(state[1, 2], action[1, 2]), values[:, 1, 2], rtol=1e-5, atol=1e-6)


def test_the_two_critics_share_nothing() -> None:
    net = critics()
    state, action = torch.randn(6, 3), torch.randn(6, 2)
    assert (net(state, action)[0] - net(state, action)[1]).abs().min() > 0
    net(state, action)[0].sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0 and parameter.grad[1].abs().sum() == 0


def test_the_target_moves_by_its_rate_and_gets_no_gradient() -> None:
    net, target = critics(0), target_copy(critics(5))
    before = [p.clone() for p in target.parameters()]
    assert not any(p.requires_grad for p in target.parameters())
    move_toward(target, net, 0.25)
    for new, old, source in zip(target.parameters(), before, net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * source)
