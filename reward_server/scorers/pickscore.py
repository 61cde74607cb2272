"""PickScore (https://arxiv.org/abs/2305.01569): a CLIP ViT-H/14 trained on which of two images people prefer.

Raw score = exp(logit_scale) <text, image>, the number papers quote (about 20 to 24). Reward = raw / 26, which public
RL code for flow models divides by to get about 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.scorers.base import Item, ItemError, Outcome, Scores
from reward_server.scorers.clip import Clip
from reward_server.scorers.text_image import EXAMPLE, cosines

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the base model's, which the authors' code uses too
DIVISOR = 26.0


class PickScore:
    """``score`` = raw / 26, ``raw`` = the score itself. An empty prompt has none.

    Args:
        model: folder or Hugging Face id of the model.
        processor: folder or id with its tokenizer.
        device: None takes a GPU if there is one.
        dtype: of the weights; float32 is the reference.
        revision: branch, tag or commit of the model.
    """

    def __init__(
        self,
        model: str = MODEL,
        processor: str | None = PROCESSOR,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        self.clip = Clip(model, processor=processor, device=device, dtype=dtype, revision=revision)

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Score of each image for its own prompt."""
        return [self._outcome(cosine) for cosine in cosines(self.clip, items)]

    def fingerprint(self) -> Mapping[str, str]:
        """That of the model, and the divisor."""
        return {**self.clip.fingerprint(), "divisor": str(DIVISOR)}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """Any text will do."""
        return EXAMPLE, {}

    def _outcome(self, cosine: float | ItemError) -> Outcome:
        if isinstance(cosine, ItemError):
            return cosine
        raw = self.clip.logit_scale * cosine
        return Scores(raw / DIVISOR, {"raw": raw})
