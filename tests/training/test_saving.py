"""What saving promises when the file system refuses: one clear error, and what was there stays there."""

from __future__ import annotations

from pathlib import Path

import pytest

from awm.training.checkpoint import CheckpointError, RunState, list_checkpoints, load_checkpoint, save_checkpoint
from tests.helpers import FakePolicy, TinyFlow


def save(folder: Path, epoch: int) -> Path:
    state = RunState(epoch=epoch, step=4 * epoch, policy={}, optimizer={}, scaler=None)
    (folder / f".partial_{epoch:06d}" / "left by a kill").mkdir(parents=True, exist_ok=True)
    return save_checkpoint(folder, state, Recorder(), {"seed": 3}, keep_last=2)


class Recorder(FakePolicy):
    """Writes which set it was asked for."""

    def __init__(self) -> None:
        super().__init__(TinyFlow())

    def save(self, folder: Path, name: str) -> None:
        folder.mkdir()
        (folder / "weights.txt").write_text(name)


def test_a_checkpoint_reads_back_and_only_the_newest_stay(tmp_path: Path) -> None:
    paths = [save(tmp_path, epoch) for epoch in (1, 2, 10)]
    assert list_checkpoints(tmp_path) == paths[1:]
    assert (paths[2] / "lora_average/weights.txt").read_text() == "average"
    state, config = load_checkpoint(paths[2])
    assert (state.epoch, state.step, config) == (10, 40, {"seed": 3})
    assert {p.name for p in tmp_path.iterdir()} == {"epoch_000002", "epoch_000010"}


def test_saving_an_epoch_again_replaces_it(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "stale").write_text("")
    assert save(tmp_path, 1) == path and not (path / "stale").exists()


def test_a_file_that_changed_or_went_is_damage(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "lora/weights.txt").write_text("other")
    with pytest.raises(CheckpointError, match=r"is damaged: lora/weights\.txt"):
        load_checkpoint(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(path)


def test_a_folder_that_cannot_be_made_is_the_same_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    state = RunState(epoch=1, step=1, policy={}, optimizer={}, scaler=None)
    with pytest.raises(CheckpointError, match=r"could not save .*epoch_000001.*There is no earlier checkpoint.*auto"):
        save_checkpoint(tmp_path / "file" / "checkpoints", state, Recorder(), {}, keep_last=1)
