"""Operations of an epoch, phase by phase."""

from __future__ import annotations

from ml_collections import ConfigDict

from awm.models.flops import Costs
from awm.planning.columns import aligned
from awm.planning.plan import Plan
from awm.training.workload import groups_of


def epoch_work(plan: Plan, costs: Costs) -> list[tuple[str, int, float]]:
    """The kinds of work of an epoch over all ranks: name, operations of one unit, number of units."""
    sizes = plan.sizes
    prompts = sum(len(groups_of(rank, sizes)) for rank in range(sizes.world_size))
    # Forward and, as the decoder's own weights need no gradient, as much again; the reward model is not counted.
    gradient = [("gradient of the reward, per image", 2 * costs.decode, sizes.images)]
    return [
        ("text encoders, per prompt", costs.encode, prompts),
        ("sampling, per row", costs.forward, sizes.images * plan.sampling.plain),
        ("decoding, per image", costs.decode, sizes.images),
        *(gradient if plan.needs_reward_gradient else []),
        ("training without gradient, per row", costs.forward, sizes.images * plan.training.plain),
        ("training with gradient, per row", costs.training, sizes.images * plan.training.trained),
    ]


def compute_lines(config: ConfigDict, plan: Plan, costs: Costs) -> list[str]:
    """What one unit of each kind of work costs, how many there are, and their share."""
    sizes, work = plan.sizes, epoch_work(plan, costs)
    total = sum(cost * count for _, cost, count in work)
    table: list[tuple[str, ...]] = [("", "TFLOP each", "number", "TFLOP", "share")]
    table += [(name, _tera(cost), f"{n:g}", _tera(cost * n), f"{cost * n / total:.1%}") for name, cost, n in work]
    table.append(("an epoch", "", "", _tera(total), ""))
    table.append(("an epoch, per rank", "", "", _tera(total / sizes.world_size), ""))
    if plan.held_out:
        image = costs.forward * plan.evaluating.plain + costs.decode
        number = plan.held_out * (2 if config.evaluation.current else 1)
        table.append(("an evaluation, per image", _tera(image), f"{number}", _tera(number * image), ""))
    title = "operations (two per multiply-add; what attention kernels compute twice is not counted)"
    return [title, *aligned(table, numbers=True)]


def _tera(operations: float) -> str:
    value = operations / 1e12
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
