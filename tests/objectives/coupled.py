"""An optimizer step of a loss that couples the images of a prompt, split over micro-batches and pretended ranks."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.interfaces import PreparesStep
from awm.objectives.awm import AWM
from awm.objectives.forward_process import ForwardProcess
from awm.types import Experience
from tests.helpers import FakePolicy, TinyFlow, make_experience

GRID = shifted_grid(14)
NOISE: dict[str, int] = {"seed": 0, "epoch": 3, "inner_epoch": 1}
KEY: dict[str, Any] = {**NOISE, "on_policy": False}
DOUBLE = torch.float64
SPLITS = [(1, 12), (1, 3), (1, 5), (1, 1), (2, 6), (2, 4), (4, 2), (6, 1)]  # ranks, size of a micro-batch


@dataclass(frozen=True)
class Step:
    loss: float
    gradient: Tensor
    metrics: dict[str, float]


def forward(**options: Any) -> ForwardProcess:
    return ForwardProcess(**{"grid": GRID, "train_timesteps": 3, "group_noise": True, **options})


def make_groups(size: int = 4, groups: int = 3) -> Experience:
    """Whole groups; the advantages of each sum to zero."""
    batch = make_experience(batch=size * groups, prompts=groups, dtype=DOUBLE)
    advantage = torch.randn(groups, size, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    advantage = 0.3 * (advantage - advantage.mean(1, keepdim=True))
    group = torch.arange(size * groups) // size
    return replace(batch, group=group, prompt_index=group, advantage=advantage.flatten())


def make_policy(*moved: str) -> FakePolicy:
    """A policy whose weight sets ``moved`` differ from the current one, each in its own way."""
    policy = FakePolicy(TinyFlow(dtype=DOUBLE))
    for number, name in enumerate(moved, start=1):
        policy.sets[name]["weight"] += number * torch.tensor([0.2, -0.1, 0.3], dtype=DOUBLE)
    return policy


def split(batch: Experience, ranks: int = 1, size: int | None = None) -> list[list[Experience]]:
    """[rank][micro-batch], each rank with equally many consecutive samples."""
    shares = torch.arange(len(batch)).chunk(ranks)
    return [[batch.take(rows) for rows in share.split(size or len(batch))] for share in shares]


def prepare(objective: PreparesStep, policy: FakePolicy, ranks: list[list[Experience]]) -> list[list[Experience]]:
    """The micro-batches with their group terms; each pretended rank is a thread, and ``gather`` waits for all."""
    meeting, slots = threading.Barrier(len(ranks), timeout=30), [torch.empty(0)] * len(ranks)

    def on_rank(rank: int) -> list[Experience]:
        def gather(values: Tensor) -> Tensor:
            slots[rank] = values
            meeting.wait()
            everything = torch.cat(slots)
            meeting.wait()
            return everything

        own = policy if len(ranks) == 1 else copy.deepcopy(policy)
        terms = objective.prepare_step(own, ranks[rank], **KEY, gather=gather)
        return [replace(batch, group_terms=term) for batch, term in zip(ranks[rank], terms, strict=True)]

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(on_rank, range(len(ranks))))


def take_step(objective: Any, policy: FakePolicy, ranks: list[list[Experience]]) -> Step:
    """Loss, gradient and metrics of the whole step: means over its valid samples, as the trainer takes them."""
    batches = [batch for rank in prepare(objective, policy, ranks) for batch in rank]
    count = sum(int(batch.valid.sum()) for batch in batches)
    loss, gradient, metrics = 0.0, torch.zeros(3, dtype=DOUBLE), {}
    for batch in batches:
        out = objective(policy, batch, **KEY)
        assert out.loss.shape == (len(batch),) and out.loss.requires_grad
        part = torch.where(batch.valid, out.loss, 0.0).sum() / count
        gradient += torch.autograd.grad(part, policy.model.weight)[0]
        loss += part.item()
        for name, value in out.metrics.items():
            assert value.shape == (len(batch),) and not value.requires_grad, name
            metrics[name] = metrics.get(name, 0.0) + torch.where(batch.valid, value, 0.0).sum().item() / count
    return Step(loss, gradient, metrics)


def assert_same(step: Step, other: Step) -> None:
    exact: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(torch.tensor(step.loss), torch.tensor(other.loss), **exact)
    torch.testing.assert_close(step.gradient, other.gradient, **exact)
    assert step.metrics.keys() == other.metrics.keys()
    for name, value in step.metrics.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(other.metrics[name]), **exact)


def current_and(name: str, policy: FakePolicy, batch: Experience, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """[T, B, C, H, W] velocities of current, with gradient, and of another weight set, and the target."""
    noised = forward(**options).noised(batch, **NOISE)
    other = noised.frozen_velocity(policy, name, 1.0)  # type: ignore[arg-type]
    return noised.velocity(policy, 1.0), other, noised.target


def awm_gradient(policy: FakePolicy, batch: Experience) -> Tensor:
    """Of AWM on policy, at the times and noise of ``forward()``."""
    awm = AWM(forward=forward(), weighting="Uniform")
    loss = awm(policy, batch, **{**KEY, "on_policy": True}).loss
    return torch.autograd.grad(loss.mean(), policy.model.weight)[0]
