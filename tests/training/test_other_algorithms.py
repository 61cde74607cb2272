"""Every other algorithm in the trainer: the same run on one rank and on two, also where its loss couples a group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from config.rivals import PUBLISHED
from tests.training.rank_scenarios import train_all
from tests.training.ranks import run_ranks
from tests.training.test_engines import same_run, write  # noqa: F401  # the fixture

SCALE = {"train__adv_clip_max": 5.0, "train__advantage_max": 5.0, "train__ema_beta": 0.0, "num_epochs": 1}
STOCHASTIC = {"sample__sampler": "flow_sde", "sample__sde_frac": 1.0, "sample__noise_level": 0.7}
SHARED_NOISE = {"train__group_noise": True}
OWN: dict[str, dict[str, Any]] = {
    "flow_grpo": STOCHASTIC,
    "flow_grpo_fast": STOCHASTIC | {"sample__window": "random", "sample__shared_start": True},
    "mix_grpo": STOCHASTIC | {"sample__window": "sliding", "sample__sampler": "dance_sde"},
    "cps": STOCHASTIC | {"sample__sampler": "cps"},
    "ddpo": STOCHASTIC | {"sample__sampler": "ddpm", "per_prompt_stat_tracking": False},
    "grpo_guard": STOCHASTIC,
    "nft": {"train__off_policy": True, "train__kl_ema_decay_type": "constant"},
    "flow_awr": {"train__off_policy": True, "train__kl_ema_decay_type": "constant"},
    "v_grpo": SHARED_NOISE,
    "dpo": SHARED_NOISE,
    "dgpo": SHARED_NOISE | {"train__dgpo_clip": 0.1, "train__dgpo_beta": 10.0},
    "crd": SHARED_NOISE | {"train__beta": 0.1},
    "rwr": {},
    "awr": {},
    "dpmd": {},
    "qvpo": {},
    "simpo": {"train__weighting": "Uniform", "train__simpo_weighting": "linear", "train__simpo_floor": -0.5},
}
# The second update of an epoch is off policy; where groups must stay whole, and one crosses the ranks' border, there
# is a second pass instead.
TWICE = {"train__updates_per_inner_epoch": 1, "train__num_inner_epochs": 2}
WHOLE = ("dpo", "dgpo", "crd")


def settings(name: str) -> dict[str, Any]:
    return {"train__algorithm": name, "eval_freq": 0} | SCALE | OWN[name] | (TWICE if name in WHOLE else {})


def test_all_of_them_are_here() -> None:
    assert set(OWN) == {*PUBLISHED, "simpo"}


@pytest.fixture
def runs(write: Callable[..., str]) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: F811
    """Every algorithm on one rank and on two: name -> what ``train`` returns."""
    results = []
    for ranks in (1, 2):
        files = {name: write(f"{name}_{ranks}", **settings(name)) for name in OWN}
        found = run_ranks(ranks, train_all, [("ddp", file) for file in files.values()], limit_s=30 * len(files))
        results.append({name: found[file] for name, file in files.items()})
    return results[0], results[1]


def test_two_ranks_with_a_group_across_their_border_are_one(
    runs: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    alone, several = runs
    for name in OWN:
        same_run(several[name], alone[name])
        last = alone[name]["metrics"][-1]
        assert last["step"] == 2 and last["grad_norm"] > 0, name
        if name == "simpo":
            assert last["weight/min"] < 0
        assert all(math.isfinite(value) for value in last.values() if isinstance(value, float)), name
