"""Every other algorithm in the trainer: the same run on one rank and on two, also where its loss couples a group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.building import without_effect
from config.rivals import PUBLISHED
from tests.training.rank_scenarios import train, train_all
from tests.training.ranks import run_ranks
from tests.training.test_engines import same_run, write  # noqa: F401  # the fixture
from tests.training.test_trainer import build, run

Make = Callable[..., ConfigDict]

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
    "simpo": {
        **{"train__weighting": "Uniform", "train__simpo_weighting": "linear", "train__simpo_floor": -0.5},
        "train__simpo_target_kl": 0.5,
    },
}
# The second update of an epoch is off policy; where groups must stay whole, and one crosses the ranks' border, there
# is a second pass instead.
TWICE = {"train__updates_per_inner_epoch": 1, "train__num_inner_epochs": 2}
WHOLE = ("dpo", "dgpo", "crd")


def settings(name: str) -> dict[str, Any]:
    small = {"sample__num_image_per_prompt": 4, "sample__num_steps": 4}
    return {"train__algorithm": name, "eval_freq": 0} | small | SCALE | OWN[name] | (TWICE if name in WHOLE else {})


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


@pytest.mark.parametrize("name", ["dpo", "crd"])
def test_coupled_losses_are_the_same_run_where_parameters_are_sharded(
    name: str,
    write: Callable[..., str],  # noqa: F811
) -> None:
    """Ranks that share parameters must run equally many forwards, also one that holds no pair."""
    alone = run_ranks(1, train, "ddp", write("alone", **settings(name)))
    same_run(run_ranks(2, train, "fsdp2", write("sharded", **settings(name))), alone)


@pytest.mark.parametrize("name", ["flow_grpo_fast", "nft", "crd"])
def test_resuming_continues_as_if_never_stopped(name: str, make_config: Make) -> None:
    """Windows, anchors and group terms of the second epoch do not depend on who computed the first."""
    changes = settings(name) | {"num_epochs": 2}
    expected = run(make_config(run_name="whole", **changes)).policy.state_dict()
    part = make_config(run_name="part", **(changes | {"num_epochs": 1}))
    run(part)
    part.num_epochs, part.resume_from = 2, "auto"
    actual = run(part).policy.state_dict()
    for weights in expected:
        for parameter, tensor in expected[weights].items():
            assert torch.equal(tensor, actual[weights][parameter]), f"{weights} {parameter}"


def test_a_window_moves_with_the_epoch_and_a_shared_start_parts_where_it_begins(make_config: Make) -> None:
    trainer = build(make_config(**settings("flow_grpo_fast")))
    starts = []
    for trainer.epoch in range(8):
        rollout = trainer.rollout(
            trainer.epoch_prompts(), trainer.rollout_noise, lambda done: None, keep=(), sampler=trainer.epoch_sampler()
        )
        steps, states = rollout.trajectory.steps, rollout.trajectory.states
        assert steps is not None and states is not None and rollout.trajectory.velocities is None
        noisy = [number for number, step in enumerate(steps) if step.std > 0]
        assert noisy == [noisy[0], noisy[0] + 1]
        starts.append(noisy[0])
        first, second, other = states[:, 0], states[:, 1], states[:, 4]  # four images a prompt
        until = noisy[0] + 1
        torch.testing.assert_close(first[:until], second[:until], rtol=0, atol=1e-6)
        assert (first[until] - second[until]).abs().max() > 0.01
        assert (first[0] - other[0]).abs().max() > 0.1
    assert len(set(starts)) > 1


def test_settings_without_effect_are_named(make_config: Make) -> None:
    assert without_effect(make_config(train__weighting="t", train__train_timesteps=6)) == []
    assert without_effect(make_config(train__batch_size=4)) == []  # the trainer's, though RFM looks at it, too
    fast = make_config(**(settings("flow_grpo_fast") | {"train__ema_beta": 1.0, "train__train_timesteps": 3}))
    assert without_effect(fast) == ["train.ema_beta", "train.train_timesteps"]
    weighted = make_config(**settings("rwr"), train__weighting="t", train__nft_beta=0.1)
    assert without_effect(weighted) == ["train.nft_beta", "train.weighting"]
