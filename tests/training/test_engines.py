"""The same experiment on any number of ranks, with any engine, also when either changes in the middle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.configuration import config_to_dict
from awm.training.distributed import Distributed
from tests.training.rank_scenarios import count_reductions, refusal, train, train_all
from tests.training.ranks import run_ranks

Make = Callable[..., ConfigDict]
# Three groups of eight over two ranks: the second group crosses the border. Over four ranks all three do.
# One image a batch: the same arithmetic wherever a sample lands. Adam with a large epsilon: its step is then a smooth
# function of the gradient, whose last bits depend on the order of summation.
SAME_CUTS = {"sample__train_batch_size": 1, "sample__test_batch_size": 1, "train__batch_size": 1}
SMOOTH = {"sample__num_image_per_prompt": 8, "train__adam_epsilon": 1e-3, "train__updates_per_inner_epoch": 2}
FULL = {"use_lora": False}


@pytest.fixture
def write(make_config: Make, tmp_path: Path) -> Callable[..., str]:
    """A configuration file of this test's run folder."""

    def write(name: str, **changes: Any) -> str:
        config = make_config(run_name=name, **(SAME_CUTS | SMOOTH | changes))
        with config.unlocked():
            config.reward_fn = ConfigDict({"brightness": 1.0})
        path = tmp_path / f"{name}_{len(list(tmp_path.glob('*.json')))}.json"
        path.write_text(json.dumps(config_to_dict(config)))
        return str(path)

    return write


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, Any]]:
    """What one process made of a configuration, computed when first asked for."""
    return {}


@pytest.fixture
def alone(references: dict[str, dict[str, Any]], write: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    def alone(**changes: Any) -> dict[str, Any]:
        key = repr(sorted(changes.items()))
        if key not in references:
            references[key] = run_ranks(1, train, "ddp", write("alone", **changes))
        return references[key]

    return alone


def same_run(result: dict[str, Any], expected: dict[str, Any], gradient: float = 1e-5) -> None:
    """Samples, gradients, weights, optimizer state and metrics, up to the order of summation."""
    for name, tolerance in {"first_x_0": 1e-5, "x_0": 1e-5, "reward": 1e-6, "advantage": 1e-4}.items():
        torch.testing.assert_close(result[name], expected[name], rtol=0, atol=tolerance)
    pairs = zip(result["gradients"], expected["gradients"], strict=bool(result["gradients"]))
    for number, (got, want) in enumerate(pairs):
        tolerance = 10 * gradient if number else gradient  # later ones see what Adam made of the differences before
        torch.testing.assert_close(got / want.abs().max(), want / want.abs().max(), rtol=tolerance, atol=tolerance)
    same_end(result, expected, gradient)
    same_curve(result["metrics"], expected["metrics"])


def same_end(result: dict[str, Any], expected: dict[str, Any], gradient: float = 1e-5) -> None:
    assert result["weights"].keys() == expected["weights"].keys()
    for weights, tensors in expected["weights"].items():
        for name, tensor in tensors.items():
            got = result["weights"][weights][name]
            torch.testing.assert_close(got, tensor, rtol=1e-5, atol=gradient / 10, msg=lambda m, n=name: f"{n}: {m}")
    states, wanted = result["optimizer"]["state"], expected["optimizer"]["state"]
    assert states.keys() == wanted.keys()
    for number, state in wanted.items():
        assert float(states[number]["step"]) == float(state["step"])
        torch.testing.assert_close(states[number]["exp_avg"], state["exp_avg"], rtol=1e-4, atol=gradient / 100)


def same_curve(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Every deterministic metric of every epoch."""
    assert [line["epoch"] for line in lines] == [line["epoch"] for line in expected]
    for got, want in zip(lines, expected, strict=True):
        names = [n for n in want if not n.startswith(("time/", "images_per_s", "memory/"))]
        assert {n: got.get(n) for n in names} == pytest.approx({n: want[n] for n in names}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_run_does_not_depend_on_the_number_of_ranks(
    write: Callable[..., str], alone: Callable[..., dict[str, Any]], world_size: int
):
    result = run_ranks(world_size, train, "ddp", write("several"))
    assert result["shown"] == "DistributedDataParallel"
    same_run(result, alone())


@pytest.mark.parametrize(
    ("engine", "world_size", "changes"),
    [
        ("fsdp2", 2, {}),
        ("fsdp2", 4, FULL),
        ("fsdp2", 2, FULL | {"train__gradient_checkpointing": True}),
        ("ddp", 2, FULL),
    ],
)
def test_an_engine_changes_nothing_but_where_weights_are(
    write: Callable[..., str],
    alone: Callable[..., dict[str, Any]],
    engine: str,
    world_size: int,
    changes: dict[str, Any],
):
    result = run_ranks(world_size, train, engine, write(engine, **changes))
    assert result["shown"] == {"ddp": "DistributedDataParallel", "fsdp2": "FSDPSD3Transformer2DModel"}[engine]
    assert result["gradients"]
    same_run(result, alone(**{k: v for k, v in changes.items() if k == "use_lora"}))


@pytest.mark.parametrize(("engine", "changes"), [("zero1", FULL), ("zero2", {})])
def test_deepspeed_changes_nothing_but_where_optimizer_state_is(
    write: Callable[..., str], alone: Callable[..., dict[str, Any]], engine: str, changes: dict[str, Any]
):
    pytest.importorskip("deepspeed")
    result = run_ranks(2, train, engine, write(engine, **changes))
    assert result["shown"] == "DeepSpeedEngine"
    same_run(result, alone(**changes))


# All weights in bfloat16: after a step, last bits of the weights decide which way they are rounded. So one step. The
# blocks' gradients of the time embedding are added up in bfloat16, block by block under FSDP2: its last digits differ.
ONE_STEP = {"num_epochs": 1, "eval_freq": 0, "train__updates_per_inner_epoch": 1}


@pytest.mark.parametrize(("changes", "gradient"), [({}, 1e-5), (FULL | ONE_STEP, 1e-3)])
def test_half_precision_and_float32_are_sharded_together(
    write: Callable[..., str], changes: dict[str, Any], gradient: float
):
    runs = [(engine, write(engine, mixed_precision="bf16", **changes)) for engine in ("ddp", "fsdp2")]
    replicated, sharded = run_ranks(2, train_all, runs).values()
    same_run(sharded, replicated, gradient)


@pytest.mark.parametrize(
    ("first", "second"),
    [(("ddp", 2), ("ddp", 1)), (("ddp", 2), ("ddp", 4)), (("fsdp2", 2), ("fsdp2", 4)), (("fsdp2", 3), ("ddp", 1))],
)
def test_a_run_goes_on_with_other_ranks_and_engines(
    write: Callable[..., str],
    alone: Callable[..., dict[str, Any]],
    first: tuple[str, int],
    second: tuple[str, int],
):
    whole = {"num_epochs": 4, "eval_freq": 4}
    (before, before_ranks), (after, after_ranks) = first, second
    run_ranks(before_ranks, train, before, write("moved", **whole | {"num_epochs": 2, "eval_freq": 4}))
    result = run_ranks(after_ranks, train, after, write("moved", **whole, resume_from="auto"))
    expected = alone(**whole)
    same_end(result, expected)
    # The shorter run evaluates its last epoch, too; that evaluation is no part of the comparison.
    lines = [{k: v for k, v in line.items() if "eval" not in k or line["epoch"] != 2} for line in result["metrics"]]
    same_curve(lines, expected["metrics"])


def test_deepspeed_goes_on_with_other_ranks_and_engines(
    write: Callable[..., str], alone: Callable[..., dict[str, Any]]
):
    pytest.importorskip("deepspeed")
    whole = {"num_epochs": 4, "eval_freq": 4}
    run_ranks(2, train, "zero2", write("moved", **whole | {"num_epochs": 2}))
    run_ranks(1, train, "ddp", write("moved", **whole | {"num_epochs": 3}, resume_from="auto"))
    result = run_ranks(3, train, "zero1", write("moved", **whole, resume_from="auto"))
    same_end(result, alone(**whole))


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_gradients_are_reduced_once_per_update_however_many_micro_batches(write: Callable[..., str], engine: str):
    few = run_ranks(2, count_reductions, engine, write("few", train__batch_size=2, num_epochs=1))
    many = run_ranks(2, count_reductions, engine, write("many", train__batch_size=1, num_epochs=1))
    assert few == many
    assert few > 0


@pytest.mark.parametrize(
    ("engine", "changes", "environment", "message"),
    [
        ("fsdp2", {"mixed_precision": "fp16"}, {}, "FSDP2 does not share; use bf16"),
        ("fsdp2", {}, {"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ("fsdp2", {}, {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true is not supported"),
        ("fsdp2", {}, {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "would leave the text encoders"),
        ("fsdp2", {"train__use_8bit_adam": True}, {}, "in blocks that FSDP2 cannot cut; use DDP"),
        ("fsdp2", {}, {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}, "FSDP2 finds no Block in this"),
        ("zero2", {}, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO stage 3 is not supported"),
        ("zero2", {}, {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device: cpu"),
    ],
)
def test_an_engine_that_cannot_do_it_says_so(
    write: Callable[..., str], engine: str, changes: dict[str, Any], environment: dict[str, str], message: str
):
    assert message in run_ranks(1, refusal, engine, write("refused", **changes), environment)


def test_deepspeed_that_is_not_installed_is_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("awm.training.engines.choice.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install deepspeed"):
        Distributed()


def test_sizes_that_follow_from_batches_or_ranks_must_not_change_in_a_run(write: Callable[..., str]):
    # 24 images a rank and pass: 12 micro-batches of two, in steps of six.
    implied = {"train__updates_per_inner_epoch": None, "train__batch_size": 2, "num_epochs": 1, "eval_freq": 0}
    run_ranks(1, train, "ddp", write("sized", **implied, train__gradient_accumulation_steps=6))
    changed = write("sized", **implied, train__gradient_accumulation_steps=3, resume_from="auto")
    assert "updates per pass: 2 there, 4 now" in run_ranks(1, refusal, "ddp", changed, {})
