"""What --memory_gb proposes, on memory that is made up, and where it is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from awm.command_line import split_memory_gb
from awm.models.peak_memory import Line, Peaks
from awm.planning.plan import Plan
from awm.planning.proposal import GIB, Setting, settings
from awm.training.geometry import Geometry
from awm.training.workload import Rows

# Round numbers near those of SD3.5 Medium: 6 rows an image of 2 GiB, or of 0.2 with checkpointing.
PEAKS = {
    False: Peaks(Line(0.0, 2.0 * GIB), Line(0.0, 0.1 * GIB), Line(0.0, 0.5 * GIB), 8),
    True: Peaks(Line(1.0 * GIB, 0.2 * GIB), Line(0.0, 0.1 * GIB), Line(0.0, 0.5 * GIB), 8),
}


def proposed(memory_gib: float, guided: bool = False) -> list[Setting]:
    sizes = Geometry(72, 24, 8, 1, 1, 1, 1)
    plan = cast(Plan, SimpleNamespace(sizes=sizes, training=Rows(plain=12, trained=6)))
    return settings(plan, PEAKS, always=5.0 * GIB, encoders=10.0 * GIB, memory_gib=memory_gib, guided=guided)


def test_what_costs_no_time_comes_first():
    ways = [(way.encoders_on_gpu, way.checkpointing) for way in proposed(24)]
    assert ways == [(True, False), (False, False), (True, True), (False, True)]


def test_sizes_fill_what_is_left_and_divide_the_images():
    # 24 GiB: 20.6 may be in use. One image needs 12 GiB without checkpointing, 1 + 1.2 n with.
    assert [way.micro_batch for way in proposed(24)] == [0, 1, 3, 12]
    assert [way.sampling_batch for way in proposed(24)] == [54, 54, 54, 54]
    assert proposed(24)[3].peak == pytest.approx((5 + 1 + 12 * 1.2) * GIB)
    assert [way.micro_batch for way in proposed(80)] == [4, 4, 36, 54]
    assert [way.works for way in proposed(12)] == [False, False, False, True]
    assert not any(way.works for way in proposed(6))


def test_guidance_doubles_the_rows_of_sampling():
    assert proposed(16)[1].sampling_batch == 54  # 8.4 GiB: 84 rows
    assert proposed(16, guided=True)[1].sampling_batch == 36


@pytest.mark.parametrize("words", [["--memory_gb", "24"], ["--memory-gb=24"], ["--memory_gb=24.0"]])
def test_a_size_is_taken_from_anywhere_on_the_line(words: list[str]):
    assert split_memory_gb(["--config", *words, "x"], only_plan=True) == (24.0, ["--config", "x"])
    assert split_memory_gb(["--config", "x"], only_plan=False) == (None, ["--config", "x"])


@pytest.mark.parametrize(
    ("words", "only_plan", "message"),
    [
        (["--memory_gb", "24"], False, "--memory_gb proposes settings with --dry_run"),
        (["--memory_gb", "0"], True, "--memory_gb=0 is no size of a GPU"),
        (["--memory_gb=big"], True, "--memory_gb=big is no size"),
        (["--memory_gb"], True, "--memory_gb= is no size"),
    ],
)
def test_a_size_must_be_one_and_only_plans(words: list[str], only_plan: bool, message: str):
    with pytest.raises(ValueError, match=message):
        split_memory_gb(words, only_plan=only_plan)


def test_a_dry_run_proposes_and_says_that_open_sizes_are_found_later(make_config: Any, capsys: Any):
    from awm.dry_run import dry_run

    open_sizes = {"train__batch_size": 0, "sample__train_batch_size": 0, "sample__test_batch_size": 0}
    dry_run(make_config(**open_sizes), 1, 1.2)
    out = capsys.readouterr().out
    assert "found when the run starts, here 1: train.batch_size, sample.train_batch_size, sample.test_batch_size" in out
    assert "on a GPU of 1.2 GiB, predicted" in out
    assert "--config.train.batch_size=12 --config.sample.train_batch_size=3" in out
    dry_run(make_config(), 1, 1.1)
    assert "nothing fits" in capsys.readouterr().out
