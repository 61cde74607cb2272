"""Stein's field has mean zero on a bounded action space only if the edge is taken care of (quadrature in 1-D)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awm.reverse_matching import clamped_log_density, squashed_log_density
from awm.reverse_matching.actions import log_tanh_slope

T, X_T = 0.5, 0.3
SLOPE = 2.0


def critic(action: Tensor) -> Tensor:
    return SLOPE * action.squeeze(-1)


def mean_field(x_0: Tensor, log_density: Tensor, gradient: Tensor) -> float:
    """E[u | x_t] under exp(log_density) N(x_t; (1 - t) x_0, t^2), u = (1 - t) eps + t g, on an even grid."""
    eps = (X_T - (1 - T) * x_0) / T
    weight = (log_density - 0.5 * eps.square()).softmax(0)
    return float((weight * ((1 - T) * eps + T * gradient)).sum())


def test_the_clamp_keeps_the_mean_of_the_field_at_zero():
    x_0 = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    value, gradient = clamped_log_density(critic, x_0[:, None], temperature=1.0)
    assert mean_field(x_0, value, gradient.squeeze(-1)) == pytest.approx(0, abs=1e-4)
    # What goes wrong: a gradient that does not know the clamp, and a density cut off at the edge.
    assert mean_field(x_0, value, torch.full_like(x_0, SLOPE)) == pytest.approx(0.656, abs=1e-3)
    box = x_0[x_0.abs() <= 1]
    assert mean_field(box, SLOPE * box, torch.full_like(box, SLOPE)) == pytest.approx(1.009, abs=1e-3)


def test_before_tanh_there_is_no_edge():
    z = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    value, gradient = squashed_log_density(critic, z[:, None], temperature=1.0)
    assert mean_field(z, value, gradient.squeeze(-1)) == pytest.approx(0, abs=1e-6)


def test_the_clamped_gradient_is_zero_outside_each_dimension_alone():
    x_0 = torch.tensor([[0.5, -2.0], [1.5, 0.2]])
    value, gradient = clamped_log_density(lambda a: (a * torch.tensor([3.0, 5.0])).sum(-1), x_0, temperature=0.5)
    assert value.tolist() == pytest.approx([(1.5 - 5) / 0.5, (3 + 1) / 0.5])
    assert gradient.tolist() == [[6, 0], [0, 10]]


def test_the_density_before_tanh_is_the_one_of_the_action():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    value, gradient = squashed_log_density(critic, z, temperature=2.0)
    action = z.squeeze(-1).tanh()
    torch.testing.assert_close(value, action + (1 - action.square()).log())
    torch.testing.assert_close(gradient.squeeze(-1), (1 - action.square()) - 2 * action)


def test_saturated_tanh_stays_finite():
    z = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0])
    assert log_tanh_slope(z).tolist() == pytest.approx([2 * (0.693147 - abs(x)) if x else 0 for x in z.tolist()])
    value, gradient = squashed_log_density(critic, z[:, None], temperature=1.0)
    assert value.isfinite().all() and gradient.isfinite().all()


def test_the_result_carries_no_graph_even_inside_no_grad():
    x_0 = torch.zeros(2, 1)
    with torch.no_grad():
        value, gradient = clamped_log_density(critic, x_0, temperature=1.0)
    assert not value.requires_grad and not gradient.requires_grad
    assert gradient.tolist() == [[SLOPE], [SLOPE]]
