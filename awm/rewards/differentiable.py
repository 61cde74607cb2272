"""PickScore and CLIPScore with a gradient with respect to the image, in the trainer's own process.

For methods that follow the reward's gradient through the decoder, such as DRaFT (https://arxiv.org/abs/2309.17400).
The model is the server's; the image is resized as a tensor instead of with PIL, in floating point and without the
rounding to 8 bit, so that scores differ a little from the server's.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from awm.rewards.collect import ErrorLog, check_lengths, representable, split_name, to_rewards
from awm.rewards.errors import RewardError
from awm.types import Rewards
from reward_server.scorers import clipscore, pickscore
from reward_server.scorers.base import Outcome, Scores
from reward_server.scorers.clip import IMAGES_PER_PASS, Clip
from reward_server.scorers.clip_pixels import MEAN, STD, resized_shape
from reward_server.scorers.text_image import EMPTY, EXAMPLE


class DifferentiableReward:
    """Agreement of images and prompts according to a CLIP: score = scale <text, image> / divisor.

    An ordinary ``Reward`` when called, and a function with gradient through ``score``.

    Args:
        name: of the reward; "x" is the score, "x.raw" the score before it is divided.
        clip: the model.
        scale: of the cosine in the raw score.
        divisor: of the raw score.
    """

    def __init__(self, name: str, clip: Clip, *, scale: float, divisor: float) -> None:
        self.name = name
        self.clip = clip
        self.source = ("differentiable", split_name(name)[0])  # "x" and "x.raw" share one pass
        self._scale = scale
        self._divisor = divisor
        self._lock = threading.Lock()  # a tokenizer is for one thread at a time
        self._errors = ErrorLog(name)

    def score(self, images: Tensor, text: Sequence[str]) -> Tensor:
        """Scores [B], differentiable with respect to images [B, 3, H, W] in [0, 1].

        The weights get no gradient. All images pass the model at once: the caller's micro-batch bounds the memory.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(text):
            raise ValueError(f"{len(text)} texts for images of shape {list(images.shape)}; expected [B, 3, H, W] and B")
        if not all(prompt.strip() for prompt in text):
            raise ValueError("a prompt is empty; there is nothing the image could agree with")
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(text))}
        with self._lock, torch.no_grad():
            texts = self.clip.encode_texts(list(rows))
        index = torch.tensor([rows[prompt] for prompt in text], device=texts.device)
        pixels = prepare(images.to(self.clip.device), self.clip.image_size)
        return (texts[index] * self.clip.encode_pixels(pixels)).sum(-1) * (self._scale / self._divisor)

    @torch.no_grad()
    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        """Scores of images [B, 3, H, W] in [0, 1], without gradient; an image with an empty prompt has none."""
        check_lengths(images, text, metadata)
        usable = [row for row, prompt in enumerate(text) if prompt.strip()]
        outcomes: list[Outcome] = [EMPTY] * len(text)
        for start in range(0, len(usable), IMAGES_PER_PASS):
            rows = usable[start : start + IMAGES_PER_PASS]
            scores = self.score(images[rows], [text[row] for row in rows]).tolist()
            for row, score in zip(rows, scores, strict=True):
                outcomes[row] = Scores(score, {"raw": score * self._divisor})
        outcomes = representable(outcomes)
        self._errors.note(outcomes, text)
        return to_rewards(self.name, "in process", outcomes)

    def check(self) -> None:
        """Score a grey image, to see that the model works."""
        if not self(torch.full((1, 3, 64, 64), 0.5), [EXAMPLE], [{}]).valid.all():
            raise RewardError(self.name, "in process", "the score of a plain grey image is not finite")


class DifferentiablePickScore(DifferentiableReward):
    """PickScore / 26; the arguments are those of ``reward_server.scorers.pickscore.PickScore``."""

    def __init__(
        self,
        model: str = pickscore.MODEL,
        processor: str | None = pickscore.PROCESSOR,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        *,
        name: str = "differentiable_pickscore",
    ) -> None:
        clip = Clip(model, processor=processor, device=device, dtype=dtype, revision=revision)
        super().__init__(name, clip, scale=clip.logit_scale, divisor=pickscore.DIVISOR)


class DifferentiableClipScore(DifferentiableReward):
    """Cosine of CLIP's embeddings; the arguments are those of ``reward_server.scorers.clipscore.ClipScore``."""

    def __init__(
        self,
        model: str = clipscore.MODEL,
        processor: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        *,
        name: str = "differentiable_clipscore",
    ) -> None:
        clip = Clip(model, processor=processor, device=device, dtype=dtype, revision=revision)
        super().__init__(name, clip, scale=clipscore.PERCENT, divisor=clipscore.PERCENT)


def differentiable_reward(name: str) -> DifferentiableReward:
    """The reward of a name such as "differentiable_pickscore.raw", with the published model; for the table by name."""
    classes: dict[str, type[DifferentiablePickScore] | type[DifferentiableClipScore]] = {
        "differentiable_pickscore": DifferentiablePickScore,
        "differentiable_clipscore": DifferentiableClipScore,
    }
    return classes[split_name(name)[0]](name=name)


def prepare(images: Tensor, size: int) -> Tensor:
    """What CLIP sees of images [B, 3, H, W] in [0, 1]: resized, middle square, normalised; [B, 3, size, size].

    The counterpart of ``reward_server.scorers.clip_pixels.preprocess`` without its rounding to 8 bit after each of
    two passes: pixels differ by 0.3 of 255 levels on average, by one at most unless the filter overshoots. An image
    that has the model's size already is exactly the server's.
    """
    height, width = resized_shape(images.shape[2], images.shape[3], size)
    if (height, width) != tuple(images.shape[2:]):
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    images = images[..., top : top + size, left : left + size].clamp(0, 1)  # bicubic filters overshoot at edges
    mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std
