"""The trainer's few numbers, grouped by what they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from awm.advantages import group_advantages, standardized_sum
from awm.types import Rewards


@dataclass(frozen=True, slots=True)
class Schedule:
    """When what happens, in completed epochs; the last epoch is always evaluated and saved.

    Attributes:
        num_epochs: length of the run.
        save_freq: epochs between checkpoints.
        eval_freq: epochs between evaluations; 0 never evaluates.
    """

    num_epochs: int
    save_freq: int
    eval_freq: int

    @property
    def evaluates(self) -> bool:
        """Whether there are evaluations at all."""
        return self.eval_freq > 0

    def evaluates_after(self, epoch: int) -> bool:
        """Whether an evaluation follows ``epoch`` completed epochs."""
        return self.evaluates and (epoch % self.eval_freq == 0 or epoch == self.num_epochs)

    def saves_after(self, epoch: int) -> bool:
        """Whether a checkpoint follows ``epoch`` completed epochs."""
        return epoch % self.save_freq == 0 or epoch == self.num_epochs


@dataclass(frozen=True, slots=True)
class Advantages:
    """How rewards become advantages; see :func:`awm.advantages.group_advantages`.

    Attributes:
        standardized: weights of the rewards, if each is to be divided by its own spread before they are summed;
            empty takes the sum as it is.
    """

    global_std: bool
    per_prompt: bool
    adv_clip_max: float
    advantage_max: float
    max_invalid_fraction: float
    standardized: Mapping[str, float] = field(default_factory=dict)

    def reward(self, rewards: Rewards) -> Tensor:
        """[B] what samples are compared by: the weighted sum, of standardised rewards if asked for."""
        if self.standardized:
            return standardized_sum(rewards.parts, self.standardized, rewards.valid)
        return rewards.total

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """[B] advantages of all the epoch's rewards in groups [B]; zero where not valid."""
        return group_advantages(
            self.reward(rewards),
            group,
            rewards.valid,
            global_std=self.global_std,
            per_prompt=self.per_prompt,
            adv_clip_max=self.adv_clip_max,
            advantage_max=self.advantage_max,
        )


@dataclass(frozen=True, slots=True)
class Averaging:
    """Decays of the slow weights; see :mod:`awm.training.averaging`.

    Attributes:
        anchor_decay: train.kl_ema_decay.
        anchor_schedule: train.kl_ema_decay_type, constant or linear.
        average_decay: train.ema_decay.
        average_interval: epochs between updates of the average.
    """

    anchor_decay: float
    anchor_schedule: str
    average_decay: float
    average_interval: int
