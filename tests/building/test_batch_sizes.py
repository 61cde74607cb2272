"""What batch sizes of 0 promise: a run that finds its own, keeps them, and computes what it would have computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.building import batch_sizes, build_objective
from awm.configuration import config_to_dict
from awm.training.autosize import sampling_sizes, size_for_cpu, training_sizes
from awm.training.memory_meter import is_out_of_memory
from awm.training.metrics import read_metrics
from awm.validation import geometry, validate
from tests.training.rank_scenarios import found_batch_sizes, refusal
from tests.training.ranks import run_ranks
from tests.training.test_trainer import build, run

Make = Callable[..., ConfigDict]
OPEN = {"train__batch_size": 0, "sample__train_batch_size": 0, "sample__test_batch_size": 0}


class RowsMeter:
    """Memory as if only rows of forwards took any: 100 bytes, and 10 for each image of the last trial."""

    def __init__(self, free: int, runs_out_at: int = 10**9) -> None:
        self.bytes_free, self.runs_out_at = free, runs_out_at
        self.sizes: list[int] = []
        self.cleared = 0

    def free(self) -> int:
        return self.bytes_free

    def start(self) -> None: ...

    def peak(self) -> int:
        return 100 + 10 * self.sizes[-1]

    def clear(self) -> None:
        self.cleared += 1


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RowsMeter]:
    """A meter in place of a GPU's, which sees how many images each trial had and lets memory run out."""

    def install(free: int, runs_out_at: int = 10**9) -> RowsMeter:
        meter = RowsMeter(free, runs_out_at)

        def watched(trial: Any) -> Any:
            def run(self: Any, images: int) -> None:
                meter.sizes.append(images)
                trial(self, images)
                if images >= meter.runs_out_at:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

            return run

        for kind in (batch_sizes.TrainingTrial, batch_sizes.SamplingTrial):
            monkeypatch.setattr(kind, "__call__", watched(kind.__call__))
        monkeypatch.setattr(batch_sizes, "meter_of", lambda device: meter)
        monkeypatch.setattr(batch_sizes.ToCome, "bytes", property(lambda self: 0))
        return meter

    return install


def test_candidates_cut_evenly_and_leave_batches_to_overlap_with(make_config: Make):
    sizes = geometry(make_config(**OPEN, train__updates_per_inner_epoch=2), 1)
    assert training_sizes(sizes) == [1, 2, 3, 6]  # 12 images in two updates
    assert sampling_sizes(sizes) == [1, 2, 3]  # four batches
    few = geometry(make_config(**OPEN, sample__num_prompts_per_epoch=1, sample__num_image_per_prompt=2), 1)
    assert sampling_sizes(few) == [1]


def test_a_run_finds_its_sizes_says_and_keeps_them(make_config: Make, metered: Any, capsys: pytest.CaptureFixture[str]):
    meter = metered(free=145)
    trainer = run(make_config(**OPEN))
    out = capsys.readouterr().out
    said = "train.batch_size=4, sample.train_batch_size=3, sample.test_batch_size=3"
    assert out.count("batch sizes: ") == 1 and said in out
    assert meter.sizes == [1, 2, 4, 1, 2, 3] and meter.cleared == 6
    assert (trainer.geometry.micro_batch_size, trainer.geometry.sample_batch_size) == (4, 3)
    assert trainer.rollout.batch_size == 3 and trainer.update.geometry == trainer.geometry
    folder = trainer.outputs.run
    written = json.loads((folder / "config.json").read_text())
    assert (written["train"]["batch_size"], written["sample"]["test_batch_size"]) == (4, 3)
    assert read_metrics(folder / "metrics.jsonl")[-1]["batch_size/train.batch_size"] == 4


def test_the_run_is_the_one_that_would_have_been_given_these_sizes(make_config: Make, metered: Any):
    metered(free=145, runs_out_at=6)
    given = {"train__batch_size": 4, "sample__train_batch_size": 3, "sample__test_batch_size": 3}
    torch.manual_seed(1)
    found = run(make_config(run_name="found", **OPEN))
    after = torch.rand(3)
    torch.manual_seed(1)
    told = run(make_config(run_name="told", **given))
    assert torch.equal(after, torch.rand(3))  # the trials used up no random numbers
    for weights, tensors in told.policy.state_dict().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found.policy.state_dict()[weights][name]), f"{weights} {name}"


def test_a_resumed_run_computes_with_the_same_sizes(
    make_config: Make, metered: Any, capsys: pytest.CaptureFixture[str]
):
    whole = run(make_config(run_name="whole", num_epochs=4, **(OPEN | {"train__batch_size": 4})))
    metered(free=145)
    run(make_config(run_name="part", num_epochs=2, **OPEN))
    meter = metered(free=10**6)  # more is free by now
    part = run(make_config(run_name="part", num_epochs=4, resume_from="auto", **OPEN))
    assert meter.sizes == []
    assert (part.geometry.micro_batch_size, part.geometry.sample_batch_size) == (4, 3)
    assert "as before, from" in capsys.readouterr().out
    assert whole.geometry.micro_batch_size == 4
    for name, tensor in whole.policy.state_dict()["average"].items():
        torch.testing.assert_close(part.policy.state_dict()["average"][name], tensor, rtol=1e-3, atol=1e-5)


def test_another_machine_or_setting_is_asked_again(make_config: Make, metered: Any):
    metered(free=145)
    run(make_config(num_epochs=1, **OPEN))
    meter = metered(free=125)
    changed = make_config(num_epochs=2, resume_from="auto", train__gradient_checkpointing=True, **OPEN)
    assert run(changed).geometry.micro_batch_size == 2
    assert meter.sizes


def test_one_that_was_given_stays(make_config: Make, metered: Any):
    metered(free=10**6)
    trainer = build(make_config(train__batch_size=0, sample__train_batch_size=5, sample__test_batch_size=0))
    assert trainer.geometry.micro_batch_size == 12
    assert trainer.geometry.sample_batch_size == 5
    assert trainer.outputs.evaluations["eval/"].rollout.batch_size == 5


def test_memory_that_runs_out_in_a_trial_leaves_nothing_behind(make_config: Make, metered: Any):
    meter = metered(free=10**6, runs_out_at=4)
    trainer = build(make_config(**OPEN))
    assert trainer.geometry.micro_batch_size == 3 and 4 in meter.sizes
    assert all(parameter.grad is None for parameter in trainer.policy.trainable_parameters())
    weights = trainer.policy.state_dict()
    for name, tensor in build(make_config(run_name="given")).policy.state_dict()["current"].items():
        assert torch.equal(tensor, weights["current"][name])


def test_when_nothing_fits_the_run_says_what_to_do(make_config: Make, metered: Any):
    metered(free=10**6, runs_out_at=1)
    with pytest.raises(ValueError, match=r"train.batch_size=0: memory runs out with a single image.*checkpointing"):
        build(make_config(**OPEN))


def test_a_tight_fit_is_taken_with_a_warning(make_config: Make, metered: Any, capsys: pytest.CaptureFixture[str]):
    metered(free=50)
    assert build(make_config(**OPEN)).geometry.micro_batch_size == 1
    assert "memory may run out" in capsys.readouterr().out


def test_other_errors_of_a_trial_are_not_swallowed(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_sizes, "meter_of", lambda device: RowsMeter(10**6))

    def broken(self: Any, images: int) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(batch_sizes.TrainingTrial, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        build(make_config(**OPEN))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_has_many_names(error: Exception, expected: bool):
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize("algorithm", ["simpo", "rfm", "dpo", "flow_grpo"])
def test_every_kind_of_objective_can_be_tried(make_config: Make, metered: Any, algorithm: str):
    changes: dict[str, Any] = dict(OPEN)
    if algorithm == "simpo":
        changes |= {"train__simpo_target_kl": 0.5}
    if algorithm == "dpo":
        changes |= {"train__group_noise": True}
    if algorithm == "flow_grpo":
        changes |= {"sample__sampler": "flow_sde", "sample__sde_frac": 0.5, "sample__noise_level": 0.7}
        changes |= {"train__ema_beta": 0.0}
    metered(free=125)
    trainer = build(make_config(train__algorithm=algorithm, **changes))
    assert trainer.geometry.micro_batch_size == 2


def test_a_cpu_is_not_tried_but_estimated(make_config: Make, capsys: pytest.CaptureFixture[str]):
    trainer = run(make_config(num_epochs=1, **OPEN))
    assert (trainer.geometry.micro_batch_size, trainer.geometry.sample_batch_size) == (12, 3)
    assert "by an estimate" in capsys.readouterr().out


def test_what_a_cpu_takes_is_bounded_by_rows_and_by_memory():
    sizes = [1, 2, 4, 8, 16, 32, 64]
    assert size_for_cpu(sizes, rows=4, most_rows=128, bytes_per_row=10, available=10**9) == 32
    assert size_for_cpu(sizes, rows=4, most_rows=128, bytes_per_row=10, available=1_000) == 8  # half of it: 50 rows
    assert size_for_cpu(sizes, rows=4, most_rows=128, bytes_per_row=10**6, available=1_000) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__gradient_accumulation_steps": 2}, r"train.batch_size=0 lets.*gradient_accumulation_steps=2 counts"),
        ({"train__num_batches_per_epoch": 2}, r"train.batch_size=0 lets.*updates_per_inner_epoch"),
        ({"sample__num_batches_per_epoch": 2}, r"sample.train_batch_size=0 lets.*num_prompts_per_epoch"),
        ({"train__batch_size": -1}, r"train.batch_size=-1 is not valid; it must be at least 0"),
    ],
)
def test_nothing_of_the_experiment_may_follow_from_an_open_size(
    make_config: Make, changes: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        validate(make_config(**(OPEN | changes)))


def test_a_reward_s_gradient_needs_a_number(make_config: Make):
    config = make_config(train__algorithm="rfm", train__rfm_estimator="combined", **OPEN)
    with pytest.raises(ValueError, match=r"train.batch_size=0 does not know what the reward's gradient needs"):
        batch_sizes.check_open_sizes(config, build_objective(config))


def test_ranks_agree_on_what_the_fullest_of_them_can_do(make_config: Make, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_to_dict(make_config(num_epochs=1, **OPEN))))
    sizes, weights_are_equal = run_ranks(2, found_batch_sizes, str(path))
    assert sizes == [(2, 1), (2, 1)]  # the second rank runs out of memory with 3 images of its 6
    assert weights_are_equal


def test_an_engine_whose_ranks_would_wait_for_each_other_refuses(make_config: Make, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_to_dict(make_config(use_lora=False, **OPEN))))
    assert "FSDP2 spreads them over the ranks" in run_ranks(2, refusal, "fsdp2", str(path), {})
