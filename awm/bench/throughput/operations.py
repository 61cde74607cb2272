"""Operations of an epoch by phase: what the algorithm needs, counted on the model as ``awm-train --dry_run`` does."""

from __future__ import annotations

from typing import Any

from awm.bench.costs import model_costs
from awm.planning.compute import epoch_work
from awm.planning.plan import make_plan

PHASES = {
    "text encoders": "encode",
    "sampling": "sampling",
    "decoding": "decode",
    "gradient of the reward": "train",
    "training": "train",
}
"""First words of a kind of work -> the phase it is done in."""


def phase_operations(config: Any, world_size: int) -> dict[str, float]:
    """Floating point operations of an epoch over all ranks: encode, sampling, decode, train.

    Raises:
        ValueError: what the run itself would raise.
    """
    operations = dict.fromkeys(PHASES.values(), 0.0)
    for name, cost, number in epoch_work(make_plan(config, world_size), model_costs(config)):
        phase = next(phase for words, phase in PHASES.items() if name.startswith(words))
        operations[phase] += float(cost * number)
    return operations
