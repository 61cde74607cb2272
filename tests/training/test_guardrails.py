"""What the guardrails promise: a sign of trouble is said once, in words that help, and counted in the metrics."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from awm.configuration import default_config
from awm.training.guardrails import Guardrails, Limits, breaches
from awm.training.metrics import read_metrics
from awm.training.probe import PROBES, VelocityProbe
from tests.helpers import FakePolicy, TinyFlow, make_experience

LIMITS = Limits(**default_config().guardrails.to_dict())


def test_healthy_metrics_break_nothing_and_neither_do_missing_ones():
    healthy = {"reward/zero_std_ratio": 0.8, "reward/invalid_fraction": 0.02, "velocity_norm_ratio": 1.25}
    assert breaches(healthy, LIMITS) == {}
    assert breaches({"velocity_norm_ratio": 0.8}, LIMITS) == {}
    assert breaches({"epoch": 0, "reward/zero_std_ratio": None}, LIMITS) == {}
    assert breaches(dict.fromkeys(healthy, float("nan")), LIMITS) == {}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("reward/zero_std_ratio", 0.81, "81% of the prompts .* teach nothing.*more images per prompt"),
        ("reward/invalid_fraction", 0.021, "2.1% of the images have no score .* reward server's log"),
        ("velocity_norm_ratio", 1.26, "1.26 times as long .* train.beta"),
        ("velocity_norm_ratio", 0.79, "0.79 times as long"),
    ],
)
def test_each_limit_names_the_number_its_key_and_a_way_out(name: str, value: float, words: str):
    found = breaches({name: value}, LIMITS)
    assert list(found) == [name]
    warning = Guardrails(LIMITS).warnings(7, found)[0]
    assert warning.startswith(f"warning, epoch 7: {name}: ") and "\n" not in warning
    assert "guardrails." in warning
    assert re.search(words, warning)


def test_a_warning_comes_once_and_again_after_a_while_each_kind_by_itself():
    guardrails = Guardrails(replace(LIMITS, repeat_epochs=5))
    said = {
        epoch: len(guardrails.warnings(epoch, {"a": "x"} | ({"b": "y"} if epoch == 3 else {})))
        for epoch in range(1, 12)
    }
    assert [epoch for epoch, count in said.items() if count == 1] == [1, 3, 6, 11]
    assert sum(said.values()) == 4


def test_a_run_beyond_its_limits_goes_on_says_so_and_counts(
    make_config: Callable[..., ConfigDict], capsys: pytest.CaptureFixture[str]
):
    from tests.training.test_trainer import run

    config = make_config(
        num_epochs=3,
        eval_freq=0,
        guardrails__velocity_norm_high=1.0,
        guardrails__velocity_norm_low=1.0,
        train__beta=0.0,
    )
    folder = run(config).outputs.run
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["warnings"] for line in lines] == [int(line["velocity_norm_ratio"] != 1.0) for line in lines]
    assert lines[-1]["warnings"] == 1
    errors = capsys.readouterr().err
    assert errors.count("velocity_norm_ratio: the velocity is") == 1
    assert lines[-1]["lora/modules"] == 19


def test_an_evaluation_that_is_made_up_for_does_not_take_the_epoch_s_warnings_back(
    make_config: Callable[..., ConfigDict],
):
    from tests.training.test_trainer import build

    outputs = build(make_config()).outputs
    outputs.write_metrics({"epoch": 1, "time/epoch_s": 1.0, "images_per_s": 1.0, "reward/zero_std_ratio": 1.0})
    outputs.write_metrics({"epoch": 1, "eval/geneval": 0.5})
    outputs.finish()
    (line,) = read_metrics(outputs.run / "metrics.jsonl")
    assert (line["warnings"], line["eval/geneval"]) == (1, 0.5)


def test_the_probe_is_one_before_training_and_the_ratio_of_norms_afterwards():
    experience = make_experience(batch=6, shape=(4, 3, 3))
    policy = FakePolicy(TinyFlow())
    probe = VelocityProbe(policy, alone(), seed=0)
    assert probe(experience, 3) == pytest.approx(1.0)
    with torch.no_grad():
        policy.model.weight.copy_(torch.tensor([0.0, 0.0, 2.0]))
        for name in policy.sets:
            policy.sets[name]["weight"] = torch.tensor([0.0, 0.0, 1.0])
    policy.model.calls.clear()
    assert probe(experience, 3) == pytest.approx(2.0)
    assert policy.model.calls == [(6, False), (6, False)]


class Ranks:
    """As much of ``Distributed`` as the probe uses, for one of several ranks after another."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def alone() -> Ranks:
    return Ranks(0, 1)


@pytest.mark.parametrize("world_size", [2, 3, 4, 12])
def test_the_probe_does_not_depend_on_the_number_of_ranks_and_all_make_the_same_forwards(world_size: int):
    whole = make_experience(batch=12, shape=(4, 3, 3))
    policy = FakePolicy(TinyFlow())
    for weights in policy.sets.values():
        weights["weight"] = torch.tensor([1.0, 0.2, 0.4])
    expected = VelocityProbe(policy, alone(), seed=1)(whole, 0)
    policy.model.calls.clear()
    share = 12 // world_size
    parts = [
        VelocityProbe(policy, Ranks(rank, world_size), seed=1)(
            whole.take(torch.arange(rank * share, (rank + 1) * share)), 0
        )
        for rank in range(world_size)
    ]
    assert sum(parts) == pytest.approx(expected, rel=1e-5)
    assert set(policy.model.calls) == {(-(-PROBES // world_size), False)} and len(policy.model.calls) == 2 * world_size


def test_no_layer_to_adapt_is_an_error_before_training(make_config: Callable[..., ConfigDict], monkeypatch, tmp_path):
    from awm.models import lora
    from tests.training.test_trainer import build

    monkeypatch.setitem(lora.TARGETS, "attn", ("no_such_layer",))
    config = make_config()
    with pytest.raises(ValueError, match="binds to no layer"):
        build(config)
    assert not (Path(config.logdir) / "run").exists()
