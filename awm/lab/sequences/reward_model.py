"""A learned reward: a small convolutional network trained on noisy measurements of activity.

Two are trained, on disjoint halves of the data: one is maximised, the other judges. What the first predicts above the
second and above the truth is over-optimisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from awm.lab.sequences.data import Measurements
from awm.lab.sequences.world import check_tokens, one_hot


class RewardModel(nn.Module):
    """Convolutions, the mean and the maximum over positions, and a head: [B, L] letters to [B] predicted activity.

    Args:
        width: channels.
        kernel: letters the first layer sees; longer than a motif.
    """

    def __init__(self, *, width: int = 48, kernel: int = 9) -> None:
        super().__init__()
        self.motifs = nn.Conv1d(4, width, kernel, padding=kernel // 2)
        self.grammar = nn.Conv1d(width, width, 5, padding=8, dilation=4)
        self.head = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B] predicted activity of letters [B, L] in 0..3."""
        bound = F.gelu(self.motifs(one_hot(tokens)))
        together = F.gelu(self.grammar(bound))
        pooled = torch.cat([layer.mean(2) for layer in (bound, together)] + [x.amax(2) for x in (bound, together)], 1)
        predicted: Tensor = self.head(pooled)[:, 0]
        return predicted

    @torch.inference_mode()
    def score(self, tokens: Tensor, *, batch: int = 512) -> Tensor:
        """[B] predictions without gradient or dropout; a mask among the letters raises ValueError."""
        check_tokens(tokens)
        self.eval()
        return torch.cat([self(part) for part in torch.split(tokens, batch)])


def train_reward_model(data: Measurements, *, epochs: int, seed: int, batch: int = 128) -> RewardModel:
    """Least squares with AdamW and a one-cycle learning rate.

    Args:
        data: measurements of the half that this model may see.
        epochs: passes over it.
        seed: of the weights and of the order.
        batch: sequences per update.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RewardModel()
        steps = epochs * -(-len(data) // batch)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(data), generator=generator), batch):
                optimizer.zero_grad()
                loss = F.mse_loss(model(data.tokens[rows]), data.activity[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return model.eval()


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of two vectors; 0 if one of them is constant."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else 0.0
