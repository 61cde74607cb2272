"""Steps that all ranks take or none: where one fails, the others end too, instead of waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from awm.rewards.errors import RewardError
from awm.training.distributed import Distributed

T = TypeVar("T")
EXPECTED = (ValueError, RewardError, OSError)


class ElsewhereError(RuntimeError):
    """Something failed on another rank, which says what."""


def on_main(distributed: Distributed, function: Callable[[], T]) -> T:
    """What ``function`` returns on the main rank, on all ranks.

    Raises:
        ElsewhereError: on the other ranks, if it raises on the main one.
    """
    value = on_all(distributed, function if distributed.is_main else lambda: None)
    result: T = distributed.broadcast_object(value)
    return result


def on_all(distributed: Distributed, function: Callable[[], T]) -> T:
    """What ``function`` returns on this rank.

    Raises:
        ElsewhereError: if it raises on another rank only.
    """
    failure: Exception | None = None
    try:
        value = function()
    except EXPECTED as error:
        failure = error
    if distributed.any(failure is not None):
        raise failure or ElsewhereError("another rank failed; its message says why")
    return value
