"""An epoch's rewards over all ranks: gathered, checked, summarised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awm.advantages import zero_std_ratio
from awm.rewards.errors import RewardError
from awm.training.distributed import Distributed
from awm.types import Rewards


@dataclass(frozen=True, slots=True)
class EpochRewards:
    """Rewards and group numbers of every sample of the epoch, in order, the same on all ranks."""

    rewards: Rewards
    group: Tensor

    @property
    def invalid_fraction(self) -> float:
        """Share of the samples without a valid reward."""
        return 1.0 - self.rewards.valid.float().mean().item()

    def require(self, max_invalid_fraction: float, epoch: int) -> None:
        """Raise RewardError if too many rewards are missing to train on what is left."""
        if self.invalid_fraction > max_invalid_fraction:
            raise RewardError(
                "reward",
                "",
                f"{self.invalid_fraction:.0%} of the images of epoch {epoch} have no valid score, more than "
                f"reward_server.max_invalid_fraction={max_invalid_fraction:g}; the reward server's log names the "
                f"items. Nothing was trained on this epoch",
            )

    def metrics(self) -> dict[str, float]:
        """Mean, spread and health of the epoch's rewards."""
        total, valid = self.rewards.total, self.rewards.valid
        known = total[valid] if valid.any() else total[:1] * torch.nan
        parts = {f"reward/{name}": values.nanmean().item() for name, values in self.rewards.parts.items()}
        return parts | {
            "reward/mean": known.mean().item(),
            "reward/std": known.std(correction=0).item(),
            "reward/zero_std_ratio": zero_std_ratio(total, self.group, valid),
            "reward/invalid_fraction": self.invalid_fraction,
        }


def gather_rewards(rewards: Rewards, group: Tensor, distributed: Distributed) -> EpochRewards:
    """Concatenate all ranks' rewards [B] and group numbers [B]; a collective."""
    # A reward that is only watched may have failed on some ranks: they must still gather the same names.
    names = dict.fromkeys(distributed.gather_objects(list(rewards.parts)))
    missing = torch.full_like(rewards.total, torch.nan)
    return EpochRewards(
        Rewards(
            total=distributed.gather(rewards.total),
            parts={name: distributed.gather(rewards.parts.get(name, missing)) for name in sorted(names)},
            valid=distributed.gather(rewards.valid),
        ),
        distributed.gather(group),
    )
