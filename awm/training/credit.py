"""From an epoch's images and rewards to what the objective learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from awm.interfaces import Objective, Policy, PreparesEpoch, WeighsGroups
from awm.rewards.errors import RewardError
from awm.training.distributed import Distributed
from awm.training.epoch_rewards import EpochRewards
from awm.training.group_mates import gather_group_mates
from awm.training.reward_gradient import RewardGradient
from awm.training.rollout import RolloutResult
from awm.training.settings import Advantages
from awm.types import Experience, GroupWeights, Prompts


@dataclass
class Credit:
    """Attaches to each sample its advantage, and what else the objective needs.

    Attributes:
        policy: model and weight sets, for objectives that look at the epoch before they train on it.
        objective: says what it needs.
        advantages: how rewards become advantages.
        distributed: the ranks.
        seed: the run's.
        reward_gradient: of the objective's need for it; None without.
    """

    policy: Policy
    objective: Objective
    advantages: Advantages
    distributed: Distributed
    seed: int
    reward_gradient: RewardGradient | None = None

    def __call__(
        self, rollout: RolloutResult, epoch_rewards: EpochRewards, prompts: Prompts, epoch: int
    ) -> tuple[Experience, dict[str, float]]:
        """This rank's experience, and metrics of the weights; a collective.

        Args:
            rollout: this rank's images.
            epoch_rewards: rewards and groups of all ranks' images.
            prompts: of this rank's images.
            epoch: its number.

        Raises:
            RewardError: on all ranks; too many rewards are missing, or a gradient could not be computed.
        """
        epoch_rewards.require(self.advantages.max_invalid_fraction, epoch + 1)
        experience = self._experience(rollout, epoch_rewards)
        metrics: dict[str, float] = {}
        if isinstance(self.objective, WeighsGroups):
            weights = self._weights(self.objective, epoch_rewards)
            experience = self._with_weights(experience, weights, epoch_rewards, prompts)
            metrics |= weights.metrics
        if isinstance(self.objective, PreparesEpoch):
            experience, seen = self.objective.prepare(
                self.policy, experience, seed=self.seed, epoch=epoch, gather=self.distributed.gather
            )
            metrics |= seen
        return experience, metrics

    def _experience(self, rollout: RolloutResult, epoch_rewards: EpochRewards) -> Experience:
        """What every objective learns from: samples with advantages."""
        rewards, group = epoch_rewards.rewards, epoch_rewards.group
        x_0, device = rollout.trajectory.x_0, self.distributed.device
        index = torch.arange(len(x_0)) + self.distributed.rank * len(x_0)
        return Experience(
            x_0=x_0,
            condition=rollout.condition,
            prompt_index=rollout.prompt_index.to(device),
            sample_index=index,
            group=group[index],
            advantage=self.advantages(rewards, group)[index].to(device),
            valid=rewards.valid[index].to(device),
            trajectory=rollout.trajectory if self.objective.needs.trajectory else None,
        )

    def _weights(self, objective: WeighsGroups, epoch_rewards: EpochRewards) -> GroupWeights:
        rewards = epoch_rewards.rewards
        return objective.weigh(self.advantages.reward(rewards).double(), epoch_rewards.group, rewards.valid)

    def _with_weights(
        self, experience: Experience, weights: GroupWeights, epoch_rewards: EpochRewards, prompts: Prompts
    ) -> Experience:
        """The experience with its weights, and gradients and group mates if they are needed."""
        valid, gradient, mates = epoch_rewards.rewards.valid, None, None
        if self.reward_gradient is not None:
            assert weights.slope is not None, "an objective that needs the reward's gradient says what it is worth"
            gradient = weights.slope * self._reward_gradient(self.reward_gradient, experience, prompts)
        if self.objective.needs.group_mates:
            mates = gather_group_mates(experience.x_0, epoch_rewards.group, weights.value, valid, self.distributed)
        weight = weights.value[experience.sample_index].to(self.distributed.device)
        return replace(experience, weight=weight, weight_gradient=gradient, mates=mates)

    def _reward_gradient(self, compute: RewardGradient, experience: Experience, prompts: Prompts) -> Tensor:
        """Gradients of this rank's samples; a failure on one rank is one on all, so that none waits for a dead one."""
        failure: Exception | None = None
        gradient = torch.zeros_like(experience.x_0)
        try:
            gradient = compute(experience.x_0, prompts.text, experience.valid)
        except Exception as error:
            failure = error
        if self.distributed.any(failure is not None):
            if isinstance(failure, RewardError):
                raise failure
            why = f"its gradient could not be computed: {failure}" if failure else "failed on another rank, which says"
            raise RewardError("reward", "in process", why) from failure
        return gradient
