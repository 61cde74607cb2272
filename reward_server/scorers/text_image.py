"""How well images fit their prompts: the cosine of CLIP's two embeddings, for the scorers that are built on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_server.scorers.base import Item, ItemError
from reward_server.scorers.clip import Clip

EXAMPLE = "a photo of a cat"

EMPTY = ItemError("bad_prompt", "the prompt is empty, so there is nothing the image could agree with")


def cosines(
    clip: Clip,
    items: Sequence[Item],
    embed: Callable[[Sequence[NDArray[np.uint8]]], Tensor] | None = None,
) -> list[float | ItemError]:
    """Cosine in [-1, 1] of each item's image and prompt; an error for an empty prompt.

    Args:
        clip: the model.
        items: any number of them. A prompt that occurs several times is encoded once.
        embed: unit-norm embeddings [B, D] of B images; None is CLIP's own.
    """
    usable = [item for item in items if item.prompt.strip()]
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(item.prompt for item in usable))}
    with torch.inference_mode():
        texts = clip.text_embeddings(list(rows))
        images = (embed or clip.image_embeddings)([item.image for item in usable])
        index = torch.tensor([rows[item.prompt] for item in usable], dtype=torch.long, device=texts.device)
        values = iter((texts[index] * images).sum(-1).tolist())
    return [next(values) if item.prompt.strip() else EMPTY for item in items]
