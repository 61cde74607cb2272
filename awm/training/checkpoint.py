"""Checkpoints that are whole or not there: written aside, verified by hash, renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from awm.interfaces import Policy

MANIFEST = "manifest.json"
STATE = "state.pt"
# Names of what is not, or no longer, a checkpoint: being written, replaced by a new one, no longer kept.
PARTIAL, OLD, GONE = ".partial_", ".old_", ".gone_"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything that changes during a run.

    Attributes:
        epoch: completed epochs. All random numbers are keyed by it, so no generator state is needed.
        step: optimizer steps taken.
        policy: weight sets.
        optimizer: optimizer state.
        scaler: fp16 gradient scaler state.
        sizes: of an epoch and its updates, which stay as they are for the life of a run.
    """

    epoch: int
    step: int
    policy: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any] | None
    sizes: Mapping[str, int] = field(default_factory=dict)


def save_checkpoint(folder: Path, state: RunState, policy: Policy, config: Mapping[str, Any], keep_last: int) -> Path:
    """Write ``folder/epoch_NNNNNN`` and drop all but the newest ``keep_last``.

    Beside the state it holds ``lora/`` (current) and ``lora_average/``, which plain diffusers loads.

    Raises:
        CheckpointError: the disk is full or not writable. Earlier checkpoints are untouched.
    """
    final = folder / f"epoch_{state.epoch:06d}"
    partial = folder / f"{PARTIAL}{state.epoch:06d}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        policy.export(partial / "lora", state.policy["current"])
        policy.export(partial / "lora_average", state.policy["average"])
        values = {name: getattr(state, name) for name in RunState.__slots__}
        torch.save(values, partial / STATE)
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        _write_manifest(partial)
        _replace(partial, final)
    except Exception as error:  # torch, safetensors and the file system each have their own
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_save_message(folder, final, error)) from error
    for old in list_checkpoints(folder)[:-keep_last]:
        _remove(old)
    return final


def load_checkpoint(path: Path) -> tuple[RunState, dict[str, Any]]:
    """The state in ``path`` and the configuration it was written with.

    Raises:
        CheckpointError: missing, incomplete or damaged.
    """
    verify(path)
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> tuple[RunState, dict[str, Any]]:
    """As ``load_checkpoint``, of one that has been verified, by another rank perhaps.

    Raises:
        CheckpointError: it cannot be read here.
    """
    try:
        # Mapped: the ranks of a node share one copy in memory, of which each reads what it needs.
        values = torch.load(path / STATE, map_location="cpu", weights_only=True, mmap=True)
        config = json.loads((path / "config.json").read_text())
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {error}. The run folder must be on a file system that all nodes share."
        ) from error
    return RunState(**values), config


def verify(path: Path) -> None:
    """Check that every file of a checkpoint is there with the content it was written with."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: its {MANIFEST} is missing or broken.") from error
    for name, digest in manifest.items():
        file = path / name
        if not file.is_file() or _digest(file) != digest:
            raise CheckpointError(f"the checkpoint {path} is damaged: {name} is not the file that was saved.")


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints below ``folder``, oldest first."""
    return sorted(path for path in folder.glob("epoch_*") if path.is_dir())


def find_checkpoint(folder: Path, report: Callable[[str], object]) -> Path | None:
    """The newest checkpoint that is whole, or None if there is none at all; ``report`` is told of each damaged one.

    Raises:
        CheckpointError: all are damaged.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            verify(path)
        except CheckpointError as error:
            if path == paths[0]:
                raise CheckpointError(
                    f"no checkpoint in {folder} is whole, of {len(paths)}; the oldest: {error} Restore one from a "
                    f"copy, or start anew with another --config.run_name."
                ) from error
            report(f"{error} Using the one before it.")
        else:
            return path
    return None


def _write_manifest(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    manifest = {str(file.relative_to(folder)): _digest(file) for file in files}
    for file in files:
        _sync(file)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    _sync(folder / MANIFEST)


def _replace(partial: Path, final: Path) -> None:
    """Rename into place; a checkpoint of the same epoch (an epoch run again) goes only after the new one is whole."""
    old = final.with_name(OLD + final.name)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Out of sight first: what a kill leaves half removed must not look like a checkpoint."""
    gone = checkpoint.with_name(GONE + checkpoint.name)
    try:
        checkpoint.rename(gone)
    except OSError:
        gone = checkpoint
    shutil.rmtree(gone, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _save_message(folder: Path, final: Path, error: BaseException) -> str:
    earlier = list_checkpoints(folder)
    kept = f"The newest checkpoint is still {earlier[-1]}." if earlier else "There is no earlier checkpoint."
    full = any(
        f"os error {code}" in str(error) or f"Errno {code}" in str(error) for code in (errno.ENOSPC, errno.EDQUOT)
    )
    # The folder itself may be what could not be made.
    free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.is_dir())).free / 2**20
    advice = f"Free some space ({free:.0f} MB are left)" if full or free < 100 else "Fix the cause"
    return (
        f"could not save {final}: {error}. {kept} {advice} and run the same command with "
        f"--config.resume_from=auto to go on from it."
    )
