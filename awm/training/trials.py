"""A training step's forward and backward, and a sampling step with its decoding, tried at a size.

They use the run's own policy and objective on made-up samples, and leave weights, gradients, optimizer and random
numbers as they were, also when memory runs out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from awm.interfaces import Objective, Policy, PreparesStep, Sampler
from awm.training.memory_meter import MemoryMeter, collect, is_out_of_memory
from awm.training.stand_in import stand_in_experience
from awm.types import Condition

PAIR = 2  # images of a prompt in a trial: with two, objectives that compare them train on all


class TrainingTrial:
    """Forward and backward of one micro-batch.

    Args:
        policy: its *current* weights are used.
        objective: the loss, with all forwards that it makes.
        sampler: of the rollouts, for objectives that train on its steps.
        condition: of one prompt.
        latent_shape: (C, h, w).
        images_per_prompt: group size.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        sampler: Sampler,
        condition: Condition,
        latent_shape: tuple[int, int, int],
        images_per_prompt: int,
    ) -> None:
        self._policy, self._objective, self._sampler = policy, objective, sampler
        self._condition, self._shape, self._images_per_prompt = condition, latent_shape, images_per_prompt

    def __call__(self, images: int) -> None:
        """Work on ``images`` samples; the gradient is dropped."""
        batch = stand_in_experience(
            self._sampler,
            self._condition,
            images,
            self._shape,
            images_per_prompt=self._images_per_prompt,
            group_size=min(PAIR, self._images_per_prompt),
            keep_trajectory=self._objective.needs.trajectory,
        )
        key: dict[str, Any] = {"seed": 0, "epoch": 0, "inner_epoch": 0, "on_policy": True}
        try:
            if isinstance(self._objective, PreparesStep):
                (terms,) = self._objective.prepare_step(self._policy, [batch], **key, gather=Tensor.cpu)
                batch = replace(batch, group_terms=terms)
            with torch.enable_grad():
                loss = self._objective(self._policy, batch, **key).loss.sum()
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for parameter in self._policy.trainable_parameters():
                parameter.grad = None


class SamplingTrial:
    """One step of a sampling batch, and its decoding: what a rollout holds at its worst moment, but for small states.

    Args:
        policy: its *current* weights are used.
        condition: of one prompt.
        latent_shape: (C, h, w).
        guidance_scale: classifier-free guidance in sampling.
    """

    def __init__(
        self, policy: Policy, condition: Condition, latent_shape: tuple[int, int, int], guidance_scale: float
    ) -> None:
        self._policy, self._condition = policy, condition
        self._shape, self._guidance_scale = latent_shape, guidance_scale

    @torch.no_grad()
    def __call__(self, images: int) -> None:
        """Work on ``images`` latents."""
        condition = self._condition.take(torch.zeros(images, dtype=torch.int64))
        device = condition.embeds.device
        x_t, t = torch.randn(images, *self._shape, device=device), torch.full((images,), 0.5, device=device)
        model = self._policy.model
        with self._policy.sampling("current"):
            velocity = model.velocity(x_t, t, condition, self._guidance_scale)
            model.decode(x_t - 0.5 * velocity)


def measured(trial: Callable[[int], None], meter: MemoryMeter, device: torch.device) -> Callable[[int], int | None]:
    """Bytes in use at the worst moment of a trial, or None if memory ran out in it.

    Nothing is compiled for a trial's shapes. Errors other than a lack of memory are raised.
    """
    devices = [device] if device.type == "cuda" else []

    def peak(size: int) -> int | None:
        meter.start()
        try:
            with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
                trial(size)
            return meter.peak()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            collect(meter)

    return peak
