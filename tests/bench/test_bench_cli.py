"""The command ``awm-bench``: help, mistakes, and whole comparisons with a trainer that takes a moment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_up import GRID

from awm.bench import arms, cli
from awm.bench.arms import Arm, Setting

ROOT = Path(__file__).parents[2]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
ONLY = (Setting("only", ()),)
BREAKS = Setting("breaks", ("--config.train.learning_rate=3e-3",))
SMALL = "--config.sample.num_prompts_per_epoch=4"
BUDGET = ("--images", "64", "--evaluations", "2", "--seeds", "0", "--second-seeds", "1", "--jobs", "4", SMALL)


class NoServer:
    """In place of the reward server."""

    url = "http://fake:1"
    alive = 0

    def __init__(self, scorers: Sequence[str], folder: Path) -> None:
        assert list(scorers) == ["geneval", "jpeg_compressibility"]

    def __enter__(self) -> NoServer:
        NoServer.alive += 1
        return self

    def __exit__(self, *error: object) -> None:
        NoServer.alive -= 1

    def ensure(self) -> None:
        assert NoServer.alive == 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms, and a trainer that takes a moment; see fake_trainer.py."""
    import awm.bench.trainers

    monkeypatch.chdir(ROOT)
    table = {"one": Arm("One", "nowhere", grid=GRID), "two": Arm("Two", "nowhere", grid=ONLY)}
    for where in ("awm.bench.arms.ARMS", "awm.bench.algorithms.ARMS"):
        monkeypatch.setattr(where, table)
    monkeypatch.setattr("awm.bench.trainers.Trainers", partial(awm.bench.trainers.Trainers, program=FAKE))
    monkeypatch.setattr("awm.bench.server.RewardServer", NoServer)
    monkeypatch.setattr("awm.bench.schedule.POLL_S", 0.02)


def run(out: Path, *words: str) -> int:
    return cli.main(["algorithms", "--out", str(out), *words])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_benchmark(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in cli.BENCHMARKS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_an_unknown_benchmark_suggests_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["algorithm"]) == 1
    assert "Did you mean 'algorithms'?" in capsys.readouterr().err


def test_help_and_mistakes_import_no_torch():
    for words in (["--help"], ["algorithms", "--arms", "nothing"]):
        code = f"import sys, awm.bench.cli as c\ntry: c.main({words})\nfinally: assert 'torch' not in sys.modules"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["--arms", "nfd"], "unknown arm 'nfd'; known: awm, simpo_exp"),
        (["--quick"], "unknown argument '--quick'; see awm-bench algorithms --help"),
        (["--stage", "page"], "holds no comparison"),
        (["--images", "300"], "no multiple of the 256 images"),
        (["--tuning-seed", "0"], "must not be chosen on a run that is reported"),
        (["--config.train.learning_rte=1"], "learning_rate"),
        (["--evaluations", "3"], "use one of 1, 2, 5, 10"),
        (["--prompts", "241"], "more than the 240"),
        (["--tuning-images", "100"], "--tuning-images 100 is no multiple"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_starts(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    few = ["--arms", "awm"] if "--arms" not in words else []
    assert run(tmp_path / "x", *few, *words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "x").exists()


def test_it_says_where_it_has_to_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "x") == 1
    assert "in the folder of the repository" in capsys.readouterr().err


def started(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line[9:] for line in capsys.readouterr().err.splitlines() if line.startswith("started")]


@pytest.mark.usefixtures("fake")
def test_a_whole_comparison_in_which_a_point_of_a_grid_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # The one with a learning rate of 2e-3; that is a result, and no failure.
    assert run(tmp_path, *BUDGET) == 0
    names = {path.stem for path in (tmp_path / "records").glob("*.json")}
    assert names == {
        "one-low-seed100",
        "one-high-seed100",
        *(f"{x}-seed{k}" for x in ("one-low", "two-only") for k in "01"),
    }
    summary = json.loads((tmp_path / "algorithms.json").read_text())
    assert [row["setting"] for row in summary["rows"]] == ["low", "only"]
    assert summary["unfinished"][0]["name"] == "one-high-seed100" and summary["stability"]["is_stable"] is None
    page = (tmp_path / "algorithms.html").read_text()
    assert "One leads" in page and "non-finite loss on rank 0 in epoch 2" in page
    assert NoServer.alive == 0
    capsys.readouterr()
    assert run(tmp_path) == 0 and started(capsys) == []


@pytest.mark.usefixtures("fake")
def test_what_broke_is_tried_once_a_call_and_its_arm_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arms.ARMS["one"] = Arm("One", "nowhere", grid=(GRID[0], BREAKS))
    assert run(tmp_path, *BUDGET) == 1
    said = capsys.readouterr()
    assert "1 run broke, the first one-breaks-seed100" in said.err and "no more memory" in said.err
    assert not list((tmp_path / "records").glob("one-low-seed[01].json"))
    assert "1 of 2 arms; missing: One" in (tmp_path / "algorithms.html").read_text()
    assert run(tmp_path) == 1 and started(capsys) == ["one-breaks-seed100"]
    assert run(tmp_path, "--stage", "final") == 0 and started(capsys) == []
    assert run(tmp_path, "--arms", "two") == 0 and started(capsys) == []


@pytest.mark.usefixtures("fake")
def test_a_damaged_record_is_told_of_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, "--arms", "two", *BUDGET)
    capsys.readouterr()
    (tmp_path / "records" / "two-only-seed1.json").write_text("{")
    assert run(tmp_path, "--stage", "page") == 0
    assert "two-only-seed1.json is damaged" in capsys.readouterr().err
    assert "1 run missing" in (tmp_path / "algorithms.html").read_text()
    assert run(tmp_path, "--arms", "two") == 0 and started(capsys) == ["two-only-seed1"]


@pytest.mark.usefixtures("fake")
def test_more_seeds_later_add_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, "--arms", "two", *BUDGET)
    capsys.readouterr()
    assert run(tmp_path, "--arms", "two", "--seeds", "0", "5") == 0
    assert "started  two-only-seed5" in capsys.readouterr().err
    assert json.loads((tmp_path / "algorithms.json").read_text())["rows"][0]["scores"].keys() == {"0", "5", "1"}


@pytest.mark.usefixtures("fake")
def test_stages_by_themselves(tmp_path: Path):
    assert run(tmp_path, "--stage", "tune", *BUDGET) == 0
    assert {path.stem for path in (tmp_path / "records").glob("*.json")} == {"one-low-seed100", "one-high-seed100"}
    assert run(tmp_path, "--stage", "final") == 0
    assert len(list((tmp_path / "records").glob("*.json"))) == 6


@pytest.mark.usefixtures("fake")
def test_the_page_alone_is_the_same_page(tmp_path: Path):
    run(tmp_path, "--arms", "two", *BUDGET)
    before = json.loads((tmp_path / "algorithms.json").read_text())
    (tmp_path / "algorithms.json").unlink()
    (tmp_path / "algorithms.html").unlink()
    kept = (tmp_path / "settings.json").read_bytes()
    assert run(tmp_path, "--stage", "page", "--seconds", "5") == 0
    assert (tmp_path / "settings.json").read_bytes() == kept  # a page is another look, and changes nothing
    assert "given with --seconds" in (tmp_path / "algorithms.html").read_text()
    assert run(tmp_path, "--stage", "page") == 0
    assert json.loads((tmp_path / "algorithms.json").read_text()) == before
    assert "Two leads" in (tmp_path / "algorithms.html").read_text()


@pytest.mark.usefixtures("fake")
def test_the_folder_can_be_continued_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path / "here", "--arms", "two", *BUDGET)
    (tmp_path / "here").rename(tmp_path / "there")
    capsys.readouterr()
    assert run(tmp_path / "there", "--arms", "two") == 0
    assert "started" not in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("words", [("--arms", "two"), ("--arms", "one"), ("--stage", "page")])
def test_an_arm_that_has_changed_since_is_not_mixed_with_its_old_runs(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(tmp_path, "--arms", "two", *BUDGET)
    page = (tmp_path / "algorithms.html").read_bytes()
    arms.ARMS["two"] = Arm("Two", "nowhere", overrides=("--config.train.beta=0.5",), grid=ONLY)
    capsys.readouterr()
    assert run(tmp_path, *words) == 1
    error = capsys.readouterr().err
    assert (
        "2 results" in error and f"rm -rf {tmp_path}/records/two-only-seed0.* {tmp_path}/logs/two-only-seed0" in error
    )
    assert (tmp_path / "algorithms.html").read_bytes() == page and not list(tmp_path.glob("records/one*"))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_an_interruption_nothing_runs_and_the_next_call_goes_on(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
):
    # Seed 9 waits until it is told to stop.
    words = ("--arms", "two", "--images", "64", "--evaluations", "2", "--seeds", "0", "9", "--second-seeds", SMALL)

    def press() -> None:
        while not list(tmp_path.glob("logs/*seed9/checkpoint")) or not list(tmp_path.glob("records/*seed0.json")):
            time.sleep(0.02)
        signal.raise_signal(number)

    threading.Thread(target=press, daemon=True).start()
    assert run(tmp_path, *words) == 130
    assert NoServer.alive == 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "The same command goes on where this stopped" in capsys.readouterr().err
    assert "Two (1 run missing) leads" in (tmp_path / "algorithms.html").read_text()
    assert run(tmp_path, *words) == 0
    assert started(capsys) == ["two-only-seed9"]


@pytest.mark.usefixtures("fake")
def test_two_calls_do_not_work_on_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from awm.bench.algorithms import _alone

    with _alone(tmp_path):
        assert run(tmp_path, "--arms", "two", *BUDGET) == 1
    assert "another awm-bench works on" in capsys.readouterr().err
    assert not (tmp_path / "settings.json").exists() and not list(tmp_path.glob("algorithms.*"))
    assert run(tmp_path, "--arms", "two", *BUDGET) == 0


@pytest.mark.slow
def test_the_real_trainer_and_the_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for where in ("awm.bench.arms.ARMS", "awm.bench.algorithms.ARMS"):
        monkeypatch.setattr(where, {"awm": Arm("AWM", "", grid=ONLY)})
    words: list[Any] = ["--arms", "awm", "--images", "16", "--evaluations", "1", "--prompts", "2", "--seeds", "0"]
    words += ["--second-seeds", "--config.sample.num_prompts_per_epoch=2", "--config.train.updates_per_inner_epoch=1"]
    assert run(tmp_path, *words) == 0
    record = json.loads((tmp_path / "records" / "awm-only-seed0.json").read_text())
    assert [point["images"] for point in record["curve"]] == [0, 16] and len(record["last"]) == 4
    assert record["curve"][0]["second"] < 0 and 0 < record["curve"][0]["diversity"] < 1
    assert (tmp_path / "records" / "untrained.jpg").exists() and not (tmp_path / "logs" / "awm-only-seed0").exists()
    assert "AWM leads" in (tmp_path / "algorithms.html").read_text()


@pytest.mark.slow
def test_the_real_trainer_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    wild = ("--config.train.learning_rate=1e30", "--config.train.updates_per_inner_epoch=2")
    for where in ("awm.bench.arms.ARMS", "awm.bench.algorithms.ARMS"):
        monkeypatch.setattr(where, {"awm": Arm("AWM", "", overrides=wild, grid=ONLY)})
    words = ["--arms", "awm", "--images", "32", "--evaluations", "2", "--prompts", "2", "--seeds", "0"]
    assert run(tmp_path, *words, "--second-seeds", "--config.sample.num_prompts_per_epoch=2") == 0
    record = json.loads((tmp_path / "records" / "awm-only-seed0.json").read_text())
    assert record["status"] == "diverged" and "non-finite" in record["message"]
    assert record["curve"][0]["images"] == 0 and len(record["curve"]) < 3
    assert "AWM (1 run diverged) leads" in (tmp_path / "algorithms.html").read_text()
