"""The values that flow through one epoch, in order of appearance.

``Prompts -> Condition -> Trajectory -> images -> Rewards -> Experience -> LossOutput``. All are frozen:
a stage returns a new value, it never edits the one it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prompts:
    """B prompts, one per image to be sampled.

    Attributes:
        text: B strings.
        group: [B] int64 on the CPU; images of one prompt share a value. Never derived from text.
        metadata: B dictionaries, what the reward needs beside the text (GenEval's tag, include, ...).
    """

    text: tuple[str, ...]
    group: Tensor
    metadata: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: slice) -> Prompts:
        return Prompts(self.text[index], self.group[index], self.metadata[index])


@dataclass(frozen=True, slots=True)
class Condition:
    """What the model is told about each image.

    Attributes:
        embeds: [B, L, D] token embeddings for the attention streams.
        pooled: [B, P] pooled embedding for the modulation.
    """

    embeds: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def take(self, index: Tensor) -> Condition:
        """Rows ``index`` ([N] int64) as a new condition of batch N."""
        index = index.to(self.embeds.device)
        return Condition(self.embeds[index], self.pooled[index])

    def repeat(self, times: int) -> Condition:
        """The whole batch ``times`` times over: rows 0..B-1, 0..B-1, ... (time-major packing)."""
        return Condition(self.embeds.repeat(times, 1, 1), self.pooled.repeat(times, 1))

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """As ``Tensor.to``, for both tensors."""
        return Condition(self.embeds.to(*args, **kwargs), self.pooled.to(*args, **kwargs))

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Concatenate along the batch."""
        return Condition(torch.cat([p.embeds for p in parts]), torch.cat([p.pooled for p in parts]))


@dataclass(frozen=True, slots=True)
class Transition:
    """One step t -> s of a sampler: x_s ~ N(x_weight x_t + velocity_weight v, std^2 I); std is 0 for an ODE step.

    Attributes:
        t: time before the step.
        s: time after it, s < t.
        x_weight: of the state.
        velocity_weight: of the velocity, d mean / d v, negative.
        std: of the noise.
        unscaled: the sampler's likelihood is -mean (x_s - mean)^2, without std and constants (CPS).
    """

    t: float
    s: float
    x_weight: float
    velocity_weight: float
    std: float
    unscaled: bool = False


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a sampler returns.

    Attributes:
        x_0: [B, C, H, W] float32 clean latents.
        times: the n + 1 grid values the sampler visited, from noise to data.
        states: [n + 1, B, C, H, W] float32 states at ``times``; None unless asked for.
        log_prob: [n, B] log-probability of each transition (mean over dimensions); None unless asked
            for, zero where the step was deterministic.
        velocities: [n, B, C, H, W] float32 velocity each step was made with; None unless asked for.
        steps: the n transitions, if the sampler has them.
    """

    x_0: Tensor
    times: tuple[float, ...]
    states: Tensor | None = None
    log_prob: Tensor | None = None
    velocities: Tensor | None = None
    steps: tuple[Transition, ...] | None = None

    def take(self, index: Tensor) -> Trajectory:
        """Samples ``index`` ([N] int64, on the same device)."""
        return replace(
            self,
            x_0=self.x_0[index],
            states=None if self.states is None else self.states[:, index],
            log_prob=None if self.log_prob is None else self.log_prob[:, index],
            velocities=None if self.velocities is None else self.velocities[:, index],
        )


@dataclass(frozen=True, slots=True)
class Rewards:
    """Scores of B images.

    Attributes:
        total: [B] float32 on the CPU, the weighted sum the advantages are made of; NaN where not valid.
        parts: name -> [B] float32, every single reward and sub-score, for logs; NaN where missing.
        valid: [B] bool; False where a reward could not be computed. Such samples are masked, not zeroed.
        errors: B sentences, why a score is missing, "" where none is; empty if nobody knows.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    valid: Tensor
    errors: tuple[str, ...] = ()

    @staticmethod
    def cat(items: Sequence[Rewards]) -> Rewards:
        """Concatenate along the batch; a part that one batch lacks is NaN there."""
        names = dict.fromkeys(name for item in items for name in item.parts)
        parts = {
            name: torch.cat([item.parts.get(name, torch.full_like(item.total, torch.nan)) for item in items])
            for name in names
        }
        return Rewards(
            total=torch.cat([item.total for item in items]),
            parts=parts,
            valid=torch.cat([item.valid for item in items]),
            errors=tuple(error for item in items for error in item.errors or ("",) * len(item.total)),
        )


@dataclass(frozen=True, slots=True)
class Needs:
    """What an objective wants from the trainer beside x_0 and advantages.

    Attributes:
        trajectory: states and log-probabilities of the rollout.
        reward_gradient: the gradient of the reward with respect to x_0, through the decoder.
        group_mates: x_0 of all images of a prompt, also of those that other ranks hold.
        velocities: those of the rollout, too; with ``trajectory``.
        rollout_weights: the weights that sampled, for the updates of an epoch after its first.
        whole_groups: every optimizer step gets all images of its prompts, where it would else get some of each prompt.
    """

    trajectory: bool = False
    reward_gradient: bool = False
    group_mates: bool = False
    velocities: bool = False
    rollout_weights: bool = False
    whole_groups: bool = False


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """What an objective makes of an epoch's rewards, in order, the same on all ranks.

    Attributes:
        value: [N] float32 weight of each sample, zero where not valid.
        metrics: name -> number, for the log.
        slope: derivative of log(value) with respect to the reward, for objectives that follow its gradient.
    """

    value: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    slope: float | None = None


@dataclass(frozen=True, slots=True)
class GroupMates:
    """All valid samples of the prompts that a rank has a share in.

    Attributes:
        x_0: [M, C, H, W] float32 clean latents.
        group: [M] int64, as ``Experience.group``.
        sample_index: [M] int64, as ``Experience.sample_index``.
        weight: [M] float32, as ``Experience.weight``.
    """

    x_0: Tensor
    group: Tensor
    sample_index: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class TargetGradient:
    """Gradient of the log-density that an objective moves toward, at its samples.

    Attributes:
        value: [B, C, H, W] float32, at x_0, or at the slightly noised x_n = (1 - t_n) x_0 + t_n noise.
        policy: [B, C, H, W] float32, the part of it that equal rewards would leave.
        noise: [B, C, H, W] float32 of x_n; None if ``value`` is at x_0.
        fisher: mean square of the gradient per dimension over the epoch, all ranks.
    """

    value: Tensor
    policy: Tensor
    noise: Tensor | None
    fisher: float

    def take(self, index: Tensor) -> TargetGradient:
        """Rows ``index`` ([N] int64, on the same device)."""
        noise = None if self.noise is None else self.noise[index]
        return TargetGradient(self.value[index], self.policy[index], noise, self.fisher)


@dataclass(frozen=True, slots=True)
class Experience:
    """One rank's share of an epoch, all an objective may learn from.

    Attributes:
        x_0: [B, C, H, W] float32 clean latents.
        condition: the rank's distinct prompts, [P, L, D] and [P, Q].
        prompt_index: [B] int64, row of ``condition`` each sample belongs to, where ``x_0`` is.
        sample_index: [B] int64, number of the sample in the whole epoch; keys its random numbers.
        group: [B] int64, number of the sample's prompt in the whole epoch.
        advantage: [B] float32, zero where not valid.
        valid: [B] bool.
        trajectory: states and log-probabilities, only if the objective needs them.
        weight: [B] float32 from the objective's ``weigh``, if it has one.
        weight_gradient: [B, C, H, W] float32 gradient of log(weight) with respect to x_0, only if the objective
            needs it.
        mates: all samples of these prompts, only if the objective needs them.
        target_gradient: what an objective's ``prepare`` made of ``weight_gradient``, if it has one.
        group_terms: [B, ...] what an objective's ``prepare_step`` made of each sample's group, if it has one.
    """

    x_0: Tensor
    condition: Condition
    prompt_index: Tensor
    sample_index: Tensor
    group: Tensor
    advantage: Tensor
    valid: Tensor
    trajectory: Trajectory | None = None
    weight: Tensor | None = None
    weight_gradient: Tensor | None = None
    mates: GroupMates | None = None
    target_gradient: TargetGradient | None = None
    group_terms: Tensor | None = None

    def __len__(self) -> int:
        return self.x_0.shape[0]

    def take(self, index: Tensor) -> Experience:
        """Samples ``index`` ([N] int64, on the CPU) as a smaller experience; prompts and mates stay shared."""
        on_device = index.to(self.x_0.device)
        return replace(
            self,
            x_0=self.x_0[on_device],
            prompt_index=self.prompt_index[on_device],
            sample_index=self.sample_index[index],
            group=self.group[index],
            advantage=self.advantage[on_device],
            valid=self.valid[on_device],
            trajectory=None if self.trajectory is None else self.trajectory.take(on_device),
            weight=None if self.weight is None else self.weight[on_device],
            weight_gradient=None if self.weight_gradient is None else self.weight_gradient[on_device],
            target_gradient=None if self.target_gradient is None else self.target_gradient.take(on_device),
            group_terms=None if self.group_terms is None else self.group_terms[on_device],
        )


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What an objective returns for a micro-batch of B samples.

    Attributes:
        loss: [B] loss of each sample, already averaged over its training times. The trainer weighs,
            sums and divides by the number of valid samples in the whole update, so that the result does
            not depend on micro-batch size or world size.
        metrics: name -> [B] detached per-sample values, averaged in the same way for the log.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
