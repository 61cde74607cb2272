"""What every written result says of where it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from awm import provenance


def test_a_result_names_command_machine_and_installed_versions() -> None:
    found = provenance.provenance("awm-lab x", ["torch", "no-such-package"])
    assert found["command"] == "awm-lab x"
    assert found["versions"]["torch"] == torch.__version__ and "no-such-package" not in found["versions"]
    assert found["machine"].endswith(" cores")


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    found = provenance.provenance("awm-lab x", [])
    assert found["commit"] is None and found["clean"] is None


def test_results_of_other_runs_do_not_make_a_tree_unclean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for name in ("code.py", "benchmarks/results/other.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "benchmarks/results/other.json").write_text("after")
    assert provenance.provenance("awm-lab x", [])["clean"] is True
    (tmp_path / "code.py").write_text("after")
    assert provenance.provenance("awm-lab x", [])["clean"] is False
