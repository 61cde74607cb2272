"""How much work an epoch is: the forwards that a sampler and an objective make, counted by running them on a toy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from awm.interfaces import Objective, Policy, PreparesEpoch, PreparesStep, Sampler, VariesByEpoch, WeightSet
from awm.training.geometry import Geometry
from awm.types import Condition, Experience, GroupMates, Trajectory


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of transformer forwards for one image.

    Attributes:
        plain: without gradient.
        trained: with gradient, forward and backward.
    """

    plain: float = 0.0
    trained: float = 0.0


def sampling_rows(sampler: Sampler, guidance_scale: float) -> Rows:
    """What sampling one image takes; guidance doubles the rows."""
    toy = _Toy()
    _sample(sampler, toy, guidance_scale, keep_states=False)
    return Rows(plain=toy.plain)


def training_rows(objective: Objective, sampler: Sampler, sizes: Geometry) -> Rows:
    """What one image takes in an epoch: all passes, of which only the first update is on policy."""
    kinds = []
    for on_policy in (True, False):
        toy = _Toy()
        policy, batch = cast(Policy, _ToyPolicy(toy)), _one_sample(sampler)
        if isinstance(objective, PreparesEpoch):
            batch, _ = objective.prepare(policy, batch, seed=0, epoch=0, gather=lambda values: values)
        prepared, toy.plain = toy.plain, 0  # once an epoch, not in every pass
        key: dict[str, Any] = {"seed": 0, "epoch": 0, "inner_epoch": 0, "on_policy": on_policy}
        if isinstance(objective, PreparesStep):
            terms = objective.prepare_step(policy, [batch], **key, gather=lambda values: values)
            batch = replace(batch, group_terms=terms[0])
        with torch.enable_grad():
            objective(policy, batch, **key)
        kinds.append(toy)
    first = 1 / sizes.updates_per_pass
    rest = sizes.num_passes - first
    plain, trained = (first * getattr(kinds[0], n) + rest * getattr(kinds[1], n) for n in ("plain", "trained"))
    return Rows(prepared + plain, trained)


def groups_of(rank: int, sizes: Geometry) -> range:
    """Numbers of the groups that ``rank`` holds images of."""
    first = rank * sizes.images_per_rank
    return range(first // sizes.images_per_prompt, (first + sizes.images_per_rank - 1) // sizes.images_per_prompt + 1)


def shared_groups(sizes: Geometry) -> dict[int, list[int]]:
    """Groups that cross the border between ranks: group -> its ranks."""
    ranks: dict[int, list[int]] = {}
    for rank in range(sizes.world_size):
        for group in groups_of(rank, sizes):
            ranks.setdefault(group, []).append(rank)
    return {group: held for group, held in ranks.items() if len(held) > 1}


class _Toy:
    """A model of one latent pixel that counts its rows."""

    def __init__(self) -> None:
        self.transformer: nn.Module = nn.Linear(1, 1)
        self.plain = self.trained = 0

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, guidance_scale: float = 1.0) -> Tensor:
        rows = len(x_t) * (1 if guidance_scale == 1.0 else 2)
        if torch.is_grad_enabled():
            self.trained += rows
        else:
            self.plain += rows
        velocity: Tensor = self.transformer(x_t)
        return velocity

    def encode(self, text: Sequence[str]) -> Condition:
        return Condition(torch.zeros(len(text), 1, 1), torch.zeros(len(text), 1))

    def decode(self, x_0: Tensor) -> Tensor:
        return x_0

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        return 1, 1, 1


class _ToyPolicy:
    """As much of a policy as a loss uses: a toy whose weight sets are all the same."""

    def __init__(self, model: _Toy) -> None:
        self.model = model

    @contextmanager
    def using(self, name: WeightSet) -> Iterator[None]:
        yield


def _sample(sampler: Sampler, toy: _Toy, guidance_scale: float, *, keep_states: bool) -> Trajectory:
    if isinstance(sampler, VariesByEpoch):
        sampler = sampler.for_epoch(0, 0)
    generator, condition = torch.Generator().manual_seed(0), toy.encode([""])
    with torch.no_grad():
        return sampler(
            lambda x_t, t: toy.velocity(x_t, t, condition, guidance_scale),
            torch.randn(1, 1, 1, 1, generator=generator),
            lambda: torch.randn(1, 1, 1, 1, generator=generator),
            keep_states=keep_states,
        )


def _one_sample(sampler: Sampler) -> Experience:
    trajectory = _sample(sampler, _Toy(), 1.0, keep_states=True)
    zero = torch.zeros(1, dtype=torch.int64)
    return Experience(
        x_0=trajectory.x_0,
        condition=_Toy().encode([""]),
        prompt_index=zero,
        sample_index=zero,
        group=zero,
        advantage=torch.ones(1),
        valid=torch.ones(1, dtype=torch.bool),
        trajectory=trajectory,
        weight=torch.ones(1),
        weight_gradient=torch.zeros_like(trajectory.x_0),
        mates=GroupMates(x_0=trajectory.x_0, group=zero, sample_index=zero, weight=torch.ones(1)),
    )
