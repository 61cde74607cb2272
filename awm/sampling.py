"""The part of awm-sample that computes: the model, its weights, batch after batch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.building import DTYPES, make_sampler
from awm.drawing import Drawing
from awm.held_out.items import Item
from awm.images import quantise
from awm.interfaces import Sampler
from awm.models.sd3 import SD3
from awm.models.weights import check_fit, find_transformer
from awm.training.progress import progress_bar
from awm.weight_paths import Located, locate

Drawn = tuple[Sequence[Item], Tensor, bool]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What the weights go on top of.

    Attributes:
        model: hub id, local folder or "tiny".
        revision: on the hub.
        transformer: folder of a fully fine-tuned transformer in place of the model's own; "" for none.
        resolution: pixels a side; None for what the model was made for.
    """

    model: str
    revision: str = ""
    transformer: str = ""
    resolution: int | None = None


def draw_items(arguments: argparse.Namespace, base: BaseModel, items: Sequence[Item]) -> Iterator[Drawn]:
    """Yields batches as they are drawn, those of the base model first: (items, uint8 [B, 3, H, W], is base).

    Args:
        arguments: of ``awm.sample.parser``.
        base: the model.
        items: what to draw.

    Raises:
        ValueError: the sampler or the weights are wrong, before the model is loaded.
    """
    sampler = make_sampler(
        arguments.sampler,
        arguments.steps,
        arguments.shift,
        noise_level=arguments.noise_level,
        sde_frac=arguments.sde_frac,
    )
    located = _located(arguments, base)
    transformer = find_transformer(base.transformer, base.model, base.revision)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = DTYPES[arguments.dtype or ("bf16" if device.type == "cuda" else "no")]
    tuned = transformer if located is None or located.weights.kind == "lora" else located.weights
    storage = torch.float32 if tuned is not None and tuned.is_float32 else None
    model = SD3.load(base.model, revision=base.revision, dtype=dtype, transformer_dtype=storage, device=device)
    if transformer is not None:
        model.apply(transformer)
    passes = [True, False] if arguments.compare else [located is None]
    with progress_bar("drawing", len(passes) * len(items), True) as advance:
        for is_base in passes:
            if not is_base and located is not None:
                model.apply(located.weights)
            drawing = _drawing(arguments, base.resolution, model, sampler, items)
            for start in range(0, len(items), arguments.batch_size):
                batch = items[start : start + arguments.batch_size]
                yield batch, quantise(drawing(batch)), is_base
                advance(len(batch))


def _located(arguments: argparse.Namespace, base: BaseModel) -> Located | None:
    if arguments.weights_from is None:
        return None
    located = locate(arguments.weights_from, arguments.weights)
    check_fit(located.weights, base.model, base.revision)
    return located


def _drawing(
    arguments: argparse.Namespace, resolution: int | None, model: SD3, sampler: Sampler, items: Sequence[Item]
) -> Drawing:
    drawing = Drawing(
        model,
        sampler,
        resolution=resolution or model.default_resolution,
        guidance_scale=arguments.guidance_scale,
        seed=arguments.seed,
        device=model.device,
    )
    model.offload_text_encoders(model.device)
    drawing.remember([item.prompt for item in items])
    model.offload_text_encoders("cpu")  # on a small GPU the autoencoder needs their memory
    return drawing
