"""How fast the two slow copies of the weights follow the current ones: pure schedules.

anchor <- d anchor + (1 - d) current is the target of the second KL term of AWM's public recipe;
average <- d average + (1 - d) current is evaluated. Both d start near 0, so the first updates copy.
"""

from __future__ import annotations

ANCHOR_SCHEDULES = ("constant", "linear", "delayed", "offset")


def anchor_decay(num_updates: int, kl_ema_decay: float, kind: str) -> float:
    """Decay of the anchor, at most kl_ema_decay.

        constant  d = kl_ema_decay                   delayed  d = min(0.0075 (n - 75), kl_ema_decay), 0 for n < 75
        linear    d = min(0.001 n, kl_ema_decay)     offset   d = min(0.25 + 0.005 n, kl_ema_decay)

    "delayed" is DiffusionNFT's for OCR and "offset" that of CRD; both count epochs there, which are as many as
    updates if an epoch takes one.

    Under a steady drift of delta per update, current - anchor settles at d / (1 - d) delta: the KL to the
    anchor brakes the last move, as a trust region does.

    Args:
        num_updates: optimizer steps so far, n.
        kl_ema_decay: the largest decay.
        kind: "constant", "linear", "delayed" or "offset".
    """
    if kind == "constant":
        return kl_ema_decay
    if kind == "linear":
        return min(kl_ema_decay, 0.001 * num_updates)
    if kind == "delayed":
        return min(kl_ema_decay, 0.0075 * max(num_updates - 75, 0))
    if kind == "offset":
        return min(kl_ema_decay, 0.25 + 0.005 * num_updates)
    raise ValueError(f"unknown kl_ema_decay_type {kind!r}; known: {', '.join(ANCHOR_SCHEDULES)}.")


def average_decay(num_epochs: int, ema_decay: float) -> float:
    """Decay of the evaluation average, d = min((1 + n) / (10 + n), ema_decay).

    Args:
        num_epochs: epochs before this one, n; all update the average unless train.ema_update_step_interval says less.
        ema_decay: the largest decay.
    """
    return min((1 + num_epochs) / (10 + num_epochs), ema_decay)
