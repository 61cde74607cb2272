"""SiMPO's weights for text-to-image: the rewards of each prompt's images against each other.

    q_i = R_i / (std(R over the epoch) + 1e-4)        W = weighting(q of one prompt / lambda), mean 1

with one temperature lambda for the whole epoch, so that prompts whose images differ little in reward also move the
policy little. SiMPO (arXiv 2603.10250) has critics and states instead; the recipe is our transfer of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awm.temperature import Temperature, mean_kl, solve_temperature
from awm.types import GroupWeights
from awm.weightings import MASSLESS, Weighting

SMALL = 1e-4
TARGET_KL = 1.5  # nats; the paper's value for groups of 32


@dataclass(frozen=True, slots=True)
class GroupWeighing:
    """From an epoch's rewards to the weight of each image.

    Attributes:
        weighting: what turns the scores of a group into weights.
        temperature: lambda, in units of the epoch's std of rewards; None: solved for a target.
        target_kl: mean KL(p || uniform) of the groups' weights, nats; ``TARGET_KL`` if nothing else is given. wd1
            can have no target, its temperature is 1 unless given.
        target_entropy: mean entropy instead, nats.
        min_temperature: smallest solved temperature, in the same units; where few rewards differ, as with binary
            ones, a target can be out of reach and the temperature would fall to zero.
    """

    weighting: Weighting
    temperature: float | None = None
    target_kl: float | None = None
    target_entropy: float | None = None
    min_temperature: float = 0.05

    def __post_init__(self) -> None:
        given = [self.temperature, self.target_kl, self.target_entropy]
        if sum(value is not None for value in given) > 1:
            raise ValueError(
                f"give at most one of temperature, target_kl and target_entropy, got {self.temperature}, "
                f"{self.target_kl} and {self.target_entropy}."
            )
        if self.weighting.name in MASSLESS and (self.target_kl is not None or self.target_entropy is not None):
            raise ValueError(
                f"the weights of {self.weighting.name!r} have mean 0 and thus no KL or entropy; set a temperature."
            )

    def __call__(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """Weights of N images, see ``awm.interfaces.WeighsGroups``."""
        row, column = _places(group)
        shape = (int(row.max()) + 1, int(column.max()) + 1)
        known = torch.zeros(shape, dtype=torch.bool, device=valid.device)
        known[row, column] = valid
        score = torch.zeros(shape, dtype=torch.float64, device=valid.device)
        score[row, column] = _in_units_of_std(reward, valid)
        found = self._temperature(score, known)
        weight = self.weighting(score, found.value, valid=known)[row, column]
        return GroupWeights(value=weight.float(), metrics=_metrics(weight[valid], found))

    def _temperature(self, score: Tensor, valid: Tensor) -> Temperature:
        fixed = 1.0 if self.temperature is None and self.weighting.name in MASSLESS else self.temperature
        if fixed is not None:
            kl = mean_kl(score, self.weighting, fixed, valid=valid).item()
            return Temperature(fixed, kl, at_minimum=False, at_maximum=False)
        neither = self.target_kl is None and self.target_entropy is None
        return solve_temperature(
            score,
            self.weighting,
            kl=TARGET_KL if neither else self.target_kl,
            entropy=self.target_entropy,
            minimum=self.min_temperature,
            valid=valid,
        )


def _places(group: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column, [N] each, of every sample in a table with a row for each group."""
    _, row, count = torch.unique(group, return_inverse=True, return_counts=True)
    order = row.argsort(stable=True)
    column = torch.empty_like(row)
    first = count.cumsum(0) - count
    column[order] = torch.arange(len(group), device=group.device) - first[row[order]]
    return row, column


def reward_unit(reward: Tensor, valid: Tensor) -> float:
    """Population std of the valid rewards + 1e-4, as for advantages: rewards that differ by rounding weigh alike."""
    return (float(reward.double()[valid].std(correction=0)) if valid.any() else 0.0) + SMALL


def _in_units_of_std(reward: Tensor, valid: Tensor) -> Tensor:
    """[N] float64 rewards over ``reward_unit``; zero where not valid."""
    known = reward.double()[valid]
    if not torch.isfinite(known).all():
        raise ValueError("a valid reward is not finite; mark rewards that could not be computed as not valid.")
    return torch.where(valid, reward.double() / reward_unit(reward, valid), 0.0)


def _metrics(weight: Tensor, found: Temperature) -> dict[str, float]:
    """What the log says about the weights [N] of the valid samples."""
    metrics = {
        "weight/kl": found.kl,
        "weight/temperature": found.value,
        "weight/at_min_temperature": float(found.at_minimum),
    }
    if not len(weight):
        return metrics
    return metrics | {
        "weight/max": weight.max().item(),
        "weight/min": weight.min().item(),
        "weight/negative_mass": (-weight).clamp(min=0).mean().item(),
    }
