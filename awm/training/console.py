"""The one line that a run prints per epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from awm.training.progress import duration

SHOWN = {
    "reward/mean": "reward {:.3f}",
    "loss/kl_reference": "KL {:.2e}",
    "grad_norm": "grad {:.3f}",
}


def epoch_line(metrics: Mapping[str, Any], num_epochs: int, remaining_s: float | None) -> str:
    """The few numbers a person watches: rewards, losses, speed, held-out scores, time left."""
    parts = [text.format(metrics[name]) for name, text in SHOWN.items() if metrics.get(name) is not None]
    if "time/epoch_s" in metrics:
        parts.append(f"{duration(metrics['time/epoch_s'])}, {metrics['images_per_s']:.1f} img/s")
    held_out = [
        f"{name.removeprefix('eval/')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("eval/") and name.count("/") == 1
    ]
    if held_out:
        parts.append("held out: " + ", ".join(held_out))
    if remaining_s is not None:
        parts.append(f"{duration(remaining_s)} left" if remaining_s else "done")
    return " | ".join([f"epoch {metrics['epoch']}/{num_epochs}", *parts])


def print_epoch(line: str, warnings: Sequence[str]) -> None:
    """The line on stdout, warnings on stderr, both above the progress bars if there are any."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
    for warning in warnings:
        tqdm.write(warning, file=sys.stderr)
