"""Windows of stochastic steps: the published schedules, and samplers that change with the epoch."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.samplers.cps import CPS
from awm.samplers.dance_sde import DanceSDE
from awm.samplers.ddpm import DDPM
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.gaussian import GaussianSampler
from awm.samplers.window import Window

KINDS = (FlowSDE, DanceSDE, CPS, DDPM)


def starts(window: Window, epochs: int) -> list[int]:
    return [window.start(0, epoch) for epoch in range(epochs)]


def stochastic(sampler: GaussianSampler) -> list[int]:
    return [i for i, step in enumerate(sampler.steps) if step.std > 0]


def test_mixgrpo_moves_one_step_every_25_epochs_and_rolls_back() -> None:
    """T = 25, W = 4: l = floor(epoch / 25) up to T - 2 = 23, then 0 again; the last windows are cut short."""
    window = Window("sliding", 4, (0, 24))
    assert starts(window, 1200) == [(epoch // 25) % 24 for epoch in range(1200)]
    assert list(window.steps(0, 26)) == [1, 2, 3, 4]
    assert list(window.steps(0, 23 * 25)) == [23] and list(window.steps(0, 24 * 25)) == [0, 1, 2, 3]


def test_a_stride_of_the_window_puts_windows_side_by_side() -> None:
    window = Window("sliding", 4, (0, 10), interval=2, stride=4)
    assert [list(window.steps(0, epoch)) for epoch in (0, 1, 2, 4, 5, 6)] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [8, 9],
        [0, 1, 2, 3],
    ]


def test_decay_stays_shorter_the_nearer_the_data() -> None:
    """From 20 epochs at l = 0 to 20 // 4 = 5 at the last start, 10: int(20 (1 - l / 10) + 5 l / 10)."""
    stays = Counter(starts(Window("decay", 2, (0, 11), interval=20), 20 + 18 + 17 + 15 + 14 + 12 + 11 + 9 + 8 + 6 + 5))
    assert list(stays.values()) == [20, 18, 17, 15, 14, 12, 11, 9, 8, 6, 5]
    assert set(starts(Window("decay", 1, (3, 5), interval=1), 4)) == {3, 4}


def test_exponential_decay_begins_after_thirteen() -> None:
    """ceil(25 exp(-0.1 (l - 13))) epochs at l > 13: 22.62, 20.47, 18.52 rounded up."""
    stays = Counter(starts(Window("exp_decay", 4, (0, 17)), 14 * 25 + 23 + 21 + 19))
    assert list(stays.values()) == [25] * 14 + [23, 21, 19]


def test_random_windows_reach_both_ends_and_are_keyed() -> None:
    window = Window("random", 2, (1, 6))
    drawn = starts(window, 400)
    assert set(drawn) == {1, 2, 3, 4} and min(Counter(drawn).values()) > 60
    assert drawn == starts(window, 400)
    assert drawn[:50] != [window.start(1, epoch) for epoch in range(50)]
    assert all(len(window.steps(0, epoch)) == 2 for epoch in range(50))


def test_random_numbers_of_others_are_left_alone() -> None:
    state = torch.get_rng_state()
    Window("random", 2, (0, 9)).start(0, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_has_the_window_of_the_epoch(kind: type[GaussianSampler]) -> None:
    grid = shifted_grid(10)
    sampler = kind(grid=grid, window="sliding", window_size=3, window_interval=5)
    everywhere = kind(grid=grid)
    for epoch, expected in ((0, [0, 1, 2]), (4, [0, 1, 2]), (5, [1, 2, 3]), (45, [0, 1, 2]), (40, [8])):
        other = sampler.for_epoch(7, epoch)
        assert type(other) is kind and other.grid == grid
        assert stochastic(other) == expected
        assert [other.steps[i] for i in expected] == [everywhere.steps[i] for i in expected]
    assert stochastic(sampler) == [0, 1, 2]  # not changed by asking for others
    assert everywhere.for_epoch(7, 3) is everywhere


def test_all_but_the_last_step_may_be_in_a_window_unless_a_range_says_otherwise() -> None:
    grid = shifted_grid(10)
    seen = {i for epoch in range(60) for i in stochastic(FlowSDE(grid=grid, window="random").for_epoch(0, epoch))}
    assert seen == set(range(9))
    half = FlowSDE(grid=grid, window="random", window_range=(0, 5))
    assert {i for epoch in range(60) for i in stochastic(half.for_epoch(0, epoch))} == set(range(5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("window", "share"), [({"window_size": 9}, 0.9), ({"window_size": 10, "window_range": (0, 10)}, 1.0)]
)
def test_a_window_over_everything_is_no_window(
    kind: type[GaussianSampler], window: dict[str, Any], share: float
) -> None:
    """W = T - 1 (or T) from step 0 is the sampler without a window, bit for bit."""
    grid = shifted_grid(10)
    plain, windowed = kind(grid=grid, sde_frac=share), kind(grid=grid, window="random", **window)
    assert windowed.for_epoch(3, 8).steps == plain.steps

    def walk(sampler: GaussianSampler) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        draw = lambda: torch.randn(2, 1, 2, 2, generator=generator)  # noqa: E731
        return sampler(lambda x, t: torch.tanh(x), draw(), draw).x_0

    assert torch.equal(walk(plain), walk(windowed))


def test_noise_is_drawn_only_in_the_window() -> None:
    sampler = CPS(grid=shifted_grid(10), window="random", window_size=3).for_epoch(0, 1)
    drawn: list[int] = []

    def randn() -> Tensor:
        drawn.append(1)
        return torch.zeros(1, 1, 2, 2)

    out = sampler(lambda x, t: x, torch.ones(1, 1, 2, 2), randn, keep_states=True)
    assert len(drawn) == 3 and out.log_prob is not None
    assert [i for i in range(10) if out.steps is not None and out.steps[i].std > 0] == stochastic(sampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "moving"}, "unknown window 'moving'; known: random, sliding, decay, exp_decay"),
        ({"window": "random", "window_size": 10}, "window_size from 1 to 9"),
        ({"window": "random", "window_size": 0}, "a window of 0 steps does not fit steps 0 to 8"),
        ({"window": "random", "window_range": (0, 11)}, r"within \(0, 10\)"),
        ({"window": "random", "window_range": (4, 4)}, r"not \(4, 4\)"),
        ({"window": "random", "window_range": (0, 1)}, "a wider window_range"),
        ({"window": "sliding", "window_interval": 0}, "must be at least 1, not 0 and 1"),
        ({"window": "sliding", "window_stride": 0}, "must be at least 1, not 25 and 0"),
    ],
)
def test_impossible_windows_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowSDE(grid=shifted_grid(10), **options)
