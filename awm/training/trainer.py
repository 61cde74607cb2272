"""Advantage Weighted Matching as Algorithm 1 of https://arxiv.org/abs/2509.25050, one method per line of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from awm.data.grouping import epoch_prompt_indices, rank_prompts
from awm.data.prompts import PromptSet
from awm.flow.rng import Noise, SampleNoise, SharedStart
from awm.interfaces import Policy, Sampler, VariesByEpoch
from awm.rewards.errors import RewardError
from awm.training.averaging import anchor_decay, average_decay
from awm.training.credit import Credit
from awm.training.distributed import Distributed
from awm.training.epoch_rewards import gather_rewards
from awm.training.geometry import Geometry
from awm.training.outputs import RunOutputs
from awm.training.parity import AGAIN_AFTER, ParityCheck
from awm.training.phases import PhaseTimer, timing_metrics
from awm.training.probe import VelocityProbe
from awm.training.rollout import Rollout
from awm.training.settings import Averaging, Schedule
from awm.training.stopping import StopRequestedError
from awm.training.update import NonFiniteLossError, Update
from awm.types import Prompts


@dataclass
class Trainer:
    """Runs epochs: sample, score, compare within groups, match what scored well, move the slow weights.

    Everything it calls is a plug-in or a pure function; ``outputs`` is the only part that writes files.
    """

    policy: Policy
    rollout: Rollout
    update: Update
    outputs: RunOutputs
    distributed: Distributed
    geometry: Geometry
    prompts: PromptSet
    seed: int
    schedule: Schedule
    credit: Credit
    averaging: Averaging
    parity: ParityCheck | None = None
    shared_start: bool = False
    epoch: int = 0
    step: int = 0
    probe: VelocityProbe = field(init=False)

    def __post_init__(self) -> None:
        self.probe = VelocityProbe(self.policy, self.distributed, self.seed)

    def train(self) -> None:
        """Train until ``schedule.num_epochs`` epochs are complete."""
        try:
            if self.parity is not None:
                self.outputs.note(f"with faster weights: {self.parity.require(self.epoch, self.epoch_sampler())}")
            # The base model's, or one that an interruption has left undone.
            if self.schedule.evaluates_after(self.epoch) and not self.outputs.evaluated(self.epoch):
                self.log({}, evaluates=True)
            while self.epoch < self.schedule.num_epochs:
                self.train_epoch()
        except (StopRequestedError, RewardError, NonFiniteLossError):  # on all ranks, which are as after an epoch
            if self.epoch > 0:
                self.outputs.save(self.epoch, self.step)
            raise

    def train_epoch(self) -> None:
        """One epoch of Algorithm 1."""
        parity = self.parity_metrics()
        timer = PhaseTimer()
        prompts = self.epoch_prompts()
        with self.outputs.progress(self.epoch + 1, "sampling", self.geometry.images_per_rank) as done:
            rollout = self.rollout(
                prompts, self.rollout_noise, done, keep=self.outputs.grid_rows, sampler=self.epoch_sampler()
            )
        rewards = gather_rewards(rollout.rewards, prompts.group, self.distributed)
        experience, weights = self.credit(rollout, rewards, prompts, self.epoch)
        timer.lap("rollout")
        visits = self.geometry.images_per_rank * self.geometry.num_passes
        with self.outputs.progress(self.epoch + 1, "training", visits) as done:
            losses, steps = self.update(experience, self.epoch, done)
        if "velocity_norm_ratio" not in losses:  # an objective without the reference's forward
            losses["velocity_norm_ratio"] = self.probe(experience, self.epoch)
        self.epoch += 1
        self.step += steps
        self.move_slow_weights(steps)
        timer.lap("train")
        seconds = timer.seconds | rollout.seconds
        if self.distributed.device.type == "cpu":
            seconds["processor"] = timer.processor_seconds()
        timing = timing_metrics(seconds, self.geometry.images, self.distributed)
        self.outputs.write_grid(self.epoch, prompts, rollout)
        self.finish_epoch(losses | weights | rewards.metrics() | timing | parity)

    def parity_metrics(self) -> dict[str, float]:
        """Whether faster weights still sample what the trained ones do, asked once, when the LoRA has grown."""
        if self.parity is None or self.epoch != AGAIN_AFTER:
            return {}
        return self.parity(self.epoch, self.epoch_sampler()).metrics(self.parity.max_gap)

    def epoch_prompts(self) -> Prompts:
        """This rank's share of the epoch's prompts, each repeated for its group."""
        chosen = epoch_prompt_indices(self.seed, self.epoch, len(self.prompts), self.geometry.num_prompts)
        sizes = self.geometry
        return rank_prompts(self.prompts, chosen, sizes.images_per_prompt, self.distributed.rank, sizes.images_per_rank)

    def rollout_noise(self, rows: slice) -> Noise:
        """Random numbers of these samples: keyed by (seed, epoch, number of the sample in the epoch).

        With ``shared_start`` the first, what the sampler starts from, are keyed by the prompt's number instead.
        """
        index = self.sample_index()[rows]
        noise = SampleNoise(self.seed, "rollout", self.epoch, index, self.distributed.device)
        if not self.shared_start:
            return noise
        group = index // self.geometry.images_per_prompt
        return SharedStart(SampleNoise(self.seed, "rollout/start", self.epoch, group, self.distributed.device), noise)

    def epoch_sampler(self) -> Sampler:
        """The sampler of this epoch."""
        sampler = self.rollout.sampler
        return sampler.for_epoch(self.seed, self.epoch) if isinstance(sampler, VariesByEpoch) else sampler

    def sample_index(self) -> Tensor:
        """Numbers of this rank's samples in the whole epoch, [B] int64."""
        first = self.distributed.rank * self.geometry.images_per_rank
        return torch.arange(first, first + self.geometry.images_per_rank)

    def move_slow_weights(self, steps: int) -> None:
        """Anchor after every epoch (d grows with the optimizer steps), average every few."""
        if steps == 0:  # every step was skipped by the fp16 scaler: nothing moved
            return
        self.policy.update_anchor(anchor_decay(self.step, self.averaging.anchor_decay, self.averaging.anchor_schedule))
        if self.epoch % self.averaging.average_interval == 0:
            self.policy.update_average(average_decay(self.epoch - 1, self.averaging.average_decay))

    def finish_epoch(self, metrics: dict[str, float]) -> None:
        """Evaluate, log and save when due."""
        self.log(metrics, evaluates=self.schedule.evaluates_after(self.epoch))
        if self.schedule.saves_after(self.epoch):
            self.outputs.save(self.epoch, self.step)
        if self.outputs.stop_requested():
            raise self.outputs.stopped()

    def log(self, metrics: dict[str, float], *, evaluates: bool) -> None:
        """Write the epoch's metrics, with its evaluation; without it if that fails, and the next start makes it."""
        try:
            evaluation = self.outputs.evaluate(self.epoch) if evaluates else {}
        except (StopRequestedError, RewardError):
            if metrics:
                self.outputs.write_metrics({"epoch": self.epoch, "step": self.step, **metrics})
            raise
        self.outputs.write_metrics({"epoch": self.epoch, "step": self.step, **metrics, **evaluation})
