"""Pre-training of the masked-diffusion model on the background data."""

from __future__ import annotations

import torch
from torch import Tensor

from awm.lab.sequences.denoiser import Denoiser
from awm.lab.sequences.diffusion import denoising_loss, draw_times, mask_tokens


def pretrain(tokens: Tensor, *, steps: int, seed: int, batch: int = 128, learning_rate: float = 3e-3) -> Denoiser:
    """A denoiser trained with the diffusion bound, AdamW and a one-cycle learning rate.

    Args:
        tokens: [M, L] sequences.
        steps: updates.
        seed: of the weights, the batches, the times and the masks.
        batch: sequences per update, each masked once.
        learning_rate: the highest one.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(tokens), (batch,), generator=generator)
        denoising_step(model, optimizer, tokens[rows], generator)
        schedule.step()
    return model


def denoising_step(
    model: Denoiser, optimizer: torch.optim.Optimizer, tokens: Tensor, generator: torch.Generator
) -> float:
    """One update with the plain diffusion loss of tokens [B, L]; returns that loss, nats per letter."""
    t = draw_times(1, len(tokens), generator)
    x_t = mask_tokens(tokens, t, generator)
    loss = denoising_loss(model(x_t), tokens, x_t, t).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
