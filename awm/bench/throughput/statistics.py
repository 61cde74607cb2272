"""Epochs -> numbers: medians with their spread, shares of what the device can do, ratios between variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from awm.bench.throughput.case import Epoch
from awm.bench.throughput.ceiling import Ceiling
from awm.bench.throughput.rounds import Outcome

SECONDS = ("rollout", "sampling", "encode", "decode", "reward_wait", "train", "epoch")
WORK = {
    "encode": ("encode",),
    "sampling": ("sampling",),
    "decode": ("decode",),
    "rollout": ("encode", "sampling", "decode"),
    "train": ("train",),
    "epoch": ("encode", "sampling", "decode", "train"),
}
"""Phase -> the kinds of work whose operations are done in it."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def measured(
    epochs: Sequence[Epoch], operations: Mapping[str, float], ceiling: Ceiling, peak: float | None, world_size: int
) -> dict[str, Any]:
    """What a variant's epochs say of it.

    Model FLOPs utilisation is counted operations over seconds over what one device can do: the operations that the
    algorithm needs, whatever else a variant computes beside them.

    Args:
        epochs: those that count, at least one.
        operations: of an epoch over all ranks, by kind of work.
        ceiling: of each device, measured.
        peak: of each device, as its maker says; None if unknown.
        world_size: number of ranks.
    """
    seconds = {phase: spread([epoch.seconds(phase) for epoch in epochs]) for phase in SECONDS}
    rates = {
        phase: sum(operations[kind] for kind in kinds) / seconds[phase]["median"] / world_size
        for phase, kinds in WORK.items()
        if seconds[phase]["median"] > 0
    }
    result: dict[str, Any] = {
        "images_per_s": spread([epoch.metrics["images_per_s"] for epoch in epochs]),
        "seconds": seconds,
        "operations_per_s_per_device": rates,
        "mfu_of_ceiling": {phase: rate / ceiling.operations_per_s for phase, rate in rates.items()},
        "mfu_of_peak": None if peak is None else {phase: rate / peak for phase, rate in rates.items()},
        "peak_memory_gib": {
            phase: max(epoch.peak_bytes[phase] for epoch in epochs) / 2**30 for phase in epochs[0].peak_bytes
        },
        "reward_mean": [epoch.metrics["reward/mean"] for epoch in epochs],
    }
    if ceiling.operations_per_processor_s:
        spent = {phase: spread([epoch.processor[phase] for epoch in epochs]) for phase in epochs[0].processor}
        result["processor_seconds"] = spent
        result["mfu_of_ceiling_by_processor"] = {
            phase: sum(operations[kind] for kind in WORK[phase])
            / (world_size * values["median"] * ceiling.operations_per_processor_s)
            for phase, values in spent.items()
        }
    return result


def ratios(variant: Outcome, default: Outcome, *, by_processor: bool) -> dict[str, dict[str, float]]:
    """Speed of a variant over that of the default, round by round: above 1 it is the faster one.

    The epochs of a round have the same prompts and noise, and follow each other within minutes.

    Args:
        variant: what became of it.
        default: what became of the default.
        by_processor: also by the seconds that the processor's cores spent.
    """

    def ratio(seconds: Callable[[Epoch], float]) -> dict[str, float]:
        return spread([seconds(d) / seconds(v) for v, d in zip(variant.epochs, default.epochs, strict=False)])

    found = {
        "epoch": ratio(lambda epoch: epoch.seconds("epoch")),
        "rollout": ratio(lambda epoch: epoch.seconds("rollout")),
        "train": ratio(lambda epoch: epoch.seconds("train")),
    }
    return found | ({"epoch_by_processor": ratio(lambda epoch: epoch.processor["epoch"])} if by_processor else {})
