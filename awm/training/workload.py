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
from awm.training.stand_in import stand_in_experience
from awm.types import Condition, Experience


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
    _sample(sampler, toy, guidance_scale)
    return Rows(plain=toy.plain)


def training_rows(objective: Objective, sampler: Sampler, sizes: Geometry) -> Rows:
    """What one image takes in an epoch: all passes, of which only the first update is on policy.

    Counted on a whole group of images, of which an objective may train on some only, cut into micro-batches.
    """
    kinds = [_rows_of_a_pass(objective, sampler, sizes, on_policy=on_policy) for on_policy in (True, False)]
    first = 1 / sizes.updates_per_pass
    rest = sizes.num_passes - first
    plain, trained = (first * getattr(kinds[0], n) + rest * getattr(kinds[1], n) for n in ("plain", "trained"))
    return Rows(_rows_of_preparing(objective, sampler, sizes) + plain, trained)


def _rows_of_a_pass(objective: Objective, sampler: Sampler, sizes: Geometry, *, on_policy: bool) -> Rows:
    toy = _Toy()
    policy, group = cast(Policy, _ToyPolicy(toy)), _group(sampler, sizes.images_per_prompt)
    if isinstance(objective, PreparesEpoch):
        group, _ = objective.prepare(policy, group, seed=0, epoch=0, gather=lambda values: values)
        toy.plain = 0  # once an epoch, not in every pass
    key: dict[str, Any] = {"seed": 0, "epoch": 0, "inner_epoch": 0, "on_policy": on_policy}
    batches = [group.take(part) for part in torch.split(torch.arange(len(group)), sizes.micro_batch_size)]
    if isinstance(objective, PreparesStep):
        terms = objective.prepare_step(policy, batches, **key, gather=lambda values: values)
        batches = [replace(batch, group_terms=term) for batch, term in zip(batches, terms, strict=True)]
    with torch.enable_grad():
        for batch in batches:
            objective(policy, batch, **key)
    return Rows(toy.plain / len(group), toy.trained / len(group))


def _rows_of_preparing(objective: Objective, sampler: Sampler, sizes: Geometry) -> float:
    toy = _Toy()
    group = _group(sampler, sizes.images_per_prompt)
    if isinstance(objective, PreparesEpoch):
        objective.prepare(cast(Policy, _ToyPolicy(toy)), group, seed=0, epoch=0, gather=lambda values: values)
    return toy.plain / len(group)


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

    def equals_current(self, name: WeightSet) -> bool:
        return False  # as in most updates


def _sample(sampler: Sampler, toy: _Toy, guidance_scale: float) -> None:
    if isinstance(sampler, VariesByEpoch):
        sampler = sampler.for_epoch(0, 0)
    generator, condition = torch.Generator().manual_seed(0), toy.encode([""])

    def randn() -> Tensor:
        return torch.randn(1, 1, 1, 1, generator=generator)

    with torch.no_grad():
        sampler(lambda x_t, t: toy.velocity(x_t, t, condition, guidance_scale), randn(), randn)


def _group(sampler: Sampler, images: int) -> Experience:
    """The images of one prompt, no two of which are worth the same."""
    return stand_in_experience(
        sampler, _Toy().encode([""]), images, (1, 1, 1), images_per_prompt=images, group_size=images
    )
