"""Made-up samples of an epoch, with everything any objective asks for: for counting and for measuring its forwards."""

from __future__ import annotations

import torch

from awm.interfaces import Sampler, VariesByEpoch
from awm.types import Condition, Experience, GroupMates, Trajectory


def stand_in_trajectory(
    sampler: Sampler, images: int, shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Trajectory:
    """What ``sampler`` returns for latents [images, *shape] when the model's velocity is zero everywhere."""
    if isinstance(sampler, VariesByEpoch):
        sampler = sampler.for_epoch(0, 0)
    generator = torch.Generator(device).manual_seed(0)

    def randn() -> torch.Tensor:
        return torch.randn(images, *shape, generator=generator, device=device)

    return sampler(lambda x_t, t: torch.zeros_like(x_t), randn(), randn, keep_states=True)


def stand_in_experience(
    sampler: Sampler,
    condition: Condition,
    images: int,
    shape: tuple[int, int, int],
    *,
    images_per_prompt: int,
    group_size: int,
    keep_trajectory: bool = True,
) -> Experience:
    """Samples no two of which are worth the same.

    Args:
        sampler: makes their trajectories, of a velocity of zero.
        condition: its first row belongs to all of them; the samples live where it does.
        images: B.
        shape: (C, h, w) of a latent.
        images_per_prompt: of the epoch, all of which are mates.
        group_size: as many of them are among the B.
        keep_trajectory: attach the states the sampler visited.
    """
    device = condition.embeds.device
    trajectory = stand_in_trajectory(sampler, images, shape, device)
    group, weight = torch.arange(images) // group_size, torch.ones(images, device=device)
    index = group * images_per_prompt + torch.arange(images) % group_size
    mates = torch.arange(images_per_prompt * (int(group[-1]) + 1))
    others = trajectory.x_0[mates % images]
    others[index] = trajectory.x_0
    return Experience(
        x_0=trajectory.x_0,
        condition=condition,
        prompt_index=torch.zeros(images, dtype=torch.int64, device=device),
        sample_index=index,
        group=group,
        advantage=torch.linspace(-1, 1, images, device=device),
        valid=torch.ones(images, dtype=torch.bool, device=device),
        trajectory=trajectory if keep_trajectory else None,
        weight=weight,
        weight_gradient=torch.zeros_like(trajectory.x_0),
        mates=GroupMates(
            x_0=others,
            group=mates // images_per_prompt,
            sample_index=mates,
            weight=torch.ones(len(mates), device=device),
        ),
    )
