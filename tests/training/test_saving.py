"""What saving promises when the file system refuses: one clear error, and what was there stays there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awm.training.checkpoint import (
    CheckpointError,
    RunState,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from awm.training.leftovers import clear_leftovers, set_damaged_aside
from tests.helpers import FakePolicy, TinyFlow

SETS = {"current": {"name": torch.tensor(1.0)}, "average": {"name": torch.tensor(2.0)}}


def save(folder: Path, epoch: int) -> Path:
    state = RunState(epoch=epoch, step=4 * epoch, policy=SETS, optimizer={}, scaler=None)
    (folder / f".partial_{epoch:06d}" / "left by a kill").mkdir(parents=True, exist_ok=True)
    return save_checkpoint(folder, state, Recorder(), {"seed": 3}, keep_last=2)


class Recorder(FakePolicy):
    """Writes what it was given."""

    def __init__(self) -> None:
        super().__init__(TinyFlow())

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        folder.mkdir()
        (folder / "weights.txt").write_text(str(float(weights["name"])))


def test_a_checkpoint_reads_back_and_only_the_newest_stay(tmp_path: Path) -> None:
    paths = [save(tmp_path, epoch) for epoch in (1, 2, 10)]
    assert list_checkpoints(tmp_path) == paths[1:]
    assert (paths[2] / "lora_average/weights.txt").read_text() == "2.0"
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


TOUCHES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def save_until(folder: Path, epoch: int, touch: int) -> bool:
    """Save in a child process that is killed at its ``touch``-th touch of the file system; whether it was."""
    child = os.fork()
    if not child:
        touches = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal touches
            if event not in TOUCHES or (event == "open" and str(folder) not in str(arguments[0])):
                return
            touches += 1
            if touches == touch:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            save(folder, epoch)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("again", [False, True], ids=["next epoch", "same epoch again"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_newest_checkpoint_that_loads(tmp_path: Path, again: bool) -> None:
    touch, killed, found = 0, True, set()
    while killed:
        touch += 1
        folder = tmp_path / str(touch)
        for epoch in (1, 2):
            save(folder, epoch)
        killed = save_until(folder, 2 if again else 3, touch)
        clear_leftovers(folder)
        newest = find_checkpoint(folder, pytest.fail)
        assert newest is not None
        found.add(load_checkpoint(newest)[0].epoch)
        assert all(not path.name.startswith(".") for path in folder.iterdir())
    assert touch > 20  # it was killed at this many places
    assert found == ({2} if again else {2, 3})


def test_a_save_that_is_killed_is_done_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert save_until(tmp_path, 2, 5)
    clear_leftovers(tmp_path)
    assert save(tmp_path, 2) == list_checkpoints(tmp_path)[-1]


def test_damaged_checkpoints_do_not_push_out_whole_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, damaged = save(tmp_path, 1), save(tmp_path, 5)
    (damaged / "state.pt").write_bytes(b"torn")
    assert find_checkpoint(tmp_path, print) == whole
    set_damaged_aside(tmp_path, whole, print)
    said = capsys.readouterr().out
    assert "epoch_000005 is damaged: state.pt" in said and "damaged_epoch_000005" in said
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["epoch_000002", "epoch_000003"]


def test_checkpoints_all_of_which_are_damaged_are_an_error_not_a_new_run(tmp_path: Path) -> None:
    for epoch in (1, 2):
        (save(tmp_path, epoch) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole, of 2;.*another --config.run_name"):
        find_checkpoint(tmp_path, lambda _: None)
    assert find_checkpoint(tmp_path / "none", pytest.fail) is None
