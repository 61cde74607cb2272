"""Calling a scorer so that whatever goes wrong with one item stays with that item."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import isfinite

from reward_server.scorers.base import Item, ItemError, Outcome, Scorer, Scores

log = logging.getLogger(__name__)

FAILED = "scorer_failed"
"""Code of an item on which the scorer raised."""


def score_items(scorer: Scorer, items: Sequence[Item], name: str) -> list[Outcome]:
    """One outcome per item; a batch on which the scorer fails is scored again one by one.

    Args:
        scorer: what scores.
        items: one batch.
        name: the reward's name, for the log.
    """
    if not items:
        return []
    try:
        outcomes = scorer(items)
        if len(outcomes) != len(items):
            raise RuntimeError(f"the scorer returned {len(outcomes)} outcomes for {len(items)} items")
        return [_checked(outcome) for outcome in outcomes]
    except Exception as error:
        if len(items) == 1:
            log.exception("reward %s failed on an image with the prompt %.200r", name, items[0].prompt)
            return [ItemError(FAILED, f"{type(error).__name__}: {error}")]
        log.error("reward %s failed on a batch of %d, now one by one: %s", name, len(items), error)
        # One by one, so that only the item at fault goes without a score.
        return [outcome for item in items for outcome in score_items(scorer, [item], name)]


def _checked(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Scores | ItemError):
        raise TypeError(f"the scorer returned {outcome!r}; expected Scores or ItemError")
    if isinstance(outcome, Scores) and not all(map(isfinite, (outcome.score, *outcome.metrics.values()))):
        return ItemError("not_finite", f"the scorer returned {outcome}")
    return outcome
