"""Run folder -> record: the curves, guards and scores of a run that is over, in a few kilobytes."""

from __future__ import annotations

from collections.abc import Mapping
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
QUALITY = 85  # of the JPEG file


class UnfinishedError(Exception):
    """The run folder is not that of a run that has done all its epochs."""


def harvest(run: Path, work: Work, epochs: int, *, evaluated: bool, diverged: bool = False) -> dict[str, Any]:
    """What is kept of the run in ``run``.

    Args:
        run: its folder.
        work: images and operations of its epochs.
        epochs: that it should have.
        evaluated: whether it evaluated held-out prompts.
        diverged: it ended before, and what it had reached by then is its result.

    Returns:
        ``training_reward`` and ``velocity_norm_ratio`` of each epoch, ``curve`` (a row for each evaluation: epoch,
        images, seconds of training alone, flops, score, second, diversity), the ``first`` and ``last`` held-out score
        of every image and ``captions`` of the pictures; JSON as it is. Seconds are the processor's, where it computes.

    Raises:
        UnfinishedError: epochs or evaluations are missing.
    """
    lines = {line["epoch"]: line for line in _metrics(run)}
    done = next((epoch for epoch in range(epochs) if "reward/mean" not in lines.get(epoch + 1, {})), epochs)
    if done < epochs and not diverged:
        raise UnfinishedError(f"{epochs - done} of {epochs} epochs are missing")
    training = [lines[epoch] for epoch in range(1, done + 1)]
    record: dict[str, Any] = {
        "epochs": epochs,
        "images_per_epoch": work.images,
        "flops_per_epoch": work.operations,
        "training_reward": [line["reward/mean"] for line in training],
        "velocity_norm_ratio": [line.get("velocity_norm_ratio") for line in training],
    }
    if not evaluated:
        return record
    found = _evaluations(run, lines)
    if 0 not in found or not (diverged or epochs in found):
        raise UnfinishedError(
            f"the evaluation {'before the first' if 0 not in found else 'after the last'} epoch is missing"
        )
    spent = [0.0, *accumulate(line.get("time/processor_s", line["time/epoch_s"]) for line in training)]
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
        for epoch, folder in found.items()
        if epoch <= done
    ]
    last = found[record["curve"][-1]["epoch"]]
    captions = [shown.prompt for shown in shown_images(last)]
    return record | {"first": _scores(found[0]), "last": _scores(last), "captions": captions}


def keep_pictures(run: Path, epoch: int, path: Path) -> None:
    """Write the first image of some prompts after ``epoch`` as one small file."""
    folder = run / "eval" / f"epoch_{epoch:06d}"
    images = [read_image(folder / str(record.image)) for record in shown_images(folder)]
    path.parent.mkdir(parents=True, exist_ok=True)
    side_by_side(images).save(path, quality=QUALITY, optimize=True)


def shown_images(folder: Path) -> list[HeldOut]:
    """The first image of evenly spaced prompts of an evaluation, the same ones for every run."""
    firsts = [record for record in read_records(folder) if record.index % IMAGES_PER_PROMPT == 0 and record.image]
    count = min(PICTURES, len(firsts))
    return [firsts[(2 * number + 1) * len(firsts) // (2 * count)] for number in range(count)]


def _evaluations(run: Path, lines: Mapping[int, Mapping[str, Any]]) -> dict[int, Path]:
    """Epoch -> folder, in order, of the evaluations with a score in the metrics."""
    folders = {int(folder.name.removeprefix("epoch_")): folder for folder in sorted((run / "eval").glob("epoch_*"))}
    return {epoch: at for epoch, at in folders.items() if lines.get(epoch, {}).get(f"eval/{SCORE}") is not None}


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
