"""CLIPScore: the cosine of CLIP's embeddings of image and prompt (https://arxiv.org/abs/2104.08718).

The same quantity goes by several scales. Here ``score`` is the cosine, which is also what RL code gets that divides
CLIP's logits by 100, the model's logit scale. ``raw`` = 100 cosine is what most tables print. The paper's own variant
is 2.5 max(cosine, 0) of ViT-B/32 with "A photo depicts " before the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.scorers.base import Item, ItemError, Outcome, Scores
from reward_server.scorers.clip import Clip
from reward_server.scorers.text_image import EXAMPLE, cosines

MODEL = "openai/clip-vit-large-patch14"
PERCENT = 100.0


class ClipScore:
    """``score`` = cosine in [-1, 1], ``raw`` = 100 cosine. An empty prompt has none.

    Args:
        model: folder or Hugging Face id of the model.
        processor: folder or id with its tokenizer; None takes the model's.
        device: None takes a GPU if there is one.
        dtype: of the weights.
        revision: branch, tag or commit of the model.
    """

    def __init__(
        self,
        model: str = MODEL,
        processor: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        self.clip = Clip(model, processor=processor, device=device, dtype=dtype, revision=revision)

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Score of each image for its own prompt."""
        return [
            cosine if isinstance(cosine, ItemError) else Scores(cosine, {"raw": PERCENT * cosine})
            for cosine in cosines(self.clip, items)
        ]

    def fingerprint(self) -> Mapping[str, str]:
        """That of the model."""
        return self.clip.fingerprint()

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """Any text will do."""
        return EXAMPLE, {}
