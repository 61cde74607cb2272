"""SiMPO's weights compare all of an epoch's images, wherever they were sampled."""

from __future__ import annotations

from collections.abc import Callable

from tests.training.rank_scenarios import train
from tests.training.ranks import run_ranks
from tests.training.test_engines import same_run, write  # noqa: F401  # the fixture

SIMPO = {
    "train__algorithm": "simpo",
    "train__weighting": "Uniform",
    "train__simpo_weighting": "linear",
    "train__simpo_floor": -0.5,
    "num_epochs": 1,
    "eval_freq": 0,
}


def test_two_ranks_with_a_group_across_their_border_are_one(write: Callable[..., str]) -> None:  # noqa: F811
    """Three groups of eight: the second is half on each rank."""
    alone = run_ranks(1, train, "ddp", write("alone", **SIMPO))
    result = run_ranks(2, train, "ddp", write("several", **SIMPO))
    same_run(result, alone)
    assert alone["metrics"][-1]["weight/min"] < 0
