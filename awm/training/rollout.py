"""Sampling with scoring: a rank's images of one epoch, their latents and their rewards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from awm.flow.rng import Noise, SampleNoise
from awm.images import quantise
from awm.interfaces import Model, Policy, Reward, Sampler, WeightSet
from awm.rewards.errors import RewardError
from awm.rewards.threads import scoring_pool
from awm.training.distributed import Distributed
from awm.training.host_copy import HostCopy
from awm.training.phases import DeviceStopwatch
from awm.types import Condition, Prompts, Rewards, Trajectory

Progress = Callable[[int], object]
"""Told how many more images are done."""
STOP_POLL_S = 0.2  # between looks at ``stop`` while scores are waited for


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """What one rank sampled.

    Attributes:
        trajectory: x_0 of all samples; states and log-probabilities if asked for.
        condition: distinct prompts of this rank.
        prompt_index: [B] int64 row of ``condition`` of each sample.
        rewards: scores of all samples.
        images: row -> uint8 [3, H, W], the images that were asked for.
        seconds: of this rank's encode, decode, and reward_wait: waiting for scores, its own and other ranks', after
            the last image was sampled.
    """

    trajectory: Trajectory
    condition: Condition
    prompt_index: Tensor
    rewards: Rewards
    images: dict[int, Tensor]
    seconds: dict[str, float]


class Rollout:
    """Samples in batches and scores each batch in the background while the next one is sampled.

    Args:
        policy: whose velocity is followed.
        sampler: the solver.
        reward: called from worker threads with images on the CPU.
        distributed: to agree among ranks on a failure.
        batch_size: images per sampling batch.
        resolution: pixels a side.
        guidance_scale: classifier-free guidance during sampling.
        weights: weight set that samples.
        keep_states: also return the states the sampler visited.
        keep_velocities: and the velocities there.
        stop: once set, scores that are not there yet are given up.
        workers: scoring requests in flight.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        sampler: Sampler,
        reward: Reward,
        distributed: Distributed,
        batch_size: int,
        resolution: int,
        guidance_scale: float = 1.0,
        weights: WeightSet = "current",
        keep_states: bool = False,
        keep_velocities: bool = False,
        stop: threading.Event | None = None,
        workers: int = 4,
    ) -> None:
        self.policy, self.sampler, self.reward, self.distributed = policy, sampler, reward, distributed
        self.batch_size, self.guidance_scale, self.weights = batch_size, guidance_scale, weights
        self.keep_states, self.keep_velocities = keep_states, keep_velocities
        self.stop, self.workers = stop or threading.Event(), workers
        self.latent_shape = policy.model.latent_shape(resolution)

    def __call__(
        self,
        prompts: Prompts,
        noise_for: Callable[[slice], Noise],
        progress: Progress,
        keep: Collection[int],
        rounds: int = 0,
        sampler: Sampler | None = None,
        plain: bool = False,
    ) -> RolloutResult:
        """Sample and score ``prompts``.

        Args:
            prompts: one per image.
            noise_for: the random numbers of a slice of rows.
            progress: told after each batch, and once more after the last score; what it raises ends the rollout.
            keep: rows whose images are returned.
            rounds: batches of the rank that has most. ``progress`` may be a collective, so every rank calls it as
                often, and before the ranks agree on whether scoring failed.
            sampler: in place of the rollout's own.
            plain: with the weights as they are trained, also if the policy has a faster copy of them.
        """
        encoding, decoding = DeviceStopwatch(self.distributed.device), DeviceStopwatch(self.distributed.device)
        with encoding():
            condition, prompt_index = encode_distinct(self.policy.model, prompts.text)
        trajectories: list[Trajectory] = []
        futures: list[Future[Rewards]] = []
        shown: dict[int, tuple[HostCopy, int]] = {}
        on_host: HostCopy | None = None
        failure: Exception | None = None
        pool = scoring_pool(self.workers, self.distributed.device)
        try:
            with self._weights(plain):
                for start in range(0, len(prompts), self.batch_size):
                    rows = slice(start, start + self.batch_size)
                    told = condition.take(prompt_index[rows])
                    trajectory = self._sample(sampler or self.sampler, told, noise_for(rows))
                    trajectories.append(trajectory)
                    with decoding():
                        images = self._decode(trajectory)
                    on_host = HostCopy(images)
                    text, metadata = prompts.text[rows], prompts.metadata[rows]
                    futures.append(pool.submit(_score, self.reward, on_host, text, metadata))
                    shown |= {row: (on_host, row - start) for row in keep if start <= row < start + len(images)}
                    progress(len(images))
                for _ in range(len(futures), rounds):
                    self._accompany(sampler or self.sampler, condition)
                    progress(0)
            if on_host is not None:
                on_host.wait()
            sampled = time.perf_counter()
            try:
                rewards = Rewards.cat(self._wait(futures))
            except Exception as error:
                failure = error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a run that ends waits for no slow server
        progress(0)  # a request to stop while scores were waited for is no failure of the reward
        self._agree(failure)
        return RolloutResult(
            trajectory=_concatenate(trajectories),
            condition=condition,
            prompt_index=prompt_index,
            rewards=rewards,
            images={row: quantise(batch.wait()[place]) for row, (batch, place) in shown.items()},
            seconds={
                "encode": encoding.seconds(),
                "decode": decoding.seconds(),
                "reward_wait": time.perf_counter() - sampled,
            },
        )

    def idle(self, progress: Progress, rounds: int) -> None:
        """Take part in what is collective while the other ranks sample ``rounds`` batches and this one none."""
        condition = self.policy.model.encode([""])
        with self._weights(plain=False):
            for _ in range(rounds):
                self._accompany(self.sampler, condition)
                progress(0)
        progress(0)
        self._agree(None)

    def _accompany(self, sampler: Sampler, condition: Condition) -> None:
        """Where forwards are collective, run those of a batch with the other ranks: one row, which is dropped."""
        if self.distributed.forwards_are_collective:
            noise = SampleNoise.for_evaluation(0, [""], [0], self.distributed.device)
            self._sample(sampler, condition.take(torch.tensor([0])), noise)

    def _weights(self, plain: bool) -> AbstractContextManager[None]:
        return self.policy.using(self.weights) if plain else self.policy.sampling(self.weights)

    @torch.no_grad()
    def _sample(self, sampler: Sampler, condition: Condition, noise: Noise) -> Trajectory:
        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.policy.model.velocity(x_t, t, condition, self.guidance_scale)

        x_1 = noise.randn(self.latent_shape)
        trajectory = sampler(velocity, x_1, lambda: noise.randn(self.latent_shape), keep_states=self.keep_states)
        return trajectory if self.keep_velocities else replace(trajectory, velocities=None)

    @torch.no_grad()
    def _decode(self, trajectory: Trajectory) -> Tensor:
        return self.policy.model.decode(trajectory.x_0)

    def _wait(self, futures: list[Future[Rewards]]) -> list[Rewards]:
        """The scores, or the first error."""
        while (state := wait(futures, STOP_POLL_S, FIRST_EXCEPTION)).not_done:
            if self.stop.is_set():
                raise RewardError("reward", "", "was not waited for any longer, because the run is to stop")
            for future in state.done:
                future.result()
        return [future.result() for future in futures]

    def _agree(self, failure: Exception | None) -> None:
        """Raise on every rank if scoring failed on any, so that no rank waits in a collective for a dead one."""
        if self.distributed.any(failure is not None):
            if failure is not None:
                raise failure
            raise RewardError("reward", "", "scoring failed on another rank, whose message says why")


def _score(reward: Reward, images: HostCopy, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
    return reward(images.wait(), text, metadata)


def encode_distinct(model: Model, text: tuple[str, ...]) -> tuple[Condition, Tensor]:
    """Encode each distinct string once: its condition, and the row [B] int64 each of ``text`` belongs to."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(text))}
    return model.encode(list(rows)), torch.tensor([rows[prompt] for prompt in text], dtype=torch.int64)


def _concatenate(parts: list[Trajectory]) -> Trajectory:
    return replace(
        parts[0],
        x_0=torch.cat([p.x_0 for p in parts]),
        states=_beside([p.states for p in parts]),
        log_prob=_beside([p.log_prob for p in parts]),
        velocities=_beside([p.velocities for p in parts]),
    )


def _beside(parts: list[Tensor | None]) -> Tensor | None:
    """[n, B_1 + B_2 + ..., ...] of tensors [n, B_j, ...]; None if the sampler returned none."""
    known = [part for part in parts if part is not None]
    return torch.cat(known, dim=1) if known else None
