"""The gradient of a reward with respect to clean latents, through the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from awm.interfaces import Model
from awm.rewards.errors import RewardError

# In half precision the gradient of one of many pixels is less than the smallest number: it is carried larger.
SCALE = 2.0**18
Score = Callable[[Tensor, Sequence[str]], Tensor]
"""(images [B, 3, H, W] in [0, 1], B prompts) -> differentiable scores [B]."""


class RewardGradient:
    """d R(decode(x_0)) / d x_0, one forward and one backward pass of decoder and reward an image.

    The backward pass keeps the decoder's activations, gigabytes for each image of 512 pixels a side, which is why
    images are taken ``batch_size`` at a time.

    Args:
        model: decodes.
        score: the reward, differentiable with respect to the images.
        batch_size: images decoded and scored at once.
    """

    def __init__(self, model: Model, score: Score, batch_size: int) -> None:
        self.model, self.score, self.batch_size = model, score, batch_size

    def __call__(self, x_0: Tensor, text: Sequence[str], valid: Tensor) -> Tensor:
        """Gradients [B, C, H, W] float32 of latents [B, C, H, W], zero where not ``valid``.

        Raises:
            RewardError: the gradient of a valid sample is not finite.
        """
        gradient = torch.zeros_like(x_0, dtype=torch.float32)
        for rows in torch.split(valid.nonzero().flatten(), self.batch_size):
            gradient[rows] = self._gradient(x_0[rows], [text[row] for row in rows.tolist()])
        finite = torch.isfinite(gradient).flatten(1).all(1).cpu()
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise RewardError(
                "reward", "in process", f"its gradient is not finite for an image of the prompt {text[row]!r}"
            )
        return gradient

    @torch.enable_grad()
    def _gradient(self, x_0: Tensor, text: Sequence[str]) -> Tensor:
        latents = x_0.detach().float().requires_grad_()
        total = self.score(self.model.decode(latents), text).sum()
        scale = SCALE
        while True:
            (gradient,) = torch.autograd.grad(total * scale, latents, retain_graph=scale > 1)
            if scale == 1 or torch.isfinite(gradient).all():
                return gradient / scale
            scale = max(1.0, scale / 64)
