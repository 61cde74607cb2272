"""What the same budget of sampled and scored sequences buys without reinforcement learning."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from awm.lab.sequences.denoiser import Denoiser
from awm.lab.sequences.diffusion import sample
from awm.lab.sequences.finetune import Score
from awm.lab.sequences.pretrain import denoising_step
from awm.lab.sequences.settings import Settings


def draw_budget(model: Denoiser, settings: Settings, generator: torch.Generator) -> Tensor:
    """[budget, L] samples of the model, a batch at a time."""
    length, steps = settings.world.length, settings.sampler_steps
    batches = [sample(model, settings.batch, length, steps=steps, generator=generator) for _ in range(settings.updates)]
    return torch.cat(batches)


def best_of_n(model: Denoiser, reward: Score, settings: Settings, *, seed: int) -> tuple[Tensor, int]:
    """The best of every N samples, N = budget // eval_size, so that the whole budget delivers eval_size sequences.

    Returns:
        [eval_size, L] sequences, and N.
    """
    number = settings.budget // settings.eval_size
    if number < 1:
        raise ValueError(
            f"a budget of {settings.budget} sequences cannot deliver {settings.eval_size}; "
            "lower eval_size or raise updates."
        )
    generator = torch.Generator().manual_seed(seed)
    tokens = draw_budget(model, settings, generator)[: number * settings.eval_size]
    best = reward(tokens).reshape(settings.eval_size, number).argmax(1)
    chosen: Tensor = tokens.reshape(settings.eval_size, number, -1)[torch.arange(settings.eval_size), best]
    return chosen, number


def rejection_finetune(model: Denoiser, reward: Score, settings: Settings, *, seed: int) -> Denoiser:
    """A copy of ``model`` trained by plain denoising on the best ``kept_share`` of the budget.

    It takes as many optimizer steps as the other methods. This is one round of rejection sampling fine-tuning; SiMPO's
    methods sample anew after every batch.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = draw_budget(model, settings, generator)
    keep = max(1, int(settings.kept_share * len(tokens)))
    kept = tokens[reward(tokens).topk(keep).indices]
    tuned = copy.deepcopy(model)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    for _ in range(settings.updates * settings.inner_steps):
        rows = torch.randint(keep, (settings.batch,), generator=generator)
        denoising_step(tuned, optimizer, kept[rows], generator)
    return tuned
