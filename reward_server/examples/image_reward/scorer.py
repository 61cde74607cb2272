"""ImageReward (https://arxiv.org/abs/2304.05977) through its own package, in an environment of its own.

``image-reward`` 1.5 needs a transformers that the trainer cannot use, so this file is not imported by the server but
by a worker whose interpreter ``setup.sh`` made; README.md shows how. One file like this is all a reward of yours needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ImageReward  # type: ignore[import-not-found]  # lives in the worker's environment, not where mypy runs
import torch
from PIL import Image

from reward_server.scorers.base import Item, Outcome, Scores

PROMPT_TOKENS = 35  # as in the package's own score(); what is beyond is cut off


class ImageRewardScorer:
    """Score = ImageReward, standardised by its authors to mean 0 and deviation 1 over their images.

    Args:
        model: a name that ``ImageReward.available_models()`` lists, or a file with the weights.
        device: None takes cuda where there is one.
        batch_images: images per forward pass; the package itself does one at a time.
        download_root: folder of the downloaded files; None takes ``~/.cache/ImageReward``.
        med_config: the text encoder's configuration, a JSON file; None downloads it too.

    Raises:
        ValueError: there is no such model or file.
    """

    def __init__(
        self,
        *,
        model: str = "ImageReward-v1.0",
        device: str | None = None,
        batch_images: int = 16,
        download_root: str | None = None,
        med_config: str | None = None,
    ) -> None:
        known = ImageReward.available_models()
        if model not in known and not Path(model).is_file():
            raise ValueError(f"model is {model!r}; expected one of {', '.join(known)}, or a file with the weights.")
        if batch_images < 1:
            raise ValueError(f"batch_images is {batch_images}; expected at least 1.")
        root = Path(download_root or "~/.cache/ImageReward").expanduser()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_images = batch_images
        self.model = ImageReward.load(model, device=self.device, download_root=str(root), med_config=med_config)
        self._versions = {
            "package": metadata.version("image-reward"),
            "model": model if model in known else Path(model).name,
            "weights": _sha256(root / "ImageReward.pt" if model in known else Path(model)),
        }

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Score of each item, in order. Any prompt and any image can be scored, so that none is an ``ItemError``."""
        return [
            Scores(value)
            for start in range(0, len(items), self.batch_images)
            for value in self._rewards(items[start : start + self.batch_images])
        ]

    def fingerprint(self) -> Mapping[str, str]:
        """Version of the package, name and hash of the weights."""
        return self._versions

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """Any prompt will do; metadata is not looked at."""
        return "a plain grey square", {}

    @torch.inference_mode()
    def _rewards(self, items: Sequence[Item]) -> Iterator[float]:
        text = self.model.blip.tokenizer(
            [item.prompt for item in items],
            padding="max_length",
            truncation=True,
            max_length=PROMPT_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        pixels = torch.stack([self.model.preprocess(Image.fromarray(item.image)) for item in items]).to(self.device)
        # score_gard (sic) is what the package fine-tunes with: score(), but for a batch, and differentiable.
        rewards: list[float] = (
            self.model.score_gard(text.input_ids, text.attention_mask, pixels).float().squeeze(-1).tolist()
        )
        return iter(rewards)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
