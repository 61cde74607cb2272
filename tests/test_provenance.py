"""What every written result says of where it comes from."""

from __future__ import annotations

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
