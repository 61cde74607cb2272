"""A GPU works through a queue that the host fills; what asks for a number back, or brings one, empties it first.

On a CPU nothing is queued; there, reading a number and making a constant are seen, copies to the device are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from awm.building import build_objective, build_optimizer, build_policy, build_rollout_sampler
from awm.flow.rng import SampleNoise
from awm.flow.times import edit_ends, shifted_grid
from awm.models.policy import Policy
from awm.samplers.sa_solver import SASolver
from awm.training.micro_batches import micro_batches
from awm.training.stand_in import stand_in_experience
from awm.training.update import masked_sum
from awm.types import Condition, Experience, LossOutput
from tests.devices import require_device_of_runs
from tests.training.test_trainer import build

Make = Callable[..., ConfigDict]


class NoReading(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host has to know."""

    READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert operation not in self.READS, f"{operation} waits for the device"
        return operation(*args, **(kwargs or {}))


class NoBringing(TorchFunctionMode):
    """Refuses tensors made of the host's numbers."""

    MAKES = (torch.tensor, torch.as_tensor, torch.from_numpy)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert function not in self.MAKES, f"{function} copies to the device, and waits for it"
        return function(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """What makes the host wait for the device is an error inside the block."""
    if device.type == "cpu":
        with NoReading(), NoBringing():
            yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_policy(config: ConfigDict, device: torch.device) -> tuple[Policy, Condition]:
    """Five weight sets that differ, as after an epoch."""
    policy = build_policy(config, device)
    policy.snapshot_rollout()
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.05
    policy.current_moved()
    return policy, policy.model.encode(["a photo of a star", "a photo of a ring"])


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
    ],
    ids=["item", "bool", "nonzero", "constant"],
)
def test_waiting_is_noticed(device: torch.device, waits: Callable[[torch.Tensor], Any]):
    x = torch.ones(3, device=device)
    with pytest.raises((AssertionError, RuntimeError), match=r"wait|synchroniz"), no_waiting(device):
        waits(x)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16", "train__beta": 0.1},
        {"train__beta": 0.1, "train__kl_timesteps": 1},
        {"time_type": "logit_normal", "train__group_noise": True},
        {"time_type": "uniform", "mixed_precision": "bf16", "sample__guidance_scale": 3.0, "train__cfg": True},
        {"train__algorithm": "nft"},
    ],
    ids=lambda changes: ",".join(f"{k.split('__')[-1]}={v}" for k, v in changes.items()),
)
def test_a_micro_batch_s_loss_and_gradient_wait_for_nothing(
    make_config: Make, device: torch.device, changes: dict[str, Any]
):
    config = make_config(**changes)
    policy, condition = make_policy(config, device)
    objective = build_objective(config)
    shape = policy.model.latent_shape(config.resolution)
    samples = stand_in_experience(
        build_rollout_sampler(config), condition, 6, shape, images_per_prompt=4, group_size=2, keep_trajectory=False
    )
    samples = replace(samples, prompt_index=torch.arange(6, device=samples.prompt_index.device) % 2)
    batches = micro_batches(samples, 2)

    def work(number: int) -> torch.Tensor:
        output = objective(policy, batches[number], seed=0, epoch=number, inner_epoch=0, on_policy=False)
        loss = masked_sum(output.loss, batches[number].valid)
        loss.backward()
        return loss.detach()

    work(0)  # makes the gradients, and the constants of these settings
    with no_waiting(device):
        losses = torch.stack([work(1), work(2)])
    assert torch.isfinite(losses).all()
    assert all(parameter.grad is not None for parameter in policy.trainable_parameters())


def test_losses_of_a_run_wait_for_nothing_after_the_first(make_config: Make, device: torch.device):
    """With the samples as an epoch makes them, and the weight sets as it moves them."""
    require_device_of_runs(device)
    trainer = build(make_config(mixed_precision="bf16", eval_freq=0, train__beta=0.1, train__batch_size=2))
    objective, calls = trainer.update.objective, list[str]()

    class Watched:
        needs = objective.needs

        def __call__(self, policy: Policy, batch: Experience, **key: Any) -> LossOutput:
            assert (batch.x_0.device.type, batch.prompt_index.device.type) == (device.type, device.type)
            with no_waiting(device) if calls else nullcontext():
                calls.append("loss")
                return objective(policy, batch, **key)

    trainer.update.objective = Watched()
    trainer.train()
    trainer.outputs.finish()
    assert len(calls) == 2 * 6  # epochs, of 12 images


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("merge", [False, True], ids=["adapters", "merged"])
def test_steps_of_sa_solver_wait_for_nothing(make_config: Make, device: torch.device, merge: bool, precision: str):
    policy, condition = make_policy(make_config(mixed_precision=precision, sample__merge_lora=merge), device)
    shape = policy.model.latent_shape(32)
    sampler = SASolver(grid=edit_ends(shifted_grid(4)), noise_level=0.7)
    assert any(step.noise_weight > 0 and step.corrector for step in sampler.steps)

    @torch.no_grad()
    def sample(epoch: int) -> torch.Tensor:
        noise = SampleNoise(0, "rollout", epoch, [0, 1], device)
        with policy.sampling("current"):
            trajectory = sampler(
                lambda x_t, t: policy.model.velocity(x_t, t, condition, 4.5),
                noise.randn(shape),
                lambda: noise.randn(shape),
                keep_states=True,
            )
        return trajectory.x_0

    warm = sample(0)
    with no_waiting(device):
        x_0 = sample(0)
        sample(1)
    torch.testing.assert_close(x_0, warm)


def test_an_optimizer_step_waits_for_nothing(make_config: Make, device: torch.device):
    config = make_config(mixed_precision="bf16")
    policy = build_policy(config, device)
    optimizer = build_optimizer(config, policy)

    def step() -> None:
        for parameter in policy.trainable_parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        policy.update_anchor(0.5)
        policy.update_average(0.9)

    step()
    if device.type == "cuda":  # elsewhere AdamW reads the number of its steps
        with no_waiting(device):
            step()
    assert bool(optimizer.param_groups[0]["fused"]) is (device.type == "cuda")
