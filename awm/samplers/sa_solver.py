"""SA-Solver: stochastic Adams predictor-corrector in lambda = log((1 - t) / t), with data prediction.

With h = lambda_t - lambda_s, c = 1 + tau^2 and D = x - t v the data prediction, a step s -> t is

    x_t = (t / s) e^(-tau^2 h) x_s + c (1 - t) Int_0^h e^(-c (h - w)) D(lambda_s + w) dw
          + t sqrt(1 - e^(-2 tau^2 h)) xi

and D is replaced by the polynomial through its last values; the corrector also passes through the value at
the predicted x_t. See SA-Solver, https://arxiv.org/abs/2309.05019. tau = 0 is a deterministic
ODE solver, tau = 1 the exact reversal of the noising process; marginals agree for all tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from awm.flow.path import at_least_float32, batch_time, data_from_velocity
from awm.flow.times import check_grid
from awm.interfaces import Randn, VelocityField
from awm.types import Trajectory


@dataclass(frozen=True, slots=True)
class Step:
    """Coefficients of one step to time t.

    Attributes:
        t: the time the step ends at.
        x_weight: of the state before the step.
        noise_weight: of the step's noise; 0 if deterministic.
        predictor: of the data predictions so far, newest first.
        corrector: of the data prediction at t, then of those before it; empty if not corrected.
    """

    t: float
    x_weight: float
    noise_weight: float
    predictor: tuple[float, ...]
    corrector: tuple[float, ...]


def adams_weights(nodes: Sequence[float], h: float, tau: float, *, few_step: bool) -> tuple[float, ...]:
    """Weights b_j with sum_j b_j D(w_j) = c Int_0^h e^(-c (h - w)) D(w) dw for polynomials through the nodes.

    They solve sum_j b_j w_j^m = M_m, where the moments M_m = c Int e^(-c (h - w)) w^m dw obey
    M_0 = 1 - e^(-c h) and M_m = h^m - (m / c) M_{m-1}. With two nodes, ``few_step`` replaces M_1 by its
    leading term c h^2 / 2: the same order of accuracy, and what the authors' code does at few steps.

    Args:
        nodes: lambda of the known data predictions minus lambda_s; one, two or three of them.
        h: length of the step in lambda.
        tau: stochasticity of the step.
        few_step: use the leading term of M_1 at order two.
    """
    c = 1 + tau**2
    moments = [-math.expm1(-c * h)]
    for m in range(1, len(nodes)):
        moments.append(h**m - m / c * moments[-1])
    if few_step and len(nodes) == 2:
        moments[1] = c * h**2 / 2
    powers = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True)
    return tuple(np.linalg.solve(powers.T, np.asarray(moments)).tolist())


def step_table(
    grid: tuple[float, ...],
    *,
    noise_level: float,
    interval: tuple[float, float],
    predictor_order: int,
    corrector_order: int,
    few_step: bool,
) -> tuple[Step, ...]:
    """Coefficients of the n - 1 steps between the positive times of ``grid``, in float64 on the host.

    Orders count the data predictions a polynomial passes through. Step k has k of them, so order rises to the
    one asked for; as in the authors' code the first step is not corrected. tau is ``noise_level`` where the
    step's end lies in ``interval``, else 0.
    """
    lambdas = [math.log1p(-t) - math.log(t) for t in grid[:-1]]
    steps = []
    for k, (s, t) in enumerate(pairwise(grid[:-1]), start=1):
        tau = noise_level if interval[0] <= t <= interval[1] else 0.0
        h = lambdas[k] - lambdas[k - 1]
        past = [lam - lambdas[k - 1] for lam in reversed(lambdas[:k])]
        order = min(corrector_order, k) if k > 1 else 0
        predictor = adams_weights(past[: min(predictor_order, k)], h, tau, few_step=few_step)
        corrector = adams_weights([h, *past[: order - 1]], h, tau, few_step=few_step) if order else ()
        steps.append(
            Step(
                t=t,
                x_weight=t / s * math.exp(-(tau**2) * h),
                noise_weight=t * math.sqrt(-math.expm1(-2 * tau**2 * h)),
                predictor=tuple((1 - t) * b for b in predictor),
                corrector=tuple((1 - t) * b for b in corrector),
            )
        )
    return tuple(steps)


class SASolver:
    """Stochastic Adams solver; the result is the last data prediction, so n model calls for n steps.

    Args:
        grid: n + 1 times from noise to data, the first below 1: ``edit_ends(shifted_grid(n))`` for SD3.
        noise_level: tau inside ``interval``.
        interval: times (low, high), ends included, whose steps are stochastic.
        predictor_order: 1 to 3 data predictions.
        corrector_order: 0 (off) to 3 data predictions, the new one included.
        mode: "PEC" keeps the data prediction made at the predicted state, "PECE" evaluates again at the
            corrected one, for up to n - 2 more model calls.
        few_step: the order-two weights of the authors' code for few steps, see ``adams_weights``.
    """

    starts_below_one = True

    def __init__(
        self,
        *,
        grid: tuple[float, ...],
        noise_level: float = 0.0,
        interval: tuple[float, float] = (0.3, 0.9),
        predictor_order: int = 2,
        corrector_order: int = 2,
        mode: Literal["PEC", "PECE"] = "PEC",
        few_step: bool = True,
    ) -> None:
        self.grid = check_grid(grid)
        if grid[0] >= 1:
            raise ValueError(f"lambda is infinite at t = {grid[0]}; start below 1, as edit_ends(grid) does.")
        if not 1 <= predictor_order <= 3 or not 0 <= corrector_order <= 3:
            raise ValueError(f"orders are 1-3 and 0-3, not {predictor_order} and {corrector_order}.")
        if mode not in ("PEC", "PECE"):
            raise ValueError(f"unknown mode {mode!r}; known: PEC, PECE.")
        if noise_level < 0:
            raise ValueError(f"noise_level must be >= 0, not {noise_level}.")
        self.evaluate_again = mode == "PECE"
        self.depth = max(predictor_order, corrector_order)
        self.steps = step_table(
            self.grid,
            noise_level=noise_level,
            interval=interval,
            predictor_order=predictor_order,
            corrector_order=corrector_order,
            few_step=few_step,
        )

    def __call__(self, velocity: VelocityField, x_1: Tensor, randn: Randn, *, keep_states: bool = False) -> Trajectory:
        """Integrate from x_1 [B, C, H, W]; one noise draw per stochastic step, for predictor and corrector."""

        def data(x: Tensor, t: float) -> Tensor:
            time = batch_time(t, x)
            return data_from_velocity(x, velocity(x, time), time)

        x = at_least_float32(x_1)
        states = [x]
        known = [data(x, self.grid[0])]
        for step in self.steps:
            base = step.x_weight * x
            if step.noise_weight > 0:
                base = base + step.noise_weight * randn()
            x = _add(base, step.predictor, known)
            known = [data(x, step.t), *known][: self.depth]
            if step.corrector:
                x = _add(base, step.corrector, known)
                if self.evaluate_again:
                    known[0] = data(x, step.t)
            if keep_states:
                states.append(x)
        x_0 = known[0]
        return Trajectory(x_0, self.grid, torch.stack([*states, x_0]) if keep_states else None)


def _add(base: Tensor, weights: tuple[float, ...], tensors: list[Tensor]) -> Tensor:
    # known may hold more predictions than an order uses: the weights say how many.
    for weight, tensor in zip(weights, tensors, strict=False):
        base = base + weight * tensor
    return base
