"""The five plug-ins on one page. Anything with these methods fits the trainer; nothing needs a base class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from awm.types import Condition, Experience, GroupWeights, LossOutput, Needs, Rewards, Trajectory

VelocityField = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, H, W], t [B] in [0, 1] with 1 = noise) -> velocity [B, C, H, W], d x_t / d t."""

Randn = Callable[[], Tensor]
"""Draws the batch's next standard normal [B, C, H, W]; row i comes from sample i's own generator."""

WeightSet = Literal["current", "anchor", "reference", "average", "rollout"]
"""current: being trained. anchor: slow KL target. reference: the pre-trained model. average: evaluation
EMA. rollout: the weights this epoch was sampled with, kept only while several updates reuse its samples."""


class Model(Protocol):
    """A latent text-to-image flow model: encodes text, predicts velocity, decodes latents."""

    transformer: nn.Module

    def encode(self, text: Sequence[str]) -> Condition:
        """Condition of each string; called once per distinct prompt, without gradient."""

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, guidance_scale: float = 1.0) -> Tensor:
        """Velocity at x_t [B, C, H, W], t [B] in [0, 1]; owns classifier-free guidance. Float32 out."""

    def decode(self, x_0: Tensor) -> Tensor:
        """Images [B, 3, H, W] float32 in [0, 1] of latents [B, C, h, w]."""

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a square image with that many pixels a side."""


class Policy(Protocol):
    """A model and its weight sets."""

    model: Model

    def using(self, name: WeightSet) -> AbstractContextManager[None]:
        """Inside the block ``model.velocity`` uses these weights; after it, bit for bit the ones before."""

    def sampling(self, name: WeightSet) -> AbstractContextManager[None]:
        """Inside the block ``model.velocity`` samples with these weights, without gradient, as fast as it can.

        Where nothing is faster, the same as ``using``. The weights are those of the block's start.
        """

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters of *current*."""

    def equals_current(self, name: WeightSet) -> bool:
        """Whether a set is known to hold, bit for bit, what *current* holds; the same on all ranks."""

    def current_moved(self) -> None:
        """To be told when *current* was changed, by an optimizer's step or otherwise."""

    def update_anchor(self, decay: float) -> None:
        """Move it: anchor <- decay * anchor + (1 - decay) * current."""

    def update_average(self, decay: float) -> None:
        """Move it: average <- decay * average + (1 - decay) * current."""

    def snapshot_rollout(self) -> None:
        """Keep the weights that sampled: rollout <- current, before updates that will need the old policy."""

    def state_dict(self, *, keep: bool = True) -> dict[str, Any]:
        """Every weight set that changes, {set: {parameter: tensor on the CPU}}.

        All ranks call it; those that do not ``keep`` the result only help to put sharded tensors together.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write one weight set of ``state_dict()`` in the format plain diffusers loads."""


class Sampler(Protocol):
    """Turns noise into data along a velocity field.

    A class with ``starts_below_one = True`` is given a grid whose ends are edited, see ``flow.times.edit_ends``.
    """

    def __call__(self, velocity: VelocityField, x_1: Tensor, randn: Randn, *, keep_states: bool = False) -> Trajectory:
        """Integrate from x_1 [B, C, H, W]; ``keep_states`` also returns states (and log_prob if defined)."""


class Reward(Protocol):
    """Scores images; a score is a number or an error, never a silent zero."""

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        """Scores of images [B, 3, H, W] in [0, 1]. May be called from several threads."""

    def check(self) -> None:
        """Raise RewardError now if scoring cannot work later (unreachable server, missing scorer)."""


@runtime_checkable
class HasGradient(Protocol):
    """A reward that is also a differentiable function of the images."""

    def score(self, images: Tensor, text: Sequence[str]) -> Tensor:
        """Scores [B] with a gradient with respect to images [B, 3, H, W] in [0, 1]."""


class Objective(Protocol):
    """The learning rule: what one micro-batch costs.

    A class with ``zero_at_zero_advantage = True`` has a loss that is zero, up to its KL terms, where the advantage is:
    ``train.skip_zero_advantage`` may leave such samples out.
    """

    needs: Needs

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch.

        Args:
            policy: model and weight sets; *current* is active and gets the gradient.
            batch: the micro-batch.
            seed: the run's seed; with epoch, inner_epoch and ``batch.sample_index`` it keys every draw.
            epoch: epoch number.
            inner_epoch: number of the pass over the epoch's samples.
            on_policy: True until the first optimizer step of the epoch, while current still equals the
                weights that sampled; then the old log-likelihood is the detached new one.
        """


@runtime_checkable
class WeighsGroups(Protocol):
    """An objective that makes weights of its own from the rewards, where AWM takes the trainer's advantages."""

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        """Weights of all samples of an epoch, over all ranks; they arrive as ``Experience.weight``.

        Args:
            reward: [N] float64, ignored where not valid.
            group: [N] int64; images of one prompt share a value.
            valid: [N] bool.
        """


@runtime_checkable
class PreparesEpoch(Protocol):
    """An objective that looks at all of an epoch's samples before its first update, with the weights that made them."""

    def prepare(
        self, policy: Policy, experience: Experience, *, seed: int, epoch: int, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Experience, dict[str, float]]:
        """The experience with what the objective adds to it, and metrics that are the same on all ranks.

        Args:
            policy: *current* is what the epoch's updates start from.
            experience: this rank's share; every rank's is as long.
            seed: the run's seed.
            epoch: epoch number.
            gather: [B, ...] of this rank -> [N, ...] of all samples in order, on the CPU; a collective.
        """


@runtime_checkable
class PreparesStep(Protocol):
    """An objective whose loss couples the images of a prompt: it looks at all of an optimizer step's samples first.

    A micro-batch may hold less than a group, so what the group contributes to a sample's loss is computed here, without
    gradient, and arrives as ``Experience.group_terms``. Goes with ``Needs(whole_groups=True)``.
    """

    def prepare_step(
        self,
        policy: Policy,
        micro_batches: Sequence[Experience],
        *,
        seed: int,
        epoch: int,
        inner_epoch: int,
        on_policy: bool,
        gather: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """[B_j, ...] group terms of each micro-batch j.

        Args:
            policy: *current* is what the step starts from.
            micro_batches: this rank's share of the step; all ranks have equally many samples.
            seed: the run's seed.
            epoch: epoch number.
            inner_epoch: number of the pass over the epoch's samples.
            on_policy: as for the loss.
            gather: [B, ...] of this rank -> [N, ...] of the step's samples on all ranks, on the CPU; a collective.
        """


@runtime_checkable
class VariesByEpoch(Protocol):
    """A sampler that is another one in every epoch, such as one whose stochastic steps move along the grid."""

    def for_epoch(self, seed: int, epoch: int) -> Sampler:
        """The sampler of ``epoch`` (counted from 0), the same on all ranks."""
