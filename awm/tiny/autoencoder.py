"""Stage 2: train the autoencoder on rendered scenes.

Loss = |x - x'|_1 + |x - x'|_2^2 + w KL(q(z|x) || N(0, I)), all means per element, images in [-1, 1].
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from awm.tiny import log
from awm.tiny.architecture import build_autoencoder

KL_WEIGHT = 1e-3


def to_model_range(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1], channels last in memory."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    return x.contiguous(memory_format=torch.channels_last)


def autoencoder_loss(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Mean loss over x [B, 3, H, W] and its terms."""
    posterior = vae.encode(x).latent_dist
    difference = vae.decode(posterior.sample()).sample - x
    l1, l2 = difference.abs().mean(), difference.square().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    terms = {"l1": l1.item(), "l2": l2.item(), "kl": kl.item(), "psnr": 10 * np.log10(4.0 / l2.item())}
    return l1 + l2 + KL_WEIGHT * kl, terms


@torch.no_grad()
def encode(vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 256) -> Tensor:
    """Posterior means [N, 4, 16, 16], unnormalised."""
    parts = [vae.encode(to_model_range(images[i : i + batch])).latent_dist.mean for i in range(0, len(images), batch)]
    return torch.cat(parts).contiguous()


def set_latent_statistics(vae: AutoencoderKL, latents: Tensor) -> None:
    """Store shift = mean and scale = 1 / std of the measured latents, as SD3 defines them: z' = (z - shift) * scale."""
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1.0 / latents.std()))


def train_autoencoder(
    work: Path, images: NDArray[np.uint8], *, num_steps: int, batch: int, learning_rate: float, seed: int
) -> AutoencoderKL:
    """Train, or continue, and return the autoencoder; AdamW, warm-up and cosine decay to zero."""
    torch.manual_seed(seed)
    vae = build_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint, start = work / "autoencoder.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    progress = tqdm(range(start, num_steps), initial=start, total=num_steps, desc="autoencoder", mininterval=2.0)
    for step in progress:
        rate = learning_rate * schedule(step, num_steps, warmup=min(100, num_steps // 10 + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(seed * 1_000_003 + step)  # the posterior's noise, the same after a restart
        loss, terms = autoencoder_loss(vae, to_model_range(images[rng.integers(len(images), size=batch)]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            progress.set_postfix(psnr=f"{terms['psnr']:.1f}", kl=f"{terms['kl']:.2f}")
            log.append(work / "autoencoder.jsonl", {"step": step, **terms})
        if (step + 1) % 200 == 0 or step + 1 == num_steps:
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            log.save_checkpoint(checkpoint, state)
            _report(work, vae, np.array(images[:16]))
    return vae.eval().requires_grad_(False)


def schedule(step: int, num_steps: int, warmup: int) -> float:
    """Multiplier of the learning rate: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


@torch.no_grad()
def _report(work: Path, vae: AutoencoderKL, images: NDArray[np.uint8]) -> None:
    decoded = vae.decode(encode(vae, images)).sample
    decoded = decoded.add(1).mul(127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    log.grid(np.concatenate([images, decoded]), columns=len(images)).save(work / "autoencoder.png")
