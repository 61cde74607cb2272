"""Run folder -> record: the curves, guards and scores of a run that is over, in a few kilobytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from awm.bench.diversity import diversity, read_image, side_by_side
from awm.bench.jobs import IMAGES_PER_PROMPT, SCORE, SECOND
from awm.bench.work import Work
from awm.held_out.records import Record as HeldOut
from awm.held_out.records import read_records
from awm.training.metrics import read_metrics

PICTURES = 8  # prompts whose first image is kept


class UnfinishedError(Exception):
    """The run folder is not that of a run that has done all its epochs."""


def harvest(run: Path, work: Work, epochs: int, *, evaluated: bool) -> dict[str, Any]:
    """What is kept of the run in ``run``.

    Args:
        run: its folder.
        work: images and operations of its epochs.
        epochs: that it should have.
        evaluated: whether it evaluated held-out prompts.

    Returns:
        ``training_reward`` and ``seconds`` of each epoch (evaluations and saving not counted),
        ``velocity_norm_ratio`` of each, ``curve`` (a row for each evaluation: epoch, images, seconds, flops, score,
        second, diversity) and the ``first`` and ``last`` held-out score of every image; JSON as it is.

    Raises:
        UnfinishedError: epochs or evaluations are missing.
    """
    lines = {line["epoch"]: line for line in _metrics(run)}
    missing = [epoch for epoch in range(1, epochs + 1) if "reward/mean" not in lines.get(epoch, {})]
    if missing:
        raise UnfinishedError(f"{len(missing)} of {epochs} epochs are missing")
    training = [lines[epoch] for epoch in range(1, epochs + 1)]
    seconds = [line["time/epoch_s"] for line in training]
    record = {
        "epochs": epochs,
        "images_per_epoch": work.images,
        "flops_per_epoch": work.operations,
        "optimizer_steps": training[-1]["step"],
        "training_reward": [line["reward/mean"] for line in training],
        "seconds": seconds,
        "velocity_norm_ratio": [line.get("velocity_norm_ratio") for line in training],
        "peak_memory_mb": training[-1]["memory/peak_mb"],
    }
    if not evaluated:
        return record
    spent = [0.0, *accumulate(seconds)]
    folders = {int(folder.name.removeprefix("epoch_")): folder for folder in sorted((run / "eval").glob("epoch_*"))}
    found = {epoch: folder for epoch, folder in folders.items() if f"eval/{SCORE}" in lines.get(epoch, {})}
    if 0 not in found or epochs not in found:
        raise UnfinishedError(
            f"the evaluation {'before the first' if 0 not in found else 'after the last'} epoch is missing"
        )
    record["curve"] = [
        {
            "epoch": epoch,
            "images": epoch * work.images,
            "seconds": spent[epoch],
            "flops": epoch * work.operations,
            "score": lines[epoch][f"eval/{SCORE}"],
            "second": lines[epoch].get(f"eval/{SECOND}"),
            "diversity": _diversity(folder),
        }
        for epoch, folder in sorted(found.items())
    ]
    return record | {"first": _scores(found[0]), "last": _scores(found[epochs])}


def keep_pictures(run: Path, epoch: int, path: Path) -> None:
    """Write the first image of some prompts after ``epoch`` as one file, and what they show beside it."""
    folder = run / "eval" / f"epoch_{epoch:06d}"
    chosen = shown(read_records(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    side_by_side([read_image(folder / record.image) for record in chosen if record.image]).save(path, optimize=True)


def shown(records: Sequence[HeldOut]) -> list[HeldOut]:
    """The first image of evenly spaced prompts, the same ones for every run."""
    firsts = [record for record in records if record.index % IMAGES_PER_PROMPT == 0 and record.image]
    count = min(PICTURES, len(firsts))
    return [firsts[(2 * number + 1) * len(firsts) // (2 * count)] for number in range(count)]


def captions(run: Path) -> list[str]:
    """What the kept images were asked to show."""
    return [record.prompt for record in shown(read_records(run / "eval" / "epoch_000000"))]


def _metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def _diversity(folder: Path) -> float:
    records = [record for record in read_records(folder) if record.image]
    images = [read_image(folder / str(record.image)) for record in records]
    return diversity(images, [record.index // IMAGES_PER_PROMPT for record in records])


def _scores(folder: Path) -> list[float | int | None]:
    """Of every image in order; whole numbers without their point."""
    return [_short(record.scores) for record in read_records(folder)]


def _short(scores: Mapping[str, float | None]) -> float | int | None:
    score = scores.get(SCORE)
    return int(score) if score is not None and score == int(score) else score
