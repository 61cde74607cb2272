"""What a run promises on the device it trains on: it goes on where it stopped; abandoned epochs leave nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.training import parity
from awm.training import trainer as trainer_module
from awm.training.metrics import read_metrics
from awm.training.stopping import StopRequestedError
from awm.training.trainer import Trainer
from tests.devices import require_device_of_runs
from tests.training.test_trainer import build, run, timeless

Make = Callable[..., ConfigDict]
pytestmark = pytest.mark.usefixtures("of_runs")


@pytest.fixture
def of_runs(device: torch.device) -> None:
    require_device_of_runs(device)


def adamw(trainer: Trainer) -> torch.optim.AdamW:
    optimizer: Any = trainer.update.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
    assert isinstance(optimizer, torch.optim.AdamW)
    return optimizer


def state_of(trainer: Trainer) -> tuple[dict[str, Any], dict[int, Any]]:
    return trainer.policy.state_dict(), copy.deepcopy(adamw(trainer).state_dict()["state"])


def assert_same_bits(actual: Any, expected: Any, where: str = "") -> None:
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_same_bits(actual[key], expected[key], f"{where} {key}")
    elif isinstance(expected, torch.Tensor):
        assert actual.device == expected.device and torch.equal(actual, expected), where
    else:
        assert actual == expected, where


def lines(trainer: Trainer) -> list[dict[str, Any]]:
    return timeless(read_metrics(trainer.outputs.run / "metrics.jsonl"))


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_is_saved_and_resumed_bit_for_bit(make_config: Make, device: torch.device, precision: str):
    options = {"mixed_precision": precision, "train__updates_per_inner_epoch": 2}
    whole = run(make_config(run_name="whole", num_epochs=2, **options))
    part = make_config(run_name="part", num_epochs=1, **options)
    run(part)
    part.num_epochs, part.resume_from = 2, "auto"
    resumed = run(part)
    assert resumed.distributed.device.type == device.type
    assert bool(adamw(resumed).param_groups[0]["fused"]) is (device.type == "cuda")
    assert whole.step == resumed.step == 4
    for actual, expected in zip(state_of(resumed), state_of(whole), strict=True):
        assert_same_bits(actual, expected)
    # The evaluation after one epoch is only the shorter run's.
    with_images = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in lines(whole)]
    assert [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in lines(resumed)] == with_images


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("first", [True, False], ids=["the first epoch", "a later epoch"])
def test_an_abandoned_epoch_is_undone_bit_for_bit_and_done_again(make_config: Make, device: torch.device, first: bool):
    options = {"eval_freq": 0, "mixed_precision": "bf16", "train__updates_per_inner_epoch": 2}
    config = make_config(run_name="stopped", num_epochs=1, **options)
    trainer = build(config)
    if not first:
        trainer.train()
        trainer.schedule = replace(trainer.schedule, num_epochs=2)
    before, steps = state_of(trainer), list[int]()
    moved = list[bool]()
    weights = [parameter.detach().clone() for parameter in trainer.policy.trainable_parameters()]

    def stepped(*_: Any) -> None:
        steps.append(1)
        now = trainer.policy.trainable_parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(now, weights, strict=True)))

    adamw(trainer).register_step_post_hook(stepped)
    trainer.outputs.stop.agreed = lambda: bool(steps)  # type: ignore[method-assign]
    with pytest.raises(StopRequestedError):
        trainer.train()
    assert (len(steps), moved, trainer.epoch) == (1, [True], 0 if first else 1)
    for actual, expected in zip(state_of(trainer), before, strict=True):
        assert_same_bits(actual, expected)
    assert all(parameter.grad is None for parameter in trainer.policy.trainable_parameters())
    assert trainer.distributed.device.type == device.type

    del trainer.outputs.stop.agreed
    trainer.schedule = replace(trainer.schedule, num_epochs=2)
    trainer.train()
    trainer.outputs.finish()
    whole = run(make_config(run_name="whole", num_epochs=2, **options))
    for actual, expected in zip(state_of(trainer), state_of(whole), strict=True):
        assert_same_bits(actual, expected)


def test_a_merged_run_in_bfloat16_gets_finite_rewards_and_samples_what_it_trains(
    make_config: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(parity, "IMAGES", 8)
    monkeypatch.setattr(trainer_module, "AGAIN_AFTER", 1)
    trainer = run(make_config(mixed_precision="bf16", sample__merge_lora=True))
    assert trainer.distributed.device.type == device.type
    assert all(parameter.device.type == device.type for parameter in trainer.policy.trainable_parameters())
    assert "with faster weights: reward" in capsys.readouterr().out
    base, first, second = lines(trainer)
    for line in (first, second):
        for name in ("reward/mean", "reward/std", "loss", "grad_norm", "velocity_norm_ratio"):
            assert math.isfinite(line[name]), name
        assert line["reward/invalid_fraction"] == 0 and line["reward/std"] > 0 and line["grad_norm"] > 0
    assert first["velocity_norm_ratio"] == pytest.approx(1.0, abs=1e-2)  # B = 0
    assert math.isfinite(base["eval/jpeg_compressibility"])
    assert second["parity/exceeded"] == 0 and 0 < second["parity/latent_gap"] < 0.05
