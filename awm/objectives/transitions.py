"""A micro-batch of stored stochastic steps, for objectives that use the likelihood of the sampler.

The T steps of B samples are packed into one forward of T B rows, time-major, as ``awm.objectives.noising`` does with
times: row j B + i is sample i at its step j. All samples of a rollout have the same steps, so each step's numbers are
those of ``Trajectory.steps``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.flow.rng import sample_generator
from awm.objectives.noising import NoisedBatch
from awm.objectives.terms import norm_ratio
from awm.samplers.transition import matching_target, transition_kl, transition_log_prob
from awm.types import Experience, LossOutput, Trajectory, Transition


@dataclass(frozen=True, slots=True)
class StepBatch:
    """T steps of B samples.

    Attributes:
        rows: states before the steps, their times and conditions; its target is the velocity that would have led to
            the state after the step without noise (``matching_target``).
        x_s: [T, B, C, H, W] states after the steps.
        log_prob_old: [T, B] of the policy that sampled.
        velocity_old: [T, B, C, H, W] of the policy that sampled; None if the sampler does not return it.
        steps: the T transitions.
    """

    rows: NoisedBatch
    x_s: Tensor
    log_prob_old: Tensor
    velocity_old: Tensor | None
    steps: tuple[Transition, ...]

    def log_prob(self, velocity: Tensor) -> Tensor:
        """[T, B] log-likelihood of the steps under a policy, see ``transition_log_prob``; velocity [T, B, C, H, W]."""
        return self.of_each(lambda j, step: transition_log_prob(self.x_s[j], self.rows.x_t[j], velocity[j], step))

    def kl(self, velocity: Tensor, velocity_other: Tensor, *, time_scaled: bool = False) -> Tensor:
        """[T, B] KL of the steps of one policy to those of another, see ``transition_kl``.

        Args:
            velocity: [T, B, C, H, W].
            velocity_other: [T, B, C, H, W].
            time_scaled: times each step's length t - s, as Flow-GRPO's code has it.
        """
        return self.of_each(
            lambda j, step: (
                (step.t - step.s if time_scaled else 1.0) * transition_kl(velocity[j], velocity_other[j], step)
            )
        )

    def of_each(self, compute: Callable[[int, Transition], Tensor]) -> Tensor:
        """[T, B] of a function of each step's number and transition."""
        return torch.stack([compute(j, step) for j, step in enumerate(self.steps)])


@dataclass(frozen=True, slots=True)
class StepChoice:
    """Which of the stored stochastic steps a pass trains on.

    Attributes:
        fraction: share of the grid, from the noise end, whose steps count.
        num_steps: this many of them, or all if there are fewer, drawn anew for every pass over the samples and shared
            by all of them; None: all.

    Raises:
        ValueError: a fraction or number out of range.
    """

    fraction: float = 1.0
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1 or (self.num_steps is not None and self.num_steps < 1):
            raise ValueError(
                f"timestep_fraction lies in (0, 1] and sde_steps is at least 1 or unset, not {self.fraction} and "
                f"{self.num_steps}."
            )

    def __call__(self, batch: Experience, *, seed: int, epoch: int, inner_epoch: int) -> StepBatch:
        """The chosen steps of a micro-batch, in the order of the rollout.

        Raises:
            ValueError: the rollout stored no stochastic step within the fraction.
        """
        trajectory = batch.trajectory
        usable = _usable(trajectory, self.fraction)
        if trajectory is None or trajectory.states is None or trajectory.log_prob is None or not usable:
            raise ValueError(_nothing_to_train(trajectory, self.fraction))
        if self.num_steps is not None and self.num_steps < len(usable):
            generator = sample_generator(seed, f"steps/{inner_epoch}", epoch, 0)
            drawn = torch.randperm(len(usable), generator=generator)[: self.num_steps]
            usable = [usable[i] for i in sorted(drawn.tolist())]
        return _pack(batch, trajectory, usable)


def add_transition_kl(
    loss: Tensor,
    chosen: StepBatch,
    velocity: Tensor,
    velocity_reference: Tensor | None,
    *,
    beta: float,
    time_scaled: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss plus beta times the KL of the steps to the reference's, averaged over steps, and its metrics.

    Args:
        loss: [B].
        chosen: the steps.
        velocity: [T, B, C, H, W] of the policy being trained.
        velocity_reference: [T, B, C, H, W] of the pre-trained model; None leaves out the KL.
        beta: its coefficient.
        time_scaled: see ``StepBatch.kl``.
    """
    if velocity_reference is None:
        return loss, {}
    kl = chosen.kl(velocity, velocity_reference, time_scaled=time_scaled).mean(0)
    metrics = {"loss/kl_reference": kl, "velocity_norm_ratio": norm_ratio(velocity, velocity_reference)}
    return loss + beta * kl, metrics


def detached(loss: Tensor, metrics: dict[str, Tensor]) -> LossOutput:
    """The output of an objective with this loss [B]; metrics get no gradient."""
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


def _usable(trajectory: Trajectory | None, fraction: float) -> list[int]:
    steps = () if trajectory is None or trajectory.steps is None else trajectory.steps
    return [i for i, step in enumerate(steps[: int(len(steps) * fraction)]) if step.std > 0]


def _nothing_to_train(trajectory: Trajectory | None, fraction: float) -> str:
    message = "this objective trains on the stochastic steps of the rollout, and there are none"
    if _usable(trajectory, 1.0) and trajectory is not None and trajectory.states is not None:
        return (
            f"{message} in the first {fraction:g} of the grid; raise train.timestep_fraction, or move "
            f"sample.window_range toward the noise."
        )
    return (
        f"{message}; use sample.sampler=flow_sde (or dance_sde, cps, ddpm) with sample.noise_level above 0 and "
        f"sample.sde_frac above 0 or a sample.window."
    )


def _pack(batch: Experience, trajectory: Trajectory, indices: list[int]) -> StepBatch:
    states, log_prob, steps = trajectory.states, trajectory.log_prob, trajectory.steps
    assert states is not None and log_prob is not None and steps is not None
    at = torch.tensor(indices, device=states.device)
    chosen = tuple(steps[i] for i in indices)
    x_t, x_s = states[at], states[at + 1]
    times = torch.tensor([step.t for step in chosen], dtype=x_t.dtype, device=x_t.device)
    rows = NoisedBatch(
        x_t=x_t,
        t=times.unsqueeze(1).expand(-1, len(batch)),
        target=torch.stack([matching_target(x_s[j], x_t[j], step) for j, step in enumerate(chosen)]),
        condition=batch.condition.take(batch.prompt_index).repeat(len(chosen)),
    )
    velocity_old = None if trajectory.velocities is None else trajectory.velocities[at]
    return StepBatch(rows, x_s, log_prob[at], velocity_old, chosen)
