"""``awm-train --dry_run``: what a run would do and need, without loading weights, asking a server or writing a file."""

from __future__ import annotations

import os

from ml_collections import ConfigDict

from awm.building.objects import build_weightless
from awm.models.weightless import MissingConfigError, Weightless
from awm.planning.compute import compute_lines
from awm.planning.costs import add_adapters, costs_of
from awm.planning.memory import memory_lines
from awm.planning.plan import Plan, geometry_lines, make_plan
from awm.planning.proposal import proposal_lines


def dry_run(config: ConfigDict, world_size: int | None, memory_gb: float | None = None) -> None:
    """Print the plan of ``config``; under torchrun the first rank does.

    Args:
        config: the configuration.
        world_size: ranks to plan for; None for those of torchrun, or one.
        memory_gb: GiB of the GPUs to propose settings for; None proposes none.

    Raises:
        ValueError: what the run itself would raise before it loads the model.
    """
    plan = make_plan(config, world_size or int(os.environ.get("WORLD_SIZE", "1")))
    if int(os.environ.get("RANK", "0")) != 0:
        return
    print("\n".join(geometry_lines(config, plan)), flush=True)
    try:
        parts = build_weightless(config)
    except MissingConfigError as error:
        print(f"\nwithout the model's configuration there are no bytes and operations: {error}")
        return
    parts.latent_shape(config.resolution)
    print("\n".join(["", *memory_and_compute_lines(config, plan, parts)]))
    if memory_gb is not None:
        print("\n".join(["", *proposal_lines(config, plan, parts, memory_gb)]))


def memory_and_compute_lines(config: ConfigDict, plan: Plan, parts: Weightless) -> list[str]:
    """Bytes per rank and operations per epoch of the model ``parts``, whose transformer gets its adapters here."""
    frozen = add_adapters(parts, config)
    costs = costs_of(parts, config)
    return [*memory_lines(config, plan, parts, frozen, costs), "", *compute_lines(config, plan, costs)]
