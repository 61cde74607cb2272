"""From words to images: what awm-sample and awm-eval share, so that they draw the same image for the same key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from awm.flow.rng import SampleNoise
from awm.held_out.items import Item
from awm.interfaces import Model, Sampler
from awm.types import Condition


class Drawing:
    """Draws held-out images from their own fixed noise.

    Args:
        model: with the weights that draw.
        sampler: the solver.
        resolution: pixels a side.
        guidance_scale: classifier-free guidance; 1 is none.
        seed: keys the noise together with the prompt and the number of the image.
        device: where the noise is drawn.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        *,
        resolution: int,
        guidance_scale: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self._model, self._sampler, self._guidance_scale = model, sampler, guidance_scale
        self._shape = model.latent_shape(resolution)
        self._seed, self._device = seed, device
        self._conditions: dict[str, Condition] = {}

    def remember(self, text: Sequence[str]) -> None:
        """Encode these prompts now, for a model whose text encoders are to go; kept on the CPU until the end."""
        self._conditions = {prompt: self._model.encode([prompt]).to("cpu") for prompt in dict.fromkeys(text)}

    @torch.no_grad()
    def __call__(self, batch: Sequence[Item]) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] on the CPU."""
        text = [item.prompt for item in batch]
        condition = self._condition(text)
        noise = SampleNoise.for_evaluation(self._seed, text, [item.copy for item in batch], self._device)
        trajectory = self._sampler(
            lambda x_t, t: self._model.velocity(x_t, t, condition, self._guidance_scale),
            noise.randn(self._shape),
            lambda: noise.randn(self._shape),
        )
        return self._model.decode(trajectory.x_0).cpu()

    def _condition(self, text: Sequence[str]) -> Condition:
        """Each prompt is encoded by itself: in a batch, its bits would depend on its neighbours."""
        encoded = {
            prompt: self._conditions[prompt] if prompt in self._conditions else self._model.encode([prompt])
            for prompt in dict.fromkeys(text)
        }
        return Condition.cat([encoded[prompt].to(self._device) for prompt in text])
