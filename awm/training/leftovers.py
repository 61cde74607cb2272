"""What a killed process leaves among the checkpoints: put right when the run is continued."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from awm.training.checkpoint import GONE, OLD, PARTIAL, CheckpointError, list_checkpoints, verify

DAMAGED = "damaged_"


def clear_leftovers(folder: Path) -> None:
    """Undo or complete a save that was killed, and remove what it wrote aside; for the main rank.

    A checkpoint of the same epoch is replaced by two renames. Between them neither is in place: the new one, if it is
    whole, takes the place then, else the old one comes back.
    """
    for old in folder.glob(f"{OLD}epoch_*"):
        final = folder / old.name.removeprefix(OLD)
        if not final.exists():
            new = folder / final.name.replace("epoch_", PARTIAL)
            (new if _is_whole(new) else old).rename(final)
    for prefix in (PARTIAL, OLD, GONE):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path, ignore_errors=True)


def set_damaged_aside(folder: Path, newest_whole: Path, report: Callable[[str], object]) -> None:
    """Rename checkpoints newer than the one that is used, all of them damaged, so that they no longer count."""
    for path in list_checkpoints(folder):
        if path.name > newest_whole.name:
            aside = path.with_name(DAMAGED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            report(f"It is kept as {aside}.")


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True
