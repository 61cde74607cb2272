"""One agent: what an update changes, how it acts, and the settings it is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awm.lab.control.agent import Agent
from awm.lab.control.collector import Transitions
from awm.lab.control.settings import ControlSettings, preset


def small(**changes: Any) -> ControlSettings:
    return preset(
        "quick", "Nothing-v0", **{"width": 8, "depth": 1, "sampling_steps": 2, "num_candidates": 4, **changes}
    )


def batch(count: int = 16) -> Transitions:
    generator = torch.Generator().manual_seed(0)
    return Transitions(
        observation=torch.randn(count, 3, generator=generator),
        action=2 * torch.rand(count, 2, generator=generator) - 1,
        reward=torch.randn(count, generator=generator),
        next_observation=torch.randn(count, 3, generator=generator),
        terminated=(torch.arange(count) % 4 == 0).float(),
    )


@pytest.mark.parametrize("algorithm", ["simpo", "rfm"])
@pytest.mark.parametrize("path", ["flow", "diffusion"])
def test_an_update_moves_policy_and_critics_and_the_target_by_its_rate(algorithm: str, path: str) -> None:
    agent = Agent(small(algorithm=algorithm, path=path), 3, 2, seed=0)
    before = {name: [p.clone() for p in getattr(agent, name).parameters()] for name in ("policy", "critics", "target")}
    metrics = agent.update(batch())
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    for name in ("policy", "critics"):
        pairs = zip(getattr(agent, name).parameters(), before[name], strict=True)
        assert all(not torch.equal(new, old) for new, old in pairs)
    rate = agent.settings.target_rate
    rows = zip(agent.target.parameters(), before["target"], agent.critics.parameters(), strict=True)
    for new, old, source in rows:
        torch.testing.assert_close(new, (1 - rate) * old + rate * source)


def test_a_frozen_policy_stays_while_the_critics_learn() -> None:
    agent = Agent(small(algorithm="frozen"), 3, 2, seed=0)
    before = {name: [p.clone() for p in getattr(agent, name).parameters()] for name in ("policy", "critics")}
    assert set(agent.update(batch())) == {"critic_loss"} and agent.num_updates == 1
    assert agent.settings.variant == "not trained, flow"
    assert all(torch.equal(new, old) for new, old in zip(agent.policy.parameters(), before["policy"], strict=True))
    assert not any(
        torch.equal(new, old) for new, old in zip(agent.critics.parameters(), before["critics"], strict=True)
    )


class LinearCritics(nn.Module):
    """Q_k(s, a) = w_k [s, a]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.weight @ torch.cat([state, action], dim=-1).T


def test_the_critics_follow_the_target_of_the_next_state_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """y = 0.5 r + 0.9 (1 - terminated) min_k Q'_k(s', pi(s')), written out row by row."""
    agent = Agent(small(algorithm="frozen", discount=0.9, reward_scale=0.5, target_rate=0.25), 3, 2, seed=0)
    online, slow = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1))
    critics, target = LinearCritics(online.clone()), LinearCritics(slow.clone())
    monkeypatch.setattr(agent, "critics", critics)
    monkeypatch.setattr(agent, "target", target)
    monkeypatch.setattr(agent.policy, "sample", lambda state, count, generator: torch.tanh(state[:, None, :2]))
    monkeypatch.setattr(agent, "critic_optimizer", torch.optim.SGD(critics.parameters(), lr=0.1))
    rows = batch()
    found = agent.update(rows)["critic_loss"]

    loss, gradient = 0.0, torch.zeros(2, 5)
    for i in range(16):
        following = rows.next_observation[i]
        future = min(float(slow[k] @ torch.cat([following, torch.tanh(following[:2])])) for k in range(2))
        y = 0.5 * float(rows.reward[i]) + (0.0 if i % 4 == 0 else 0.9 * future)
        inputs = torch.cat([rows.observation[i], rows.action[i]])
        for k in range(2):
            error = float(online[k] @ inputs) - y
            loss += error**2 / 32
            gradient[k] += 2 * error * inputs / 32
    assert found == pytest.approx(loss, rel=1e-5)
    stepped = online - 0.1 * gradient
    torch.testing.assert_close(critics.weight.data, stepped)
    torch.testing.assert_close(target.weight.data, 0.75 * slow + 0.25 * stepped)


def test_the_seed_decides_everything() -> None:
    def after_two(seed: int) -> torch.Tensor:
        agent = Agent(small(), 3, 2, seed=seed)
        for _ in range(2):
            agent.update(batch())
        return agent.explore(torch.ones(4, 3))

    assert torch.equal(after_two(1), after_two(1))
    assert not torch.equal(after_two(1), after_two(2))


def test_actions_lie_in_the_box_and_the_best_has_the_largest_q() -> None:
    agent = Agent(small(evaluation_candidates=8, exploration_noise=2.0), 3, 2, seed=0)
    observation = torch.randn(6, 3)
    for action in (agent.explore(observation), agent.random_actions(6)):
        assert action.shape == (6, 2) and action.abs().max() <= 1
    candidates = agent.policy.sample(observation, 8, torch.Generator().manual_seed(4))
    best = agent.best_action(observation, torch.Generator().manual_seed(4))
    score = agent.critics.score(observation[:, None].expand(-1, 8, -1), candidates)
    torch.testing.assert_close(agent.critics.score(observation, best), score.amax(1))


def test_the_policy_learning_rate_falls_linearly_to_its_end() -> None:
    agent = Agent(small(total_steps=1_020, warmup_steps=1_000), 3, 2, seed=0)
    rates = []
    for _ in range(agent.settings.num_updates):
        agent.update(batch())
        rates.append(agent.policy_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3 + (3e-4 - 1e-3) * k / 4 for k in (1, 2, 3, 4)])


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    agent = Agent(small(), 3, 2, seed=0)
    broken = batch()
    broken.reward[3] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss became nan"):
        agent.update(broken)


def test_the_paper_preset_is_the_papers_table() -> None:
    paper = preset("paper", "Hopper-v5")
    assert (paper.total_steps, paper.num_updates) == (1_000_000, 199_000)
    assert (paper.critic_learning_rate, paper.policy_learning_rate, paper.final_policy_learning_rate) == (
        3e-4,
        3e-4,
        3e-5,
    )
    assert (paper.width, paper.depth, paper.sampling_steps, paper.num_candidates, paper.target_kl) == (
        256,
        3,
        20,
        32,
        1.5,
    )
    assert (paper.buffer_size, paper.num_environments, paper.evaluation_episodes) == (1_000_000, 5, 20)
    assert paper.evaluation_candidates == 10 and preset("quick", "Hopper-v5").evaluation_candidates == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weighting": "linar"}, "unknown weighting 'linar'.*Did you mean 'linear'"),
        ({"path": "straight"}, "unknown path"),
        ({"algorithm": "ppo"}, "unknown algorithm"),
        ({"estimator": "best"}, "unknown estimator"),
        ({"landscape": "cube"}, "unknown landscape"),
        ({"witdh": 3}, "unknown setting 'witdh'.*Did you mean 'width'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_candidates": 1}, "at least 2"),
        ({"num_candidates": 3, "algorithm": "rfm"}, "at least 4 for rfm, not 3"),
        ({"wall": 0.0}, "wall must be"),
        ({"discount": 1.0}, "below 1"),
        ({"candidate_noise": -0.1}, "candidate_noise must be"),
        ({"total_steps": 500}, "the first 1000 are random"),
    ],
)
def test_mistakes_in_settings_are_sentences(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preset("quick", "Pendulum-v1", **changes)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown preset"):
        preset("fast", "Pendulum-v1")
