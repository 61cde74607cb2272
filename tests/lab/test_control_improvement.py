"""Both improvement steps against critics whose best policy is known."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from awm.lab.control.agent import Agent
from awm.lab.control.critics import DoubleCritic
from awm.lab.control.rfm import RfmImprovement
from awm.lab.control.settings import ControlSettings, preset
from awm.lab.control.simpo import SimpoImprovement, reflect
from awm.reverse_matching import FisherInformation

CENTRE = torch.tensor([0.4, -0.3])


class Quadratic:
    """Q(s, a) = -|a - (CENTRE + s)|^2 / (2 width^2); stands in for the critics."""

    def __init__(self, width: float = 1.0) -> None:
        self.width = width

    def score(self, state: Tensor, action: Tensor) -> Tensor:
        return -(action - CENTRE - state).square().sum(-1) / (2 * self.width**2)


def settings(**changes: Any) -> ControlSettings:
    return preset("quick", "Nothing-v0", **{"width": 32, "batch_size": 32, "total_steps": 3_000, **changes})


def improve(agent: Agent, critics: DoubleCritic, state: Tensor, steps: int) -> None:
    assert agent.improvement is not None
    for step in range(steps):
        loss, _ = agent.improvement.loss(agent.policy, critics, state, agent.learning, progress=step / steps)
        agent.policy_optimizer.zero_grad()
        loss.backward()
        agent.policy_optimizer.step()


@pytest.mark.parametrize(("weighting", "path"), [("linear_neg", "flow"), ("square", "flow"), ("exp", "diffusion")])
def test_simpo_concentrates_on_the_best_action_of_each_state(weighting: str, path: str) -> None:
    agent = Agent(settings(weighting=weighting, path=path), 2, 2, seed=0)
    state = torch.tensor([[0.2, 0.0], [-0.6, 0.5]]).repeat(8, 1)
    improve(agent, cast(DoubleCritic, Quadratic()), state, 250)
    action = agent.policy.sample(state[:2], 500, torch.Generator().manual_seed(0))
    torch.testing.assert_close(action.mean(1), CENTRE + state[:2], rtol=0, atol=0.1)
    assert action.std(1).max() < 0.3


def test_simpo_reports_the_kl_it_was_asked_for() -> None:
    improvement = SimpoImprovement(settings(target_kl=1.2), Agent(settings(), 2, 2, seed=0).policy)
    weight, metrics = improvement.weights(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * 1e-3)
    assert metrics["kl"] == pytest.approx(1.2, abs=1e-3)
    torch.testing.assert_close(weight.mean(1), torch.ones(64))
    # Between solutions the temperature follows the scale of Q, to which the weights are therefore blind.
    improvement.num_calls = 1
    again, _ = improvement.weights(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * 7 + 100)
    torch.testing.assert_close(again, weight, rtol=1e-3, atol=1e-3)


def test_simpo_proposes_from_the_old_policy_until_it_is_renewed() -> None:
    changed = settings(refresh_interval=3, candidate_noise=1e-9)
    agent = Agent(changed, 2, 2, seed=0)
    improvement = cast(SimpoImprovement, agent.improvement)
    state = torch.zeros(4, 2)

    def proposed() -> Tensor:
        return improvement.candidates(state, torch.Generator().manual_seed(1))

    first = proposed()
    for step in range(1, 5):
        improve(agent, cast(DoubleCritic, Quadratic()), state, 1)
        assert torch.equal(proposed(), first) == (step <= 3)


@pytest.mark.parametrize("pull", [0.0, 0.7])
def test_simpos_loss_is_the_weighted_matching_loss_of_all_candidates(pull: float) -> None:
    """Candidates without weight are left out of the forward; that must not change the loss."""
    agent = Agent(settings(pull=pull), 2, 2, seed=0)
    improvement = cast(SimpoImprovement, agent.improvement)
    for parameter in agent.policy.parameters():
        parameter.data.mul_(1.1)  # so that the old policy is another one
    state = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
    candidate = improvement.candidates(state, torch.Generator().manual_seed(3))
    weight = torch.zeros(3, 16)
    weight[:, :4] = torch.tensor([8.0, 6.0, 3.0, -1.0])
    seed = torch.Generator().manual_seed(4)
    found, case_two = improvement._matching_loss(agent.policy, state, candidate, weight, seed)
    assert case_two == pytest.approx(3 / 48)  # the -1 of each state repels, with a pull of 0.7 too

    rows = torch.ones(3, 16, dtype=torch.bool) if pull else weight != 0
    x_0, wide, w = candidate[rows], state[:, None].expand(-1, 16, -1)[rows], weight[rows]
    seed.manual_seed(4)
    t = 1 - torch.rand(len(x_0), generator=seed)
    eps = torch.randn(x_0.shape, generator=seed)
    x_t = (1 - t)[:, None] * x_0 + t[:, None] * eps
    prediction, old = (p.prediction(x_t, t, wide) for p in (agent.policy, improvement.old_policy))
    error = (prediction - (eps - x_0)).square()
    error = torch.where((w + pull < 0)[:, None], error.clamp(max=5), error)  # rows that repel
    expected = (w * error.mean(1) + pull * (prediction - old).square().mean(1)).sum() / (3 * 16)
    torch.testing.assert_close(found, expected)


def test_noise_is_reflected_at_the_edges() -> None:
    x = torch.tensor([-1.0, -0.5, 0.9, 1.3, -1.25, 3.2])
    torch.testing.assert_close(reflect(x), torch.tensor([-1.0, -0.5, 0.9, 0.7, -0.75, -0.8]))


def rfm(estimator: str = "combined", **changes: Any) -> RfmImprovement:
    return RfmImprovement(settings(algorithm="rfm", estimator=estimator, **changes))


class InUnits(RfmImprovement):
    """Takes Q as it is, so that the temperature is the one asked for."""

    def _follow_spread(self, value: Tensor) -> None:
        self.spread = 1.0


@pytest.mark.parametrize(
    ("estimator", "times", "tolerance"),
    [
        ("combined", (0.1, 0.3, 0.5, 0.7), 0.02),
        ("noise", (0.1, 0.3, 0.5, 0.7), 0.15),
        # Its variance grows like (t / (1 - t))^4.
        ("gradient", (0.05, 0.1, 0.15, 0.2), 0.15),
    ],
)
def test_rfm_estimates_the_velocity_of_the_boltzmann_policy(
    estimator: str, times: tuple[float, ...], tolerance: float
) -> None:
    """A quadratic Q has a Gaussian Boltzmann policy N(m, tau^2): v* = (t - s tau^2) (x_t - s m) / V - m."""
    improvement, tau = InUnits(settings(algorithm="rfm", estimator=estimator, num_candidates=4000)), 0.15
    critics = cast(DoubleCritic, Quadratic(width=tau))
    improvement.fisher = FisherInformation(torch.tensor(1 / tau**2), temperature=1.0)
    t = torch.tensor(times)
    state = torch.tensor([[0.0, 0.0], [-0.4, 0.3], [-0.2, 0.1], [-0.5, 0.2]])
    mean = CENTRE + state
    x_t = mean * (1 - t)[:, None] + 0.1 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    policy = Agent(improvement.settings, 2, 2, seed=0).policy
    found = improvement.estimate(policy, critics, state, x_t, t, torch.Generator().manual_seed(1), temperature=1.0)
    time, s = t[:, None], 1 - t[:, None]
    exact = (time - s * tau**2) / (s**2 * tau**2 + time**2) * (x_t - s * mean) - mean
    torch.testing.assert_close(found.target, exact, rtol=0, atol=tolerance)


def test_rfms_field_has_no_mean_although_actions_are_bounded() -> None:
    """By quadrature: E[s eps + t g | x_t] = 0 for Q = 2 a, whose density would not be integrable without the tails."""

    class Slope:
        def score(self, state: Tensor, action: Tensor) -> Tensor:
            return 2 * action.sum(-1)

    improvement = InUnits(settings(algorithm="rfm", wall=0.2))
    action = torch.linspace(-4, 4, 40_001, dtype=torch.float64)[None, :, None]
    outside = action - action.clamp(-1, 1)
    critics = cast(DoubleCritic, Slope())
    log_density, gradient = improvement.log_density(critics, torch.zeros(1, 1), action, temperature=1.0)
    expected = 2 * action.clamp(-1, 1) - outside.square() / (2 * 0.2**2)
    torch.testing.assert_close(log_density, expected.squeeze(-1))

    t, x_t = 0.5, 0.3
    eps = (x_t - (1 - t) * action) / t
    weight = (log_density - 0.5 * eps.square().sum(-1)).softmax(1)[..., None]
    assert abs((weight * ((1 - t) * eps + t * gradient)).sum()) < 1e-3
    # A gradient that does not know the tails would not do.
    ignorant = torch.where(outside == 0, gradient, 0.0)
    assert abs((weight * ((1 - t) * eps + t * ignorant)).sum()) > 0.1


@pytest.mark.parametrize(("estimator", "path"), [("noise", "flow"), ("combined", "diffusion")])
def test_rfm_trains_the_boltzmann_policy(estimator: str, path: str) -> None:
    agent = Agent(
        settings(algorithm="rfm", estimator=estimator, path=path, sampling_steps=8, policy_learning_rate=1.5e-3),
        2,
        2,
        seed=0,
    )
    state = torch.tensor([[0.0, 0.0], [-0.4, 0.3]]).repeat(32, 1)
    improve(agent, cast(DoubleCritic, Quadratic()), state, 240)
    action = agent.policy.sample(state[:2], 1000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(action.mean(1), CENTRE + state[:2], rtol=0, atol=0.06)
    improvement = cast(RfmImprovement, agent.improvement)
    assert improvement.spread is not None
    expected = math.sqrt(improvement.settings.temperature * improvement.spread)
    torch.testing.assert_close(action.std(1), torch.full((2, 2), expected), rtol=0.25, atol=0.02)


def test_rfm_without_any_usable_target_is_an_error() -> None:
    class Broken:
        def score(self, state: Tensor, action: Tensor) -> Tensor:
            return action.sum(-1) * torch.inf

    agent = Agent(settings(algorithm="rfm"), 2, 2, seed=0)
    with pytest.raises(FloatingPointError, match="no state of the batch has a usable target"):
        improve(agent, cast(DoubleCritic, Broken()), torch.zeros(4, 2), 1)


def test_rfm_cools_over_the_first_third() -> None:
    improvement = rfm(initial_temperature=0.4, temperature=0.1)
    assert [improvement.temperature(x) for x in (0.0, 1 / 6, 1 / 3, 1.0)] == pytest.approx([0.4, 0.25, 0.1, 0.1])
