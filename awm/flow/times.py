"""Times: the grid a sampler walks, and where on [0, 1] training draws its times.

Grids are tuples of n + 1 Python floats from noise (1) to data (0), so no solver can edit another's and no
coefficient waits for the device. The SD3 grid is Stable Diffusion 3's (arXiv 2403.03206, section 5.3.2); the
training distributions are those of AWM (arXiv 2509.25050) and its public code.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

TimeDistribution = Literal["discrete", "discrete_wo_init", "discrete_with_init", "uniform", "logit_normal"]


def shift_time(t: float, shift: float) -> float:
    """Resolution shift f(t) = a t / (1 + (a - 1) t): keeps 0 and 1, moves the rest toward the noise if a > 1."""
    return shift * t / (1 + (shift - 1) * t)


def shifted_grid(num_steps: int, shift: float = 3.0) -> tuple[float, ...]:
    """SD3's sampling grid, f(linspace(1, f(1/1000), num_steps)) and then 0.

    The low end is shifted twice: the published schedule does so, and both rollout and training use it.

    Args:
        num_steps: number of model calls n.
        shift: the a of ``shift_time``; 1 gives evenly spaced times.

    Returns:
        n + 1 strictly decreasing times; the first is 1, the last 0.
    """
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"a grid needs num_steps >= 1 and shift > 0, not num_steps={num_steps}, shift={shift}.")
    low = shift_time(1 / 1000, shift)
    linear = [1 + (low - 1) * i / max(num_steps - 1, 1) for i in range(num_steps)]
    return (*(shift_time(t, shift) for t in linear), 0.0)


def edit_ends(
    grid: tuple[float, ...], *, first: float = 0.999, penultimate: Literal["half"] | float = "half"
) -> tuple[float, ...]:
    """``grid`` with the two ends that an exponential integrator in lambda cannot use replaced.

    lambda(1) = -inf, so the walk starts at ``first``. The last positive time of the SD3 grid is so small that
    the last but one step would span most of lambda; "half" puts it at half the time before it.

    Args:
        grid: n + 1 times, n >= 2.
        first: replaces grid[0].
        penultimate: replaces grid[-2]; "half" is grid[-3] / 2, of the grid before the edit.

    Returns:
        A new grid; the one given is not changed.
    """
    if len(grid) < 3:
        raise ValueError(f"cannot edit both ends of a grid of {len(grid) - 1} step; use at least 2 sampling steps.")
    last = grid[-3] / 2 if penultimate == "half" else float(penultimate)
    return check_grid((first, *grid[1:-2], last, grid[-1]))


def check_grid(grid: tuple[float, ...]) -> tuple[float, ...]:
    """Return ``grid`` if it decreases strictly from at most 1 to exactly 0, else raise ValueError."""
    decreasing = all(t > s for t, s in pairwise(grid))
    if len(grid) < 2 or not decreasing or grid[0] > 1 or grid[-1] != 0:
        raise ValueError(f"a sampling grid decreases strictly from at most 1 to 0; got {grid}.")
    return tuple(float(t) for t in grid)


def strata(kind: str, *, num_times: int, num_steps: int, fraction: float) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of grid indices, one for each training time of a sample.

    The m strata divide [lo, int(num_steps * fraction)) as evenly as integers allow. ``discrete`` starts at
    lo = 0 (t = 1); ``discrete_wo_init`` at lo = 1; ``discrete_with_init`` spends its first time on index 0
    and the other T - 1 as ``discrete_wo_init`` does.

    Returns:
        T pairs (first, one past the last).
    """
    first = ((0, 1),) if kind == "discrete_with_init" else ()
    low, high = (0 if kind == "discrete" else 1), int(num_steps * fraction)
    count = num_times - len(first)
    edges = [low + i * (high - low) // max(count, 1) for i in range(count + 1)]
    return first + tuple(pairwise(edges))


def validate_times(kind: str, *, num_times: int, grid: tuple[float, ...], fraction: float) -> None:
    """Raise ValueError if ``draw_times`` could not draw ``num_times`` times; called before training starts.

    Args:
        kind: name of the training-time distribution.
        num_times: training times of each sample, T.
        grid: the rollout grid, n + 1 times, without the edits of ``edit_ends``.
        fraction: share of the grid, from the noise end, that is trained on; only the discrete kinds use it.
    """
    known = get_args(TimeDistribution)
    if kind not in known:
        raise ValueError(f"unknown time_type {kind!r}; known: {', '.join(known)}.")
    if num_times < 1:
        raise ValueError(f"train_timesteps must be at least 1, not {num_times}.")
    if not 0 < fraction <= 1:
        raise ValueError(f"timestep_fraction must lie in (0, 1], not {fraction}.")
    check_grid(grid)
    num_steps = len(grid) - 1
    if not kind.startswith("discrete"):
        return
    if any(high <= low for low, high in strata(kind, num_times=num_times, num_steps=num_steps, fraction=fraction)):
        usable = int(num_steps * fraction) - (kind == "discrete_wo_init")
        raise ValueError(
            f"train_timesteps={num_times} does not fit {num_steps} sampling steps: time_type {kind!r} with "
            f"timestep_fraction={fraction} leaves {max(usable, 0)} of them; use fewer training times or more steps."
        )


def draw_times(
    uniforms: Tensor, *, kind: str, grid: tuple[float, ...], fraction: float = 0.9, shift: float = 3.0
) -> Tensor:
    """Stratified training times: row j of every column comes from stratum j of T.

        discrete...      t = grid[b_j + floor(u (b_{j+1} - b_j))]            (``strata``)
        uniform          t = f(0.2 + 0.8 (j + u) / T)
        logit_normal     t = max(f(sigmoid(Phi^-1((j + u) / T))), 0.01)

    Each sample (column) draws all its strata. The public code shares the discrete and logit-normal times
    among a micro-batch and permutes the other two over j; times of one sample are averaged over, so their
    order is immaterial and nothing is permuted here.

    Args:
        uniforms: [T, B] independent numbers in [0, 1).
        kind: name of the distribution; ``validate_times`` says whether the rest fits it.
        grid: the rollout grid, n + 1 times, without the edits of ``edit_ends``.
        fraction: share of the grid, from the noise end, that the discrete kinds draw from.
        shift: the a of f = ``shift_time``, for the two continuous kinds.

    Returns:
        [T, B] float32 times in (0, 1].
    """
    num_times = uniforms.shape[0]
    validate_times(kind, num_times=num_times, grid=grid, fraction=fraction)
    if kind.startswith("discrete"):
        return _draw_grid_times(uniforms, kind, grid, fraction)
    # float64 keeps the tails: in float32, 1 - 1e-7 is one rounding away from 1.
    rank = torch.arange(num_times, dtype=torch.float64, device=uniforms.device).unsqueeze(1)
    quantile = (rank + uniforms.double()) / num_times
    if kind == "uniform":
        time = 0.2 + 0.8 * quantile
    else:
        time = torch.special.ndtri(quantile.clamp(1e-7, 1 - 1e-7)).sigmoid()
    shifted = shift * time / (1 + (shift - 1) * time)
    return shifted.float() if kind == "uniform" else shifted.clamp(min=0.01).float()


def _draw_grid_times(uniforms: Tensor, kind: str, grid: tuple[float, ...], fraction: float) -> Tensor:
    ranges = strata(kind, num_times=uniforms.shape[0], num_steps=len(grid) - 1, fraction=fraction)
    low, high = _on_device(ranges, torch.int64, uniforms.device).unbind(1)
    width = (high - low).unsqueeze(1)
    # u <= 1 - 2^-24 in float32, and then u * width never rounds up to width: the index stays in its stratum.
    offset = (uniforms * width).long()
    return _on_device(grid, torch.float32, uniforms.device)[low.unsqueeze(1) + offset]


@lru_cache(maxsize=64)
def _on_device(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The constants as a tensor, made once: in every micro-batch, a GPU's queue would be waited for."""
    return torch.tensor(values, dtype=dtype, device=device)
