"""What the replay buffer keeps, overwrites and draws."""

from __future__ import annotations

import pytest
import torch

from awm.lab.control.collector import Transitions
from awm.lab.control.replay import ReplayBuffer


def numbered(first: int, count: int) -> Transitions:
    """Transitions that carry their own number in every field."""
    number = torch.arange(first, first + count, dtype=torch.float32)
    return Transitions(
        observation=number[:, None] * torch.tensor([1.0, 10.0]),
        action=-number[:, None],
        reward=number + 0.5,
        next_observation=number[:, None] * torch.tensor([2.0, 20.0]),
        terminated=(number % 2 == 0).float(),
    )


def test_fields_of_a_draw_belong_together() -> None:
    buffer = ReplayBuffer(50, 2, 1)
    buffer.add(numbered(0, 30))
    batch = buffer.sample(200, torch.Generator().manual_seed(0))
    number = batch.observation[:, 0]
    assert torch.equal(batch.observation[:, 1], 10 * number)
    assert torch.equal(batch.action[:, 0], -number)
    assert torch.equal(batch.reward, number + 0.5)
    assert torch.equal(batch.next_observation, number[:, None] * torch.tensor([2.0, 20.0]))
    assert torch.equal(batch.terminated, (number % 2 == 0).float())


def test_the_oldest_are_overwritten() -> None:
    buffer = ReplayBuffer(8, 2, 1)
    for first in range(0, 21, 3):
        buffer.add(numbered(first, 3))
    assert len(buffer) == 8
    seen = set(buffer.sample(500, torch.Generator().manual_seed(0)).observation[:, 0].tolist())
    assert seen == {float(n) for n in range(13, 21)}


def test_draws_are_uniform_and_repeatable() -> None:
    buffer = ReplayBuffer(100, 2, 1)
    buffer.add(numbered(0, 10))
    draws = [buffer.sample(5000, torch.Generator().manual_seed(1)).observation[:, 0] for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    counts = torch.bincount(draws[0].long(), minlength=10)
    # Binomial(5000, 1/10): std 21.
    assert (counts - 500).abs().max() < 4 * 21.3


def test_mistakes_are_sentences() -> None:
    with pytest.raises(ValueError, match="empty"):
        ReplayBuffer(3, 2, 1).sample(1, torch.Generator())
    with pytest.raises(ValueError, match="do not fit"):
        ReplayBuffer(3, 2, 1).add(numbered(0, 4))
    with pytest.raises(ValueError, match="at least 1"):
        ReplayBuffer(0, 2, 1)
