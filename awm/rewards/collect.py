"""What rewards share: images to bytes, outcomes per image to ``Rewards``, one log line per kind of error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awm.images import quantise
from awm.rewards.errors import RewardError
from awm.types import Rewards
from reward_server.scorers.base import ItemError, Outcome, Scores

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")

LARGEST = torch.finfo(torch.float32).max


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Bytes [B, H, W, 3] of images [B, 3, H, W] in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {list(images.shape)}; expected [B, 3, H, W]")
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinite values; the decoder or the sampler has diverged")
    return quantise(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def check_lengths(images: Tensor, text: Sequence[str], metadata: Sequence[Any]) -> None:
    """Raise ValueError unless there is one text and one metadata per image."""
    if not len(images) == len(text) == len(metadata):
        raise ValueError(
            f"{len(images)} images, {len(text)} texts and {len(metadata)} metadata; expected as many of each"
        )


def split_name(name: str) -> tuple[str, str | None]:
    """("geneval", "strict") of "geneval.strict": the scorer, and which of its numbers to take (None: the score)."""
    scorer, _, metric = name.partition(".")
    return scorer, metric or None


def representable(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes, with an error for each whose numbers float32 cannot hold: the trainer would see inf or NaN."""
    return [_representable(outcome) for outcome in outcomes]


def to_rewards(name: str, url: str, outcomes: Sequence[Outcome]) -> Rewards:
    """Rewards whose total is the number called ``name`` and whose parts are everything the scorer returned."""
    scorer, _ = split_name(name)
    parts = {scorer: _column([o.score if isinstance(o, Scores) else None for o in outcomes])}
    metrics = dict.fromkeys(key for outcome in outcomes if isinstance(outcome, Scores) for key in outcome.metrics)
    for metric in metrics:
        values = [o.metrics.get(metric) if isinstance(o, Scores) else None for o in outcomes]
        parts[f"{scorer}.{metric}"] = _column(values)
    if name not in parts:
        if any(isinstance(outcome, Scores) for outcome in outcomes):
            raise RewardError(name, url, f"scorer {scorer!r} returns no such number; it returns {', '.join(parts)}")
        parts[name] = _column([None] * len(outcomes))  # every item failed: nothing says what there could have been
    errors = tuple(f"{scorer}: {o.code}: {o.message}" if isinstance(o, ItemError) else "" for o in outcomes)
    return Rewards(total=parts[name], parts=parts, valid=torch.isfinite(parts[name]), errors=errors)


def run_all(
    function: Callable[[T], U], arguments: Sequence[T], num_threads: int, ended: threading.Event | None = None
) -> list[U]:
    """``function`` of each argument, at the same time if there are several.

    Args:
        function: called in up to ``num_threads`` threads.
        arguments: one call each.
        num_threads: most calls at a time.
        ended: set as soon as one call fails, so that the others may stop waiting; those not begun never are.

    Raises:
        Exception: the first that any call raised, when the calls under way are over.
    """
    if len(arguments) <= 1:  # the usual case: stay in this thread, where Ctrl-C interrupts the waiting
        return [function(argument) for argument in arguments]
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(function, argument) for argument in arguments]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            if ended is not None:
                ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


class ErrorLog:
    """Says once per error code that images go without a score, so that a bad prompt file does not flood the log.

    Args:
        name: the reward's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def note(self, outcomes: Sequence[Outcome], text: Sequence[str]) -> None:
        """Log the errors among the outcomes that are new."""
        errors = [(o, prompt) for o, prompt in zip(outcomes, text, strict=True) if isinstance(o, ItemError)]
        with self._lock:
            new = {error.code: (error, prompt) for error, prompt in errors if error.code not in self._said}
            self._said.update(new)
        for code, (error, prompt) in new.items():
            count = sum(e.code == code for e, _ in errors)
            log.warning(
                "reward %s: %d of %d images have no score and are left out; first prompt: %r; %s: %s"
                " (further errors of this kind are not logged)",
                *(self._name, count, len(outcomes), prompt, code, error.message),
            )


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)


def _representable(outcome: Outcome) -> Outcome:
    # NaN is not below anything either.
    if isinstance(outcome, Scores) and not all(abs(n) <= LARGEST for n in (outcome.score, *outcome.metrics.values())):
        return ItemError("not_finite", f"the scorer returned {outcome}, which is no finite float32")
    return outcome
