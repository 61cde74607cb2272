"""Reads a run folder, finished or not: configuration, metrics, first and last held-out evaluation, sample grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awm.report.statistics import PairedGain, paired_gain
from awm.training.metrics import read_metrics


@dataclass(frozen=True, slots=True)
class HeldOutImage:
    """One line of ``scores.jsonl``; ``image`` is None if the picture was not kept."""

    index: int
    prompt: str
    tag: str
    scores: Mapping[str, float | None]
    image: Path | None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One evaluation of the held-out prompts, after ``epoch`` epochs."""

    epoch: int
    images: Mapping[int, HeldOutImage]


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompt and noise, before and after training."""

    before: HeldOutImage
    after: HeldOutImage

    def scores(self, name: str) -> tuple[float | None, float | None]:
        """Score ``name`` before and after."""
        return self.before.scores.get(name), self.after.scores.get(name)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What a run has left so far.

    Attributes:
        path: the folder, as the user wrote it.
        config: resolved configuration; empty if missing.
        metrics: one record per epoch.
        before: first evaluation, if any.
        after: last evaluation, if there is more than one.
        sample_grid: newest ``samples/epoch_*.png``.
        checkpoint: newest folder below ``checkpoints``.
    """

    path: Path
    config: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    before: HeldOut | None = None
    after: HeldOut | None = None
    sample_grid: Path | None = None
    checkpoint: Path | None = None
    pairs: tuple[Pair, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", _pairs(self.before, self.after))

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config.get("run_name") or self.path.resolve().name)

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return int(self.metrics[-1].get("epoch", 0)) if self.metrics else 0

    @property
    def num_epochs(self) -> int | None:
        """Epochs planned, if known."""
        return self.config.get("num_epochs")

    @property
    def headline(self) -> str | None:
        """The held-out score that decides: strict accuracy of the heaviest reward, or that reward itself."""
        evaluation = self.after or self.before
        names = (
            list(dict.fromkeys(name for image in evaluation.images.values() for name in image.scores))
            if evaluation
            else []
        )
        weights = self.config.get("reward_fn") or {}
        for reward in sorted(weights, key=lambda name: -abs(weights[name])):
            for candidate in (f"{reward}.strict", reward):
                if candidate in names:
                    return candidate
        return next((name for name in names if name.endswith(".strict")), names[0] if names else None)

    @property
    def score_names(self) -> list[str]:
        """Scores that the held-out pairs have, the headline first."""
        names = dict.fromkeys(name for pair in self.pairs for name in pair.after.scores)
        return sorted(names, key=lambda name: name != self.headline)

    def gain(self, name: str, tag: str | None = None) -> PairedGain:
        """Change of score ``name`` over the held-out pairs, of one task if ``tag`` is given."""
        pairs = [pair for pair in self.pairs if tag is None or pair.before.tag == tag]
        scores = [pair.scores(name) for pair in pairs]
        return paired_gain(
            [before for before, _ in scores], [after for _, after in scores], [pair.before.prompt for pair in pairs]
        )


def load_run(path: Path) -> RunFolder:
    """Read ``path``; missing parts stay empty, but a folder without any of them is an error."""
    config_file, metrics_file = path / "config.json", path / "metrics.jsonl"
    if not config_file.exists() and not metrics_file.exists():
        raise ValueError(
            f"{path} is not a run folder: it has neither config.json nor metrics.jsonl. "
            f"Give the folder that training printed, for example logs/quickstart."
        )
    metrics = read_metrics(metrics_file) if metrics_file.exists() else []
    evaluations = _evaluations(path, metrics)
    return RunFolder(
        path=path,
        config=json.loads(config_file.read_text()) if config_file.exists() else {},
        metrics=metrics,
        before=_load_evaluation(evaluations[0]) if evaluations else None,
        after=_load_evaluation(evaluations[-1]) if len(evaluations) > 1 else None,
        sample_grid=max((path / "samples").glob("epoch_*.png"), default=None),
        checkpoint=max((path / "checkpoints").glob("epoch_" + "[0-9]" * 6), default=None),
    )


def _evaluations(path: Path, metrics: list[dict[str, Any]]) -> list[Path]:
    """Score files in order of epoch; those the metrics do not know are left over from an earlier run."""
    files = sorted((path / "eval").glob("epoch_*/scores.jsonl"))
    known = {record["epoch"] for record in metrics if any(key.startswith("eval/") for key in record)}
    return [file for file in files if not known or _epoch(file.parent) in known]


def _epoch(folder: Path) -> int:
    return int(folder.name.removeprefix("epoch_"))


def _load_evaluation(path: Path) -> HeldOut:
    images = {}
    for record in read_metrics(path):
        name = record.get("image")
        image = path.parent / name if name and (path.parent / name).exists() else None
        images[record["index"]] = HeldOutImage(
            record["index"], record["prompt"], record.get("tag") or "", record["scores"], image
        )
    return HeldOut(_epoch(path.parent), images)


def _pairs(before: HeldOut | None, after: HeldOut | None) -> tuple[Pair, ...]:
    """Images with the same number and the same prompt: a changed evaluation set is not compared."""
    if before is None or after is None:
        return ()
    return tuple(
        Pair(image, after.images[index])
        for index, image in sorted(before.images.items())
        if index in after.images and after.images[index].prompt == image.prompt
    )
