"""How cost grows: ratios to linear, and the model of many ranks, against numbers made by hand."""

from __future__ import annotations

import pytest

from awm.bench.throughput.ranks import RECIPE, many_ranks, model_lines
from awm.bench.throughput.scaling import Epoch, Network, efficiency, epoch_seconds
from awm.bench.throughput.sweep import Point, against_linear, table, words_for


def test_twice_the_images_in_twice_the_time_is_linear():
    points = [Point(4, 32, 1e12, 2.0), Point(8, 64, 2e12, 4.0), Point(16, 128, 4e12, 10.0)]
    rows = against_linear("images_per_prompt", points)
    assert [row["seconds_over_linear"] for row in rows] == [1.0, 1.0, 1.25]
    assert [row["operations_over_linear"] for row in rows] == [1.0, 1.0, 1.0]
    assert [row["images_per_s"] for row in rows] == [16.0, 16.0, 12.8]


def test_resolution_is_held_against_the_number_of_pixels():
    rows = against_linear("resolution", [Point(256, 8, 1e12, 1.0), Point(512, 8, 5e12, 6.0)])
    assert rows[1]["seconds_over_linear"] == pytest.approx(1.5)
    assert rows[1]["operations_over_linear"] == pytest.approx(1.25)


def test_ranks_share_the_work():
    rows = against_linear("world_size", [Point(1, 64, 1e12, 8.0), Point(2, 64, 1e12, 4.0), Point(4, 64, 1.1e12, 3.0)])
    assert [row["seconds_over_linear"] for row in rows] == [1.0, 1.0, 1.5]  # the inverse of the efficiency
    assert rows[2]["operations_over_linear"] == pytest.approx(1.1)
    assert len(table("world_size", rows)) == 4


def test_each_sweep_sets_its_key():
    assert words_for("prompts", 3) == ("--config.sample.num_prompts_per_epoch=3",)
    assert words_for("resolution", 64) == ("--config.resolution=64",)


def test_the_model_of_many_ranks_is_its_formula():
    network = Network(bytes_per_s=1e9, latency_s=1e-3)
    epoch = Epoch(
        images=100, seconds_per_image=0.5, updates=2, gradient_bytes=4e8, prompts=10, seconds_per_prompt=0.2,
        gathers=5, gather_bytes_per_image=1e6,
    )  # fmt: skip
    assert epoch_seconds(epoch, 1, network) == pytest.approx(100 * 0.5 + 10 * 0.2)
    compute, sent, messages = 25 * 0.5 + 3 * 0.2, 2 * 3 / 4 * 0.4, 2 * 3 * 1e-3
    expected = compute + 2 * (sent + messages) + 5 * 2 * 1e-3 + 100 * 1e6 / 1e9
    assert epoch_seconds(epoch, 4, network) == pytest.approx(expected)
    assert efficiency(epoch, 4, network) == pytest.approx(52 / (4 * expected))


def test_many_ranks_are_slower_than_linear_and_faster_than_one():
    free = Network(bytes_per_s=1e18, latency_s=0.0)
    assert efficiency(RECIPE, 8, free) == pytest.approx(1.0)
    found = many_ranks(RECIPE, Network())
    efficiencies = [row["efficiency"] for row in found["epochs"]]
    assert efficiencies == sorted(efficiencies, reverse=True) and all(0.5 < value < 1 for value in efficiencies)
    assert found["assumed"]["gradient_bytes"] == RECIPE.gradient_bytes
    assert "not measured" in model_lines()[0]
