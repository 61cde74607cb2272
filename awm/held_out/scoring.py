"""Draws and scores what is still missing, and writes each batch down as soon as its scores are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from awm.held_out.items import Item
from awm.held_out.records import PartWriter, Record
from awm.held_out.together import ElsewhereError
from awm.images import quantise, save_png
from awm.interfaces import Reward
from awm.rewards.threads import scoring_pool
from awm.training.distributed import Distributed
from awm.training.evaluation import to_records
from awm.training.stopping import StopRequest

Draw = Callable[[Sequence[Item]], Tensor]
WORKERS = 4  # scoring requests in flight
WAITING = 4  # scored batches that may be waiting for a worker, so that a slow reward does not fill the memory
IMAGES = "images"


class Scoring:
    """One pass over the missing images, on all ranks.

    Args:
        draw: a batch of items -> images [B, 3, H, W] in [0, 1].
        reward: called from worker threads.
        distributed: the ranks; batch i belongs to rank i modulo their number.
        stop: whether somebody wants it to end.
        folder: of ``scores.jsonl``; images go into ``images/`` below it.
        saved: indices of the images kept as files.
    """

    def __init__(
        self,
        *,
        draw: Draw,
        reward: Reward,
        distributed: Distributed,
        stop: StopRequest,
        folder: Path,
        saved: frozenset[int],
    ) -> None:
        self._draw, self._reward, self._distributed, self._stop = draw, reward, distributed, stop
        self._folder, self._saved = folder, saved

    def __call__(
        self, batches: Sequence[Sequence[Item]], writer: PartWriter, progress: Callable[[int], object]
    ) -> bool:
        """Work through ``batches``; a collective.

        After a failure, or a request to stop, what is drawn already is still scored and written.

        Args:
            batches: the same on every rank.
            writer: of this rank's part file.
            progress: told, on every rank, how many images all ranks have drawn.

        Returns:
            Whether all is done; False if it was stopped.

        Raises:
            RewardError, OSError: scoring or writing failed here.
            ElsewhereError: it failed on another rank.
        """
        ranks, pending = self._distributed.world_size, list[Future[None]]()
        stopped = False
        pool = scoring_pool(WORKERS, self._distributed.device)
        try:
            for start in range(0, len(batches), ranks):
                if stopped := self._stop.agreed():
                    break
                if self._distributed.any(_failure(pending) is not None):
                    break
                round_ = batches[start : start + ranks]
                if self._distributed.rank < len(round_):
                    batch = round_[self._distributed.rank]
                    images = self._draw(batch)
                    pending = _with_room(pending)
                    pending.append(pool.submit(self._score, batch, images, writer))
                progress(sum(len(batch) for batch in round_))
            wait(pending)
        finally:
            pool.shutdown(cancel_futures=True)
        return not (self._failed(_failure(pending)) or stopped)

    def _score(self, batch: Sequence[Item], images: Tensor, writer: PartWriter) -> None:
        rewards = self._reward(images, [item.prompt for item in batch], [item.metadata for item in batch])
        records = to_records(batch, rewards)
        writer.write([self._with_file(record, image) for record, image in zip(records, images, strict=True)])

    def _with_file(self, record: Record, image: Tensor) -> Record:
        if record.index not in self._saved:
            return record
        name = f"{IMAGES}/{record.index:05d}.png"
        save_png(quantise(image), self._folder / name)
        return replace(record, image=name)

    def _failed(self, failure: BaseException | None) -> bool:
        """Whether scoring failed because of a request to stop, which ends the waiting for a server; else raises."""
        if not self._distributed.any(failure is not None):
            return False
        if not self._stop.agreed():
            raise failure or ElsewhereError("another rank failed; its message says why")
        return True


def _with_room(pending: list[Future[None]]) -> list[Future[None]]:
    """Those that have failed or are not over, once there are few enough of the latter."""
    while True:
        running = {future for future in pending if not future.done()}
        if len(running) < WORKERS + WAITING:
            return [future for future in pending if future in running or future.exception() is not None]
        wait(running, return_when=FIRST_COMPLETED)


def _failure(pending: Sequence[Future[None]]) -> BaseException | None:
    return next((error for future in pending if future.done() and (error := future.exception())), None)
