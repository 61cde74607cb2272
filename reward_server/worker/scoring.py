"""Calling a scorer so that whatever goes wrong with one item stays with that item."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import isfinite

from reward_server.scorers.base import Item, ItemError, Outcome, Scorer, Scores

log = logging.getLogger(__name__)


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
        return [_finite(outcome) for outcome in outcomes]
    except Exception as error:
        log.exception("reward %s failed on a batch of %d", name, len(items))
        if len(items) == 1:
            return [ItemError("scorer_failed", f"{type(error).__name__}: {error}")]
        # One by one, so that only the item at fault goes without a score.
        return [outcome for item in items for outcome in score_items(scorer, [item], name)]


def _finite(outcome: Outcome) -> Outcome:
    if isinstance(outcome, Scores) and not all(map(isfinite, (outcome.score, *outcome.metrics.values()))):
        return ItemError("not_finite", f"the scorer returned {outcome}")
    return outcome
