"""Where a run continues from: which checkpoint, and whether it belongs to the same experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awm.configuration import config_to_dict, default_config, flatten
from awm.training.checkpoint import (
    CheckpointError,
    RunState,
    find_checkpoint,
    list_checkpoints,
    read_checkpoint,
    verify,
)
from awm.training.distributed import Distributed
from awm.training.geometry import Geometry
from awm.training.leftovers import clear_leftovers, set_damaged_aside

# May differ between a checkpoint and the run that continues it: none of them changes what is computed, or
# _check_same_sizes notices.
OPERATIONAL_KEYS = (
    *("run_name", "logdir", "num_epochs", "save_freq", "eval_freq", "num_checkpoint_limit", "resume_from", "trackers"),
    *("sample.train_batch_size", "sample.test_batch_size", "sample.num_batches_per_epoch", "train.batch_size"),
    *("train.gradient_accumulation_steps", "train.num_batches_per_epoch", "train.gradient_checkpointing"),
    *("train.compile", "allow_tf32", "pretrained.text_encoder_device"),
    *("sample.merge_lora", "sample.fp8", "sample.max_reward_gap"),
)
OPERATIONAL_SECTIONS = ("evaluation.", "guardrails.", "reward_server.")


def resume_state(
    run: Path, resume_from: str, config: Mapping[str, Any], sizes: Geometry, distributed: Distributed
) -> RunState | None:
    """The state to continue from, or None for a new run, which must not overwrite another.

    Args:
        run: the run folder.
        resume_from: "" for a new run, "auto" for the newest whole checkpoint of ``run`` if there is one, or a path.
        config: the resolved configuration of this run.
        sizes: of its epochs.
        distributed: the ranks; all get the same answer. A collective.

    Raises:
        ValueError: ``run`` already holds a run that this one would overwrite.
        CheckpointError: the checkpoint is missing, damaged or of another experiment.
    """
    given = Path(resume_from) if resume_from not in ("", "auto") else None
    if resume_from != "auto":
        _refuse_to_overwrite(run, given, distributed)
        if given is None:
            return None
    path = _verified(run, given, distributed)
    if path is None:
        return None
    state, saved = read_checkpoint(path)
    _check_same_experiment(saved, config, path)
    _check_same_sizes(state.sizes, sizes, path)
    if distributed.is_main:
        print(f"Continuing from {path}: {state.epoch} epochs, {state.step} optimizer steps.")
    return state


def _verified(run: Path, given: Path | None, distributed: Distributed) -> Path | None:
    """``given``, or else the newest whole one; the main rank reads all its files, the others take its word."""
    path, failure = given, ""
    if distributed.is_main:
        try:
            if given is not None:
                verify(given)
            else:
                path = _newest(run / "checkpoints")
        except CheckpointError as error:
            failure = str(error)
    found: tuple[Path | None, str] = distributed.broadcast_object((path, failure))
    if found[1]:
        raise CheckpointError(found[1])
    return found[0]


def _newest(folder: Path) -> Path | None:
    """Tidies up on the way."""
    clear_leftovers(folder)
    path = find_checkpoint(folder, print)
    if path is not None:
        set_damaged_aside(folder, path, print)
    return path


def _refuse_to_overwrite(run: Path, path: Path | None, distributed: Distributed) -> None:
    """A new run needs an unused folder; a checkpoint by its path one, too, or to be the newest of this folder.

    Going on from an older one would leave the newer ones in place, for "auto" to find.
    """
    if path is not None and not path.is_dir():
        raise CheckpointError(
            f"resume_from={path} is not a checkpoint folder; give <run>/checkpoints/epoch_NNNNNN, "
            f'"auto", or "" for a new run.'
        )
    used = (run / "metrics.jsonl").exists() or (run / "checkpoints").exists()
    newest = [p.resolve() for p in list_checkpoints(run / "checkpoints")[-1:]]
    if not distributed.any(used and (path is None or [path.resolve()] != newest)):
        return
    if path is None:
        raise ValueError(
            f"{run} already holds a run. Continue it with --config.resume_from=auto, or start a new one with "
            f"another --config.run_name."
        )
    raise ValueError(
        f"{run} already holds a run, and {path} is not its newest checkpoint. Continue that run with "
        f"--config.resume_from=auto, or branch off from the checkpoint with another --config.run_name."
    )


def _check_same_sizes(before: Mapping[str, int], sizes: Geometry, path: Path) -> None:
    """Batch sizes may change, unless prompts or updates per epoch follow from them (or from the number of ranks)."""
    now = sizes.experiment
    changed = [f"{name}: {before[name]} there, {now[name]} now" for name in before if before[name] != now.get(name)]
    if changed:
        raise CheckpointError(
            f"{path} is of a run with other sizes ({'; '.join(changed)}), which follow from batches, accumulation "
            f"steps or ranks here. Set sample.num_prompts_per_epoch and train.updates_per_inner_epoch to what they "
            f"were, and unset the keys they follow from."
        )


def _check_same_experiment(saved: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    # Keys that are younger than the checkpoint were what their defaults are.
    before, now = flatten(config_to_dict(default_config())) | flatten(saved), flatten(given)
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in OPERATIONAL_KEYS and not key.startswith(OPERATIONAL_SECTIONS)
    ]
    if changed:
        key = "train.lora_path" if before["use_lora"] else "pretrained.transformer"
        raise CheckpointError(
            f"{path} belongs to another configuration ({'; '.join(changed)}). Set these back to continue it, or start "
            f"a new run from its weights with another run_name, resume_from='' and {key}={path / 'lora'}."
        )
