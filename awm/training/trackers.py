"""TensorBoard and Weights & Biases beside ``metrics.jsonl``. They watch a run; their failure never ends one."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from awm.registry import nearest

FINISH_TIMEOUT_S = 60  # longest that wandb may upload after the run; `wandb sync` brings the rest


class Tracker(Protocol):
    """A place beside ``metrics.jsonl`` that wants every epoch's numbers."""

    def write(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch; every value is finite."""

    def close(self) -> None:
        """Hand over what is still buffered."""


class Trackers:
    """The trackers of a run. One that fails, on a full disk or without network, is dropped with one warning.

    Args:
        names: any of tensorboard, wandb, none.
        folder: the run folder.
        config: resolved configuration, shown by wandb.
        run_name: name shown by wandb.
        resume_epoch: first epoch that will be written; 0 for a new run.

    Raises:
        ValueError: a name is unknown, its package is missing, or it cannot start.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, *, config: Mapping[str, Any], run_name: str, resume_epoch: int
    ) -> None:
        kinds = {name: _kind(name) for name in dict.fromkeys(names) if name != "none"}
        self._open = {name: kind(folder, config, run_name, resume_epoch) for name, kind in kinds.items()}

    def write(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch with every tracker that still works."""
        self._tell(lambda tracker: tracker.write(epoch, metrics))

    def close(self) -> None:
        """Close every tracker that still works."""
        self._tell(lambda tracker: tracker.close())

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever it is, it is not worth a run
                del self._open[name]
                tqdm.write(
                    f"warning: {name} failed ({type(error).__name__}: {error}) and gets nothing more of this run, "
                    f"which goes on; metrics.jsonl has every number.",
                    file=sys.stderr,
                )


class _TensorBoard:
    """Event files below ``<folder>/tensorboard``, one step per epoch."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_name: str, resume_epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        # purge_step hides what an interrupted run logged from there on.
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=resume_epoch or None)

    def write(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, global_step=epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A wandb run with ``epoch`` as the axis; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_name: str, resume_epoch: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(FINISH_TIMEOUT_S))
        try:
            self._run = wandb.init(
                project="awm",
                name=run_name,
                dir=str(folder),
                config=dict(config),
                id=_run_id(folder, resume=resume_epoch > 0),
                resume="allow",
                settings=wandb.Settings(console="off"),  # progress bars are no log
            )
        except wandb.errors.Error as error:
            raise ValueError(
                f"wandb cannot start ({error}). Log in with `wandb login`, keep the run on this machine with the "
                f"environment variable WANDB_MODE=offline, or leave wandb out of trackers."
            ) from error
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def write(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "epoch": epoch})

    def close(self) -> None:
        self._run.finish()


def _run_id(folder: Path, *, resume: bool) -> str:
    """A new run gets a new id; a resumed one keeps its folder's and so continues its curves."""
    path = folder / "wandb_id.txt"
    if not (resume and path.exists()):
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


_KINDS: dict[str, Callable[[Path, Mapping[str, Any], str, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}


def _kind(name: str) -> Callable[[Path, Mapping[str, Any], str, int], Tracker]:
    if name not in _KINDS:
        known = [*_KINDS, "none"]
        raise ValueError(f"unknown tracker {name!r}; trackers takes any of {', '.join(known)}.{nearest(name, known)}")
    return _KINDS[name]


def _missing(package: str) -> ValueError:
    return ValueError(
        f"trackers names {package}, which is not installed: `pip install {package}`, or leave it out of trackers "
        f"(metrics.jsonl is always written)."
    )
