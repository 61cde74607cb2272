"""What the command ``awm-lab`` promises before an experiment starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from awm.lab import cli


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


def test_help_imports_no_torch() -> None:
    code = "import sys, awm.lab.cli; awm.lab.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
