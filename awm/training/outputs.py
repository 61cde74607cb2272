"""Everything a run writes or prints: metrics, grids, evaluations, checkpoints, progress, the report."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from awm.interfaces import Policy
from awm.report.grid import sample_grid
from awm.report.page import write_report
from awm.training.checkpoint import CheckpointError, RunState, save_checkpoint
from awm.training.console import epoch_line, print_epoch
from awm.training.distributed import Distributed
from awm.training.evaluation import Evaluation, summarise, write_scores
from awm.training.geometry import Geometry
from awm.training.guardrails import Guardrails, Limits, breaches
from awm.training.metrics import MetricsWriter
from awm.training.progress import Pace, RunProgress
from awm.training.rollout import RolloutResult
from awm.training.settings import Schedule
from awm.training.stopping import StopRequest, StopRequestedError
from awm.types import Prompts


class RunOutputs:
    """Writes below the run folder, on the main rank only; other ranks take part in what is collective.

    Args:
        run: the run folder.
        policy: saved in checkpoints.
        optimizer: saved in checkpoints.
        distributed: the ranks.
        evaluations: metric prefix ("eval/", "eval_current/") -> evaluation; the first one's images are kept.
        metrics: writer of metrics.jsonl and trackers; None on other ranks.
        config: written into every checkpoint.
        keep_last: checkpoints kept.
        schedule: how long the run is, for the progress bar and the time left.
        grid_rows: rows of the rank's samples shown in the sample grid.
        limits: beyond which metrics are warned about.
        constants: metrics that are the same in every epoch.
        stop: whether somebody wants the run to end.
    """

    def __init__(
        self,
        *,
        run: Path,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        distributed: Distributed,
        evaluations: Mapping[str, Evaluation],
        metrics: MetricsWriter | None,
        config: Mapping[str, Any],
        keep_last: int,
        schedule: Schedule,
        grid_rows: list[int],
        sizes: Geometry,
        limits: Limits,
        constants: Mapping[str, float],
        stop: StopRequest,
    ) -> None:
        self.run, self.policy, self.optimizer, self.distributed = run, policy, optimizer, distributed
        self.evaluations, self.metrics, self.config, self.keep_last = evaluations, metrics, config, keep_last
        self.num_epochs, self.grid_rows, self.constants, self.stop = schedule.num_epochs, grid_rows, constants, stop
        self.bars, self.pace = RunProgress(schedule.num_epochs, distributed.is_main), Pace(schedule)
        self.guardrails, self.sizes = Guardrails(limits), sizes
        self.saved_epoch = -1
        self.save_s: dict[str, float] = {}  # of the checkpoint before the epoch that is logged next

    @contextmanager
    def progress(self, epoch: int, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """A progress bar over ``total`` of this rank's images in ``epoch`` (counted from 1).

        Raises:
            StopRequestedError: from the yielded function, on all ranks, if the run was asked to stop.
        """
        with self.bars.phase(epoch, what, total) as advance:

            def done(images: int) -> None:
                advance(images)
                if self.stop.agreed():
                    raise self.stopped()

            yield done

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Score the held-out prompts after ``epoch`` completed epochs.

        Raises:
            StopRequestedError, RewardError: on all ranks.
        """
        started = time.perf_counter()
        values: dict[str, float] = {}
        for number, (prefix, evaluation) in enumerate(self.evaluations.items()):
            total = -(-len(evaluation) // self.distributed.world_size)
            with self.progress(epoch, "evaluating", total) as done:
                scored = evaluation(done)
            values |= summarise(scored, prefix)
            if number == 0 and self.distributed.is_main:
                write_scores(self.run / "eval" / f"epoch_{epoch:06d}", scored)
        return values | {"time/eval_s": time.perf_counter() - started}

    def evaluated(self, epoch: int) -> bool:
        """Whether the held-out scores after ``epoch`` epochs, the last logged, are there; the same on all ranks."""
        return self.distributed.any(self.metrics is not None and self.metrics.has(epoch, "eval/"))

    def write_grid(self, epoch: int, prompts: Prompts, rollout: RolloutResult) -> None:
        """``samples/epoch_NNNNNN.png``: some of the main rank's images with prompts and scores."""
        if not self.distributed.is_main or not rollout.images:
            return
        rows = sorted(rollout.images)
        totals = rollout.rewards.total.tolist()
        grid = sample_grid(
            torch.stack([rollout.images[row] for row in rows]).float() / 255,
            [prompts.text[row] for row in rows],
            [None if totals[row] != totals[row] else totals[row] for row in rows],
            columns=6,
        )
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        grid.save(folder / f"epoch_{epoch:06d}.png")

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl and one line on the console."""
        if self.metrics is None:
            return
        found, epoch = breaches(metrics, self.guardrails.limits), metrics["epoch"]
        metrics = {
            **metrics,
            **self.constants,
            **self.save_s,
            "lr": self.optimizer.param_groups[0]["lr"],
            "memory/peak_mb": _peak_memory_mb(),
            # Not with an evaluation that was made up for: the epoch's own line has the number already.
            **({"warnings": len(found)} if "time/epoch_s" in metrics else {}),
        }
        self.save_s = {}
        self.metrics.write(metrics)
        self.pace.note(metrics)
        remaining_s = self.pace.remaining_s(epoch)
        self.bars.epoch_done(epoch, remaining_s)
        print_epoch(epoch_line(metrics, self.num_epochs, remaining_s), self.guardrails.warnings(epoch, found))

    def note(self, line: str) -> None:
        """One line on the console."""
        if self.metrics is not None:
            print_epoch(line, ())

    def save(self, epoch: int, step: int) -> None:
        """A checkpoint; ranks agree on a failure, so that none goes on alone."""
        if epoch == self.saved_epoch:
            return
        started = time.perf_counter()
        failure: Exception | None = None
        state = RunState(
            epoch=epoch,
            step=step,
            # Sharded tensors are put together by all ranks, for the main one to write.
            policy=self.policy.state_dict(keep=self.distributed.is_main),
            optimizer=self.distributed.optimizer_state(self.optimizer),
            scaler=self.distributed.scaler_state(),
            sizes=self.sizes.experiment,
        )
        if self.distributed.is_main:
            try:
                save_checkpoint(self.run / "checkpoints", state, self.policy, self.config, self.keep_last)
            except CheckpointError as error:
                failure = error
        self.saved_epoch, self.save_s = epoch, {"time/save_s": time.perf_counter() - started}
        if self.distributed.any(failure is not None):
            raise failure or CheckpointError("the main rank could not save a checkpoint; its message says why.")

    def stop_requested(self) -> bool:
        """Whether the run was asked to end; the same on all ranks."""
        return self.stop.agreed()

    def finish(self) -> Path | None:
        """Close the trackers and write the report; also mid-run, after an interruption."""
        self.bars.close()
        if self.metrics is None:
            return None
        self.metrics.close()
        try:
            return write_report(self.run)
        except OSError as error:  # after a full disk has ended the run, its own message counts
            print(f"could not write the report ({error}); later: python -m awm.report {self.run}", file=sys.stderr)
            return None

    def stopped(self) -> StopRequestedError:
        """The exception that ends an interrupted run, with how to continue."""
        return StopRequestedError(f"stopped; {self.saved_note}", self.stop.exit_code)

    @property
    def saved_note(self) -> str:
        """What to tell somebody whose run has ended early, after ``save``."""
        return f"everything is saved in {self.run}. Run the same command with --config.resume_from=auto to continue."


def _peak_memory_mb() -> float:
    """Largest memory so far: of the GPU if there is one, else resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
