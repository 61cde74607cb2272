"""A folder remembers what it compares, and refuses anything that could not be compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awm.bench.settings import Settings, keep_settings, open_settings


def begin(folder: Path, precision: str = "bf16", **given: Any) -> Settings:
    settings = open_settings(folder, given, lambda: precision)
    keep_settings(folder, settings)
    return settings


def test_a_new_folder_has_the_defaults_and_what_was_given(tmp_path: Path):
    assert begin(tmp_path / "x", images=512) == Settings(images=512, precision="bf16")


def test_a_folder_is_continued_as_it_was_begun_also_on_a_machine_with_another_precision(tmp_path: Path):
    begun = begin(tmp_path, images=512, seeds=(7, 8), overrides=("--config.train.beta=0.1",))
    assert begin(tmp_path, precision="no") == begun


@pytest.mark.parametrize(
    "name, value", [("images", 1024), ("evaluations", 2), ("prompts", 9), ("tuning_seed", 50), ("tuning_images", 64)]
)
def test_other_settings_than_the_folders_are_refused(tmp_path: Path, name: str, value: int):
    begun = begin(tmp_path)
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} {getattr(begun, name)}, not {value}"):
        begin(tmp_path, **{name: value})
    assert begin(tmp_path) == begun


def test_words_for_every_run_may_not_change_either(tmp_path: Path):
    begin(tmp_path)
    with pytest.raises(ValueError, match="none, not --config"):
        begin(tmp_path, overrides=("--config.train.beta=0.1",))


def test_seeds_and_the_seconds_of_the_comparison_may_change(tmp_path: Path):
    begin(tmp_path)
    changed = begin(tmp_path, seeds=(0, 1, 2, 9), seconds=60.0)
    assert changed.seeds == (0, 1, 2, 9) and changed.seconds == 60.0 and begin(tmp_path) == changed


def test_settings_that_are_not_kept_do_not_bind(tmp_path: Path):
    open_settings(tmp_path, {"images": 300}, lambda: "no")
    assert begin(tmp_path, images=512).images == 512


@pytest.mark.parametrize(
    "given, message",
    [
        ({"seeds": (0, 1, 1)}, "seed 1 is there twice"),
        ({"seeds": (0, 3)}, "seed 3 is there twice"),
        ({"seeds": ()}, "--seeds is empty"),
        ({"tuning_seed": 2}, "must not be chosen on a run that is reported"),
        ({"images": 0}, "--images 0"),
        ({"tuning_images": 0}, "--tuning-images 0"),
        ({"seconds": 0.0}, "--seconds 0"),
    ],
)
def test_mistakes_are_sentences_and_leave_no_folder(tmp_path: Path, given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        begin(tmp_path / "x", **given)
    assert not (tmp_path / "x").exists()


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        begin(tmp_path)
