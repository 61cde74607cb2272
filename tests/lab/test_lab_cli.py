"""What the command ``awm-lab`` promises before an experiment starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from awm.lab import cli
from awm.lab.options import experiment_parser


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_experiment_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("bandits", "boltzmann", "matching", "control", "sequences"):
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_an_unknown_experiment_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bandit"]) == 1
    assert "Did you mean 'bandits'?" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.REGISTRY.table, "control", "no_such_package.x:main")
    assert cli.main(["control"]) == 1
    error = capsys.readouterr().err
    assert "control needs the package 'no_such_package'" in error and "pip install" in error and error.count("\n") == 1


def test_an_error_in_our_own_imports_is_not_called_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.REGISTRY.table, "control", "awm.no_such_module:main")
    with pytest.raises(ModuleNotFoundError):
        cli.main(["control"])


def test_a_loss_that_is_not_finite_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*_: object) -> int:
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr("awm.lab.bandits.main", diverge)
    assert cli.main(["bandits"]) == 1
    assert capsys.readouterr().err == "error: the loss is not finite\n"


def test_results_that_are_published_are_no_default() -> None:
    parser = experiment_parser("awm-lab x", None, seeds=3)
    assert parser.parse_args([]).out == Path("logs/lab")
    assert "were written with --out benchmarks/results/lab" in " ".join(parser.format_help().split())


def test_help_imports_no_torch() -> None:
    code = "import sys, awm.lab.cli; awm.lab.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
