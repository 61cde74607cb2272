"""Stage 4: rectified flow on latents, the transformer and the three text encoders trained together.

Loss = |v(x_t, t, c) - (eps - x_0)|^2 with x_t = (1 - t) x_0 + t eps, mean over elements; t = s u / (1 + (s - 1) u)
with u = sigmoid(n), n standard normal and s = 3 (SD3, https://arxiv.org/abs/2403.03206, section 3.1 and 5.3.2).
Hidden matrices are trained with Muon, everything else with AdamW.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from awm.tiny import log
from awm.tiny.text import TextEncoders

SHIFT = 3.0
EMPTY_CAPTION_RATE = 0.1  # so that classifier-free guidance has its unconditional model


@dataclass(frozen=True, slots=True)
class FlowData:
    """Latents [N, 4, 16, 16] float16, the caption number of each [N], and ids [P, 3, 16] of all captions.

    The last caption is the empty one.
    """

    latents: Tensor
    caption: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class FlowRecipe:
    """How long and how fast to train; the learning rate is constant until the decay to zero begins."""

    num_steps: int
    stop_at: int
    batch: int = 64
    muon_rate: float = 0.015
    adamw_rate: float = 2e-3
    warmup: int = 200
    decay_share: float = 0.4
    average_decay: float = 0.998
    seed: int = 0

    def rate(self, step: int) -> float:
        """Multiplier of the learning rates: trapezoid, so that a run can be made longer before its decay begins."""
        left = (self.num_steps - step) / max(1.0, self.decay_share * self.num_steps)
        return min(1.0, (step + 1) / self.warmup, left)


class FlowModel(nn.Module):
    """Everything the flow stage trains."""

    def __init__(self, transformer: SD3Transformer2DModel, text: TextEncoders) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Velocity [B, 4, 16, 16] at times t [B] in [0, 1]; ids [B, 3, 16]."""
        embeds, pooled = self.text(ids)
        velocity: Tensor = self.transformer(
            hidden_states=x_t,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=t * 1000,
            return_dict=False,
        )[0]
        return velocity


def flow_loss(model: FlowModel, data: FlowData, recipe: FlowRecipe, step: int) -> Tensor:
    """Loss of one batch; every random number is keyed by (seed, step)."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    rows = torch.randint(len(data.latents), (recipe.batch,), generator=generator)
    x_0 = data.latents[rows].float()
    caption = data.caption[rows].clone()
    caption[torch.rand(recipe.batch, generator=generator) < EMPTY_CAPTION_RATE] = len(data.ids) - 1
    u = torch.randn(recipe.batch, generator=generator).sigmoid()
    t = SHIFT * u / (1 + (SHIFT - 1) * u)
    eps = torch.randn(x_0.shape, generator=generator)
    level = t[:, None, None, None]
    with _fast_on_cpu():
        velocity = model((1 - level) * x_0 + level * eps, t, data.ids[caption])
    error: Tensor = velocity.float() - (eps - x_0)
    return error.square().mean()


@contextmanager
def _fast_on_cpu() -> Iterator[None]:
    """bfloat16 matrix products, but attention from plain products.

    On CPUs with avx512_bf16 this takes two thirds of float32's time; with the fused attention kernel, whose
    bfloat16 backward pass is four times slower than its float32 one, nothing would be gained.
    """
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def make_optimizers(model: FlowModel, recipe: FlowRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks; AdamW for embeddings, modulation, norms, biases and the ends."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        inside = ".blocks." in name or "_blocks." in name or ".layers." in name or ".block." in name
        is_matrix = p.ndim == 2 and inside and "norm1" not in name and "relative_attention_bias" not in name
        (hidden if is_matrix else rest).append(p)
    return [
        torch.optim.Muon(hidden, lr=recipe.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=recipe.adamw_rate, betas=(0.9, 0.99), weight_decay=0.0),
    ]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Average <- decay * average + (1 - decay) * model."""
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


def train_flow(
    work: Path,
    model: FlowModel,
    data: FlowData,
    recipe: FlowRecipe,
    *,
    every: int,
    report: Callable[[FlowModel, int], None],
) -> FlowModel:
    """Train, or continue, and return the averaged weights; ``report(average, step)`` runs every ``every`` steps."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizers(model, recipe)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    checkpoint = work / "flow.pt"
    start = _restore(checkpoint, model, average, optimizers)
    progress = tqdm(range(start, recipe.stop_at), initial=start, total=recipe.stop_at, desc="flow", mininterval=5.0)
    losses, clock = [], time.monotonic()
    for step in progress:
        loss = flow_loss(model, data, recipe, step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"flow loss is {loss.item()} at step {step}; lower the learning rates")
        _step(loss, model.parameters(), optimizers, [rate * recipe.rate(step) for rate in rates])
        update_average(average, model, min(recipe.average_decay, (step + 1) / (step + 10)))
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0 or done == recipe.stop_at:
            mean, seconds = sum(losses) / len(losses), (time.monotonic() - clock) / len(losses)
            log.append(
                work / "flow.jsonl", {"step": done, "loss": round(mean, 5), "seconds_per_step": round(seconds, 4)}
            )
            progress.set_postfix(loss=f"{mean:.4f}")
            losses, clock = [], time.monotonic()
        if done % 250 == 0 or done == recipe.stop_at:
            _save(checkpoint, model, average, optimizers, done)
        if done % every == 0 and done < recipe.stop_at:
            report(average, done)
            clock = time.monotonic()
    report(average, recipe.stop_at)
    return average


def _step(
    loss: Tensor, parameters: Iterable[nn.Parameter], optimizers: list[torch.optim.Optimizer], rates: list[float]
) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def _save(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizers": states, "step": step}
    log.save_checkpoint(path, state)


def _restore(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
