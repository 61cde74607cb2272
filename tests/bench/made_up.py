"""Records as runs leave them, made up, with curves that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from awm.bench.arms import Arm, Setting
from awm.bench.jobs import Job
from awm.bench.settings import Settings

GRID = (Setting("low", ("--config.train.learning_rate=1e-3",)), Setting("high", ("--config.train.learning_rate=2e-3",)))
ORIGIN = {"commit": "abc123", "clean": True, "machine": "x86_64, a processor, 2 cores", "versions": {"torch": "2"}}


def an_arm(title: str, grid: tuple[Setting, ...] = GRID) -> Arm:
    return Arm(title, "arXiv 0000.00000", overrides=(f"--config.train.algorithm={title}",), grid=grid)


def tuned(job: Job, rewards: Sequence[float]) -> dict[str, Any]:
    run = {"status": "finished", "command": "awm-train", "training_reward": list(rewards)}
    return identity(job) | ORIGIN | run


def finished(
    job: Job,
    scores: Sequence[float],
    *,
    seconds: float = 10.0,
    flops: float = 1e12,
    images: int = 256,
    base: float = 0.4,
    velocity: float = 1.01,
    second: Sequence[float] = (-2.0, -1.9),
    diversity: Sequence[float] = (0.2, 0.19),
    images_right: tuple[Sequence[int], Sequence[int]] = ((0, 1, 0, 1), (1, 1, 0, 1)),
) -> dict[str, Any]:
    """A run with an evaluation before it and after each epoch; ``seconds``, ``flops``, ``images`` are an epoch's."""
    every = [base, *scores]
    places = range(len(every))
    return tuned(job, [0.5] * len(scores)) | {
        "epochs": len(scores),
        "images_per_epoch": images,
        "flops_per_epoch": flops,
        "captions": ["a photo of a <circle>"],
        "velocity_norm_ratio": [1.0] * (len(scores) - 1) + [velocity],
        "curve": [
            {
                "epoch": epoch,
                "images": epoch * images,
                "seconds": epoch * seconds,
                "flops": epoch * flops,
                "score": score,
                "second": second[0] if epoch == 0 else second[1],
                "diversity": diversity[0] if epoch == 0 else diversity[1],
            }
            for epoch, score in zip(places, every, strict=True)
        ],
        "first": list(images_right[0]),
        "last": list(images_right[1]),
    }


def diverged(job: Job, scores: Sequence[float], *, epochs: int, **values: Any) -> dict[str, Any]:
    """A run of ``epochs`` that has ended after fewer, maybe after none."""
    message = {"status": "diverged", "message": "non-finite loss", "epochs": epochs}
    if not scores:
        run = finished(job, [0.0], **values)
        return run | message | {"curve": run["curve"][:1], "velocity_norm_ratio": []}
    return finished(job, scores, **values) | message


def broken(job: Job, message: str = "it broke") -> dict[str, Any]:
    return identity(job) | ORIGIN | {"status": "broken", "message": message, "command": "awm-train"}


def identity(job: Job) -> dict[str, Any]:
    names = {"name": job.name, "arm": job.arm, "setting": job.setting, "seed": job.seed, "stage": job.stage}
    return names | {"changes": {}, "digest": "d"}


def settings(**values: Any) -> Settings:
    return Settings(**({"images": 512, "seeds": (0, 1), "second_seeds": (2, 3)} | values))


def write_run(folder: Path, epochs: int = 4, every: int = 2, prompts: int = 12) -> Path:
    """Two images of each prompt; those of epoch e differ by 0.2 / (e + 1), up to rounding to bytes."""
    lines: list[dict[str, Any]] = []
    for epoch in range(epochs + 1):
        line: dict[str, Any] = {"epoch": epoch, "step": 4 * epoch, "memory/peak_mb": 100.0}
        if epoch:
            line |= {"reward/mean": epoch / 10, "time/epoch_s": 10.0 + epoch, "velocity_norm_ratio": 1 + epoch / 100}
        if every and (epoch % every == 0):
            line |= {"eval/geneval.strict": 0.4 + epoch / 100, "eval/jpeg_compressibility": -2.0 - epoch}
            line |= {"time/eval_s": 1000.0}
            write_evaluation(folder / "eval" / f"epoch_{epoch:06d}", epoch, prompts)
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_evaluation(folder: Path, epoch: int, prompts: int) -> None:
    folder.mkdir(parents=True)
    rows = []
    for index in range(2 * prompts):
        value = round(255 * (0.5 + 0.2 / (epoch + 1) * (index % 2)))
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(folder / f"{index:05d}.png")
        scores = {"geneval.strict": float(index % 3 == 0 or epoch > 0), "jpeg_compressibility": -2.0}
        rows.append({"index": index, "prompt": f"prompt {index // 2}", "tag": "", "copy": index % 2, "scores": scores})
        rows[-1] |= {"error": "", "image": f"{index:05d}.png"}
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
