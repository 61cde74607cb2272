"""``awm-lab control`` from the command line, on an environment that is learned in no time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from awm.lab import cli
from awm.lab.control import command, loop
from awm.lab.control.results import Evaluation

POINT = "AwmLabPoint-v0"
SMALL = [
    *("--env", POINT, "--steps", "60", "--set", "warmup_steps=20", "evaluation_interval=30", "evaluation_episodes=2"),
    *("num_environments=2", "batch_size=8", "num_candidates=4", "width=8", "depth=1", "sampling_steps=2"),
]


class Point(gymnasium.Env[Any, Any]):
    """A point on a line that is paid for being at 0."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-0.5, 0.5, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = self.x + action
        return self.x, -float(abs(self.x[0])), False, False, {}


@pytest.fixture(autouse=True)
def point() -> Iterator[None]:
    gymnasium.register(POINT, entry_point=lambda **_: Point(), max_episode_steps=10)
    yield
    del gymnasium.registry[POINT]


def run(*arguments: str) -> int:
    return cli.main(["control", *arguments])


def test_one_command_writes_curves_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--algorithm", "simpo", "rfm", "--weighting", "linear", "exp", "--seeds", "2"]
    assert run(*arguments, "--out", str(tmp_path)) == 0
    record = json.loads((tmp_path / "control_awmlabpoint.json").read_text())
    assert (tmp_path / "control_awmlabpoint.png").read_bytes().startswith(b"\x89PNG")
    runs = record["results"]["runs"]
    names = [(r["variant"], r["seed"]) for r in runs]
    assert names == [(v, s) for v in ("RFM combined, flow", "SiMPO exp, flow", "SiMPO linear, flow") for s in (0, 1)]
    for r in runs:
        assert r["evaluations"][0]["step"] == 0 and r["evaluations"][-1]["step"] >= 60
        assert all(len(e["returns"]) == 2 for e in r["evaluations"]) and r["settings"]["width"] == 8
        assert r["command"].startswith("awm-lab control --env AwmLabPoint-v0")
        assert {"critic_loss", "policy_loss"} <= set(r["evaluations"][-1]["metrics"])
        assert {"commit", "clean"} <= set(r)
    assert [row["seeds"] for row in record["results"]["table"]] == [2, 2, 2]
    printed = capsys.readouterr().out
    assert "SiMPO linear, flow, seed 1: 60/60 steps, return" in printed and "steps/s" in printed


def test_a_seed_gives_the_same_curve_alone_or_beside_others(tmp_path: Path) -> None:
    assert run(*SMALL, "--seeds", "2", "--out", str(tmp_path / "a")) == 0
    assert run(*SMALL, "--first-seed", "1", "--out", str(tmp_path / "b")) == 0

    def curve(folder: str, index: int) -> list[list[float]]:
        record = json.loads((tmp_path / folder / "control_awmlabpoint.json").read_text())
        return [e["returns"] for e in record["results"]["runs"][index]["evaluations"]]

    assert curve("a", 1) == curve("b", 0)
    assert curve("a", 0) != curve("b", 0)


def test_add_keeps_earlier_runs_and_replaces_repeated_ones(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--name", "mine"]
    assert run(*SMALL, *out) == 0
    assert run(*SMALL, *out, "--add", "--path", "flow", "diffusion") == 0
    runs = json.loads((tmp_path / "mine.json").read_text())["results"]["runs"]
    assert [r["variant"] for r in runs] == ["SiMPO linear, diffusion", "SiMPO linear, flow"]
    arguments = [a if a != POINT else "Pendulum-v1" for a in SMALL]
    assert run(*arguments, *out, "--add") == 1


def test_ctrl_c_writes_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(settings: Any, *, seed: int, device: str) -> Iterator[Evaluation]:
        yield Evaluation(0, (-5.0, -7.0), 0.1)
        yield Evaluation(30, (-4.0, -4.0), 0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", train)
    assert run(*SMALL, "--seeds", "3", "--out", str(tmp_path)) == 130
    runs = json.loads((tmp_path / "control_awmlabpoint.json").read_text())["results"]["runs"]
    assert [e["mean"] for e in runs[0]["evaluations"]] == [-6.0, -4.0] and len(runs) == 1
    assert "stopped" in capsys.readouterr().err


def test_a_run_whose_loss_becomes_infinite_is_kept_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(settings: Any, *, seed: int, device: str) -> Iterator[Evaluation]:
        yield Evaluation(0, (-5.0,), 0.1)
        if seed == 0:
            raise FloatingPointError("the loss became nan")
        yield Evaluation(60, (-1.0,), 0.2)

    monkeypatch.setattr(loop, "train", train)
    assert run(*SMALL, "--seeds", "2", "--out", str(tmp_path)) == 1
    results = json.loads((tmp_path / "control_awmlabpoint.json").read_text())["results"]
    assert [(r["ended"], len(r["evaluations"])) for r in results["runs"]] == [
        ("the loss became nan", 1),
        ("finished", 2),
    ]
    assert results["table"][0]["stopped_early"] == 1
    assert "seed 0 stopped: the loss became nan" in capsys.readouterr().err


def test_ctrl_c_before_anything_was_measured_leaves_earlier_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(settings: Any, *, seed: int, device: str) -> Iterator[Evaluation]:
        raise KeyboardInterrupt
        yield Evaluation(0, (), 0.0)

    earlier = tmp_path / "control_awmlabpoint.json"
    earlier.write_text("kept")
    monkeypatch.setattr(loop, "train", train)
    assert run(*SMALL, "--out", str(tmp_path)) == 130
    assert earlier.read_text() == "kept"


def test_without_gymnasium_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("loop", "collector", "environments", "evaluation", "replay", "agent"):
        monkeypatch.delitem(sys.modules, f"awm.lab.control.{name}", raising=False)
        monkeypatch.delattr(f"awm.lab.control.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert run(*SMALL, "--out", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "needs the package 'gymnasium'" in error and "pip install" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env", "NoSuchThing-v0"], "cannot make environment 'NoSuchThing-v0'"),
        (["--steps", "10"], "ask for more than that with --steps"),
        (["--set", "witdh=3"], "Did you mean 'width'"),
        (["--set", "width=wide"], "'wide' is no int"),
        (["--set", "algorithm=ppo"], "no number of that name"),
        (["--first-seed", "-1"], "--first-seed must be at least 0"),
        (["--estimator", "noise"], "--estimator is an option of rfm: add it, --algorithm rfm"),
        (["--algorithm", "frozen", "rfm", "--weighting", "exp"], "--weighting is an option of simpo"),
        (["--device", "abacus"], "cannot compute on --device abacus"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--out", str(tmp_path)) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--weighting", "cubic"], ["--path", "straight"], ["--algorithm", "ppo"]])
def test_an_unknown_choice_lists_the_known(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "invalid choice" in capsys.readouterr().err


def test_variants_are_the_product_of_paths_and_choices() -> None:
    options = command.make_parser("x").parse_args(
        ["--algorithm", "simpo", "rfm", "frozen", "--weighting", "exp", "linear_neg", "--path", "flow", "diffusion"]
    )
    names = [s.variant for s in command.variants(options)]
    assert names == [
        *("SiMPO exp, flow", "SiMPO linear_neg, flow", "RFM combined, flow", "not trained, flow"),
        *("SiMPO exp, diffusion", "SiMPO linear_neg, diffusion", "RFM combined, diffusion"),
        "not trained, diffusion",
    ]
