"""What trying batch sizes promises on the device itself: true numbers, and nothing left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.building import build_objective, build_policy, build_rollout_sampler
from awm.building.batch_sizes import meter_of
from awm.models.policy import Policy
from awm.training.autosize import probe
from awm.training.memory_meter import CudaMeter, MemoryMeter
from awm.training.trials import SamplingTrial, TrainingTrial, measured
from tests.building.test_batch_sizes import OPEN
from tests.devices import CUDA, require_device_of_runs
from tests.training.test_trainer import build, run

Make = Callable[..., ConfigDict]
Trial = Callable[[int], None]
MIB = 2**20
ROOM = 128 * MIB  # that a GPU has left in ``little_memory``
MANY = 8192  # images that need far more
only_on_a_gpu = pytest.mark.parametrize("device", [CUDA], indirect=True)


class NoMeter:
    """In place of a GPU's, on a CPU: nothing needs anything, and there is no end of it."""

    def free(self) -> int:
        return 2**50

    def start(self) -> None: ...

    def peak(self) -> int:
        return 0

    def clear(self) -> None: ...


class Alone:
    """The only rank."""

    def gather_objects(self, items: list[Any]) -> list[Any]:
        return items


def meter_for(device: torch.device) -> MemoryMeter:
    return meter_of(device) or NoMeter()


def bytes_in_tensors(device: torch.device) -> int:
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@contextmanager
def little_memory(device: torch.device, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU's allocator gives no more than ``ROOM``; on a CPU a forward of very many rows fails as it would."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + ROOM) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    velocity = policy.model.velocity

    def small(x_t: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(x_t) >= MANY:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return velocity(x_t, *args)

    with monkeypatch.context() as patch:
        patch.setattr(policy.model, "velocity", small)
        yield


@pytest.fixture(params=["training", "sampling"])
def trial(request: pytest.FixtureRequest, make_config: Make, device: torch.device) -> tuple[Policy, Trial]:
    """The run's own work on a policy in bfloat16 with a merged copy."""
    config = make_config(mixed_precision="bf16", sample__merge_lora=True, train__beta=0.1, **OPEN)
    policy = build_policy(config, device)
    condition, shape = policy.model.encode([""]), policy.model.latent_shape(config.resolution)
    if request.param == "sampling":
        return policy, SamplingTrial(policy, condition, shape, guidance_scale=4.5)
    return policy, TrainingTrial(policy, build_objective(config), build_rollout_sampler(config), condition, shape, 4)


def test_trials_leave_memory_weights_gradients_and_random_numbers_as_they_were(
    trial: tuple[Policy, Trial], device: torch.device
):
    policy, work = trial
    peak = measured(work, meter_for(device), device)
    for size in (1, 2, 8):  # the first ones make cuBLAS's workspaces, which stay
        peak(size)
    weights = [parameter.detach().clone() for parameter in policy.trainable_parameters()]
    held, host = bytes_in_tensors(device), torch.get_rng_state()
    drawn = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    peaks = [peak(size) for size in (1, 2, 8)]
    assert None not in peaks
    assert bytes_in_tensors(device) == held
    assert all(parameter.grad is None for parameter in policy.trainable_parameters())
    assert all(torch.equal(a, b) for a, b in zip(policy.trainable_parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), host)
    if drawn is not None:
        assert torch.equal(torch.cuda.get_rng_state(device), drawn)
        assert all(size > held for size in peaks if size is not None)


def test_memory_that_runs_out_in_a_trial_is_all_given_back_and_the_next_trial_runs(
    trial: tuple[Policy, Trial], device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    policy, work = trial
    peak = measured(work, meter_for(device), device)
    peak(2)
    held = bytes_in_tensors(device)
    with little_memory(device, policy, monkeypatch):
        assert peak(MANY) is None
        assert bytes_in_tensors(device) == held
        assert all(parameter.grad is None for parameter in policy.trainable_parameters())
        assert peak(2) is not None


def test_the_search_gets_past_memory_that_runs_out(
    trial: tuple[Policy, Trial], device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    policy, work = trial
    meter, ranks = meter_for(device), Alone()
    measured(work, meter, device)(2)
    held = bytes_in_tensors(device)
    with little_memory(device, policy, monkeypatch):
        # The driver says that far more is free than the allocator will give.
        fit = probe([1, 2, MANY], work, meter=meter, to_come=0, device=device, distributed=ranks)  # type: ignore[arg-type]
    assert fit.size == 2 and fit.tried[MANY] is None and not fit.is_tight
    assert bytes_in_tensors(device) == held


def test_a_run_with_open_sizes_finds_them_and_trains(
    make_config: Make, device: torch.device, capsys: pytest.CaptureFixture[str]
):
    require_device_of_runs(device)
    trainer = run(make_config(num_epochs=1, eval_freq=0, mixed_precision="bf16", **OPEN))
    assert trainer.distributed.device.type == device.type
    # All of the epoch's images at once, and four sampling batches: these need megabytes.
    assert (trainer.geometry.micro_batch_size, trainer.geometry.sample_batch_size) == (12, 3)
    assert ("trials" if device.type == "cuda" else "by an estimate") in capsys.readouterr().out
    assert trainer.step == 1


def test_building_with_trials_holds_no_more_than_building_without(make_config: Make, device: torch.device):
    require_device_of_runs(device)
    held = []
    given = {"train__batch_size": 12, "sample__train_batch_size": 3, "sample__test_batch_size": 3}
    build(make_config(run_name="warm", eval_freq=0, **OPEN))  # cuBLAS's workspaces
    for name, sizes in (("told", given), ("found", OPEN)):
        before = bytes_in_tensors(device)
        trainer = build(make_config(run_name=name, eval_freq=0, **sizes))
        held.append(bytes_in_tensors(device) - before)
        assert trainer.geometry.micro_batch_size == 12
        del trainer
    assert held[0] == held[1]


@only_on_a_gpu
def test_the_meter_sees_tensors_come_and_go(device: torch.device):
    meter, size = CudaMeter(device), 512 * MIB
    torch.ones(8, device=device).sum().item()  # the context, and the first kernels
    meter.clear()
    held, reserved, free = bytes_in_tensors(device), torch.cuda.memory_reserved(device), meter.free()
    tensor = torch.empty(size, dtype=torch.uint8, device=device)
    assert meter.peak() == held + size
    # What this process has may be in use, too: only others change what is free.
    assert meter.free() == pytest.approx(free, abs=64 * MIB)
    del tensor
    assert meter.peak() == held + size
    meter.start()
    assert meter.peak() == held
    meter.clear()
    assert torch.cuda.memory_reserved(device) == reserved
    total = torch.cuda.get_device_properties(device).total_memory
    assert 0 < CudaMeter(device, headroom=0.5).free() < meter.free() < total


@only_on_a_gpu
def test_more_than_there_is_counts_as_memory_that_ran_out(device: torch.device):
    total = torch.cuda.get_device_properties(device).total_memory

    def greedy(images: int) -> None:
        kept: list[Any] = [torch.empty(MIB, dtype=torch.uint8, device=device)]
        kept.append(kept)  # a cycle, as the frames of an error make
        torch.empty(2 * total * images, dtype=torch.uint8, device=device)

    held = bytes_in_tensors(device)
    assert measured(greedy, CudaMeter(device), device)(1) is None
    assert bytes_in_tensors(device) == held


@only_on_a_gpu
def test_a_training_step_s_memory_grows_by_its_rows(make_config: Make, device: torch.device):
    """What the search predicts large sizes with; see awm/training/fitting.py."""
    config = make_config(mixed_precision="bf16", **OPEN)
    policy = build_policy(config, device)
    condition, shape = policy.model.encode([""]), policy.model.latent_shape(config.resolution)
    work = TrainingTrial(policy, build_objective(config), build_rollout_sampler(config), condition, shape, 4)
    peak = measured(work, CudaMeter(device), device)
    sizes = (8, 64, 256)
    for size in sizes:
        peak(size)
    small, medium, large = (peak(size) or 0 for size in sizes)
    assert 0 < small < medium < large
    assert (large - medium) / (medium - small) == pytest.approx((256 - 64) / (64 - 8), rel=0.25)
