"""What runs leave behind: their curves as records for the JSON, and the table over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from awm.lab.control.settings import ControlSettings

FINISHED, INTERRUPTED = "finished", "interrupted"
LAST = 3
"""Evaluations at the end of a run over which its final return is averaged."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run was worth at one time.

    Attributes:
        step: transitions collected so far.
        returns: of each evaluation episode.
        seconds: of the run so far, evaluations included.
        metrics: means over the updates since the evaluation before.
    """

    step: int
    returns: tuple[float, ...]
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def spread(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as the JSON keeps it.

    Attributes:
        variant: name of the algorithm and its options, the same for all seeds.
        seed: of the run.
        settings: every number it depends on.
        evaluations: records with step, mean, spread, returns, seconds and metrics.
        command: the words that made it.
        ended: "finished", "interrupted", or the sentence of the error that stopped it.
        commit: of the code that made it; one file may hold runs of several. None if unknown.
        clean: whether the tracked files were those of the commit.
    """

    variant: str
    seed: int
    settings: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...]
    command: str = ""
    ended: str = FINISHED
    commit: str | None = None
    clean: bool | None = None

    @classmethod
    def of(
        cls,
        settings: ControlSettings,
        seed: int,
        evaluations: Sequence[Evaluation],
        *,
        command: str = "",
        ended: str = FINISHED,
        commit: str | None = None,
        clean: bool | None = None,
    ) -> RunRecord:
        """The record of a run, finished or not."""
        points = tuple(
            {
                "step": e.step,
                "mean": e.mean,
                "spread": e.spread,
                "returns": e.returns,
                "seconds": e.seconds,
                "metrics": e.metrics,
            }
            for e in evaluations
        )
        return cls(settings.variant, seed, asdict(settings), points, command, ended, commit, clean)

    @property
    def final(self) -> float:
        """Mean return over the last evaluations."""
        return float(np.mean([e["mean"] for e in self.evaluations[-LAST:]]))

    @property
    def best(self) -> float:
        """Largest mean return of an evaluation."""
        return max(float(e["mean"]) for e in self.evaluations)

    @property
    def steps_per_second(self) -> float:
        """Transitions per second of the whole run, evaluations included."""
        last = self.evaluations[-1]
        return float(last["step"]) / max(float(last["seconds"]), 1e-9)


def read_runs(path: Path, environment: str) -> list[RunRecord]:
    """The runs an earlier command left, to be drawn beside new ones.

    Raises:
        ValueError: the file holds runs of another environment.
    """
    runs = json.loads(path.read_text())["results"]["runs"]
    records = [RunRecord(**(run | {"evaluations": tuple(run["evaluations"])})) for run in runs]
    others = {str(r.settings["environment"]) for r in records} - {environment}
    if others:
        raise ValueError(f"{path} holds runs of {', '.join(sorted(others))}, not {environment}; use another --name.")
    return records


def merged(old: Sequence[RunRecord], new: Sequence[RunRecord]) -> list[RunRecord]:
    """Old and new runs with anything to show; a new one replaces an old one of the same variant and seed."""
    runs = {(run.variant, run.seed): run for run in (*old, *new) if run.evaluations}
    return [runs[key] for key in sorted(runs)]


def by_variant(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs of each variant, in order of appearance."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.variant, []).append(run)
    return groups


def summary(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One row per variant: seeds, returns at the start, the end (mean, std over seeds) and at best, speed."""
    rows = []
    for variant, group in by_variant(runs).items():
        final = [run.final for run in group]
        rows.append(
            {
                "variant": variant,
                "seeds": len(group),
                "stopped_early": sum(run.ended != FINISHED for run in group),
                "steps": min(int(run.evaluations[-1]["step"]) for run in group),
                "first": float(np.mean([run.evaluations[0]["mean"] for run in group])),
                "final": float(np.mean(final)),
                "final_std": float(np.std(final, ddof=1)) if len(final) > 1 else None,
                "best": float(np.mean([run.best for run in group])),
                "steps_per_second": float(np.mean([run.steps_per_second for run in group])),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """``summary`` as text."""
    lines = [f"{'variant':<28}{'seeds':>6}{'steps':>9}{'first':>9}{'final':>9}{'std':>8}{'best':>9}{'steps/s':>9}"]
    for row in rows:
        std = "" if row["final_std"] is None else f"{row['final_std']:.0f}"
        lines.append(
            f"{row['variant']:<28}{row['seeds']:>6}{row['steps']:>9}{row['first']:>9.0f}{row['final']:>9.0f}"
            f"{std:>8}{row['best']:>9.0f}{row['steps_per_second']:>9.0f}"
        )
    return "\n".join(lines)
