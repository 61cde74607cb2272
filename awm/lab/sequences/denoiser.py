"""The denoiser: probabilities of every letter at every position, given a partly masked sequence.

It is not told the time: for masked diffusion the distribution of the clean letters given the visible ones does not
depend on it (Shi et al. 2024, https://arxiv.org/abs/2406.04329; Lou et al. 2023, https://arxiv.org/abs/2310.16834).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from awm.lab.sequences.world import LETTERS

MASK = len(LETTERS)


class Denoiser(nn.Module):
    """Residual dilated convolutions that see the whole sequence, with a broadcast mean for its composition.

    Args:
        width: channels.
        dilations: of the layers, kernel 3 each; they see 1 + 2 sum(dilations) letters.
    """

    def __init__(self, *, width: int = 64, dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 1)) -> None:
        super().__init__()
        self.embedding = nn.Embedding(MASK + 1, width)
        self.composition = nn.Linear(width, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.head = nn.Conv1d(width, len(LETTERS), 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [..., L, 4] of tokens [..., L] in 0..4, where 4 is the mask."""
        embedded = self.embedding(tokens.reshape(-1, tokens.shape[-1]))
        hidden = (embedded + self.composition(embedded.mean(1, keepdim=True))).transpose(1, 2).contiguous()
        for layer in self.layers:
            hidden = hidden + F.gelu(layer(hidden))
        logits: Tensor = self.head(hidden).transpose(1, 2)
        return torch.log_softmax(logits, -1).reshape(*tokens.shape, len(LETTERS))
