"""What ``awm-lab`` and ``awm-bench`` have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from awm.subcommands import Subcommand, Subcommands


def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> Callable[[list[str]], int]:
    name = f"subcommand_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(f"def main(words, program):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    table = {"one": Subcommand(f"{name}:main", "what is one?"), "three": Subcommand("no_such_module_x:main", "why?")}
    return Subcommands("awm-x", "question", table, about="About.", more="; all have --y", install="pip install x").main


def test_help_lists_all_in_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, tmp_path, "raise ValueError")([]) == 0
    assert capsys.readouterr().out == (
        "usage: awm-x QUESTION [options]\n\nAbout.\n\nquestions:\n  one    what is one?\n  three  why?\n\n"
        "awm-x QUESTION --help lists the options of one; all have --y.\n"
    )


def test_the_subcommand_gets_its_words_and_decides_the_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    main = command(monkeypatch, tmp_path, "return 7 if (words, program) == (['-n', '3'], 'awm-x one') else 0")
    assert main(["one", "-n", "3"]) == 7


@pytest.mark.parametrize("error", ["ValueError", "OSError", "FloatingPointError"])
def test_mistakes_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    assert command(monkeypatch, tmp_path, f"raise {error}('so it is')")(["one"]) == 1
    assert capsys.readouterr().err == "error: so it is\n"


def test_ctrl_c_has_its_own_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command(monkeypatch, tmp_path, "raise KeyboardInterrupt")(["one"]) == 130


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        command(monkeypatch, tmp_path, "raise TypeError")(["one"])


def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, tmp_path, "pass")(["three"]) == 1
    assert capsys.readouterr().err == (
        "error: three needs the package 'no_such_module_x', which is not installed; pip install x\n"
    )
