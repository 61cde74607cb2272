"""Savings of the trainer, each of which can be switched off, so that what it saves is measured and not believed.

A switch changes one trainer and leaves the product alone: either the parts it is built from, replaced while it is
built and while its epochs run, or the built trainer itself.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

import awm.models.lora as lora
import awm.models.sd3 as sd3
from awm.bench.throughput.patching import replaced
from awm.building import objects
from awm.freed_memory import keep_freed_memory, return_freed_memory
from awm.interfaces import Model, Policy
from awm.objectives.noising import NoisedBatch
from awm.training import rollout
from awm.types import Condition, Rewards


class Switch:
    """Changes nothing; the others say what they change. One object belongs to one trainer."""

    def around(self) -> AbstractContextManager[None]:
        """Is entered while the trainer is built, and for each of its epochs."""
        return nullcontext()

    def change(self, trainer: Any) -> None:
        """Is called once, with the built ``awm.training.trainer.Trainer``."""


class TextPerImage(Switch):
    """Encode the prompt of every image, although a prompt's images share it."""

    def around(self) -> AbstractContextManager[None]:
        """See ``Switch``."""
        return replaced(rollout, "encode_distinct", _encode_each)


def _encode_each(model: Model, text: Sequence[str]) -> tuple[Condition, Tensor]:
    return model.encode(list(text)), torch.arange(len(text))


class Float32Base(Switch):
    """Keep the transformer's frozen weights in float32; autocast copies them to the compute dtype in each forward."""

    def around(self) -> AbstractContextManager[None]:
        """See ``Switch``."""
        build = objects.build_model
        return replaced(objects, "build_model", lambda *a, **named: build(*a, **{**named, "full_precision": True}))


class ForwardPerTime(Switch):
    """T forwards of B rows where the trainer makes one of T B rows; one backward pass, as before."""

    def around(self) -> AbstractContextManager[None]:
        """See ``Switch``."""
        return replaced(NoisedBatch, "velocity", _velocity_per_time)


def _velocity_per_time(self: NoisedBatch, policy: Policy, guidance_scale: float) -> Tensor:
    condition = self.condition.take(torch.arange(self.x_t.shape[1]))  # the rows of every time are the same
    times = zip(self.x_t, self.t, strict=True)
    return torch.stack([policy.model.velocity(x_t, t, condition, guidance_scale) for x_t, t in times])


class OldForward(Switch):
    """Ask the policy that sampled for its likelihood in every micro-batch, although on policy it is the current one.

    The old velocity is the current weights', which is what the trainer takes it to be: the ratio is one either way.
    """

    def __init__(self) -> None:
        self._old: Tensor | None = None

    @contextmanager
    def around(self) -> Iterator[None]:
        """See ``Switch``."""
        once = NoisedBatch.velocity  # another switch's, if it was thrown before

        def velocity(noised: NoisedBatch, policy: Policy, guidance_scale: float) -> Tensor:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    self._old = once(noised, policy, guidance_scale)
            return once(noised, policy, guidance_scale)

        with replaced(NoisedBatch, "velocity", velocity):
            yield
        self._old = None

    def change(self, trainer: Any) -> None:
        """See ``Switch``."""
        objective = trainer.update.objective
        loss = objective.loss

        def with_old(*tensors: Tensor, velocity_old: Tensor | None = None, **named: Any) -> Any:
            return loss(*tensors, velocity_old=self._old if velocity_old is None else velocity_old, **named)

        objective.loss = with_old


class Float32Autoencoder(Switch):
    """Decode in float32, with the channels of an image far apart in memory."""

    def change(self, trainer: Any) -> None:
        """See ``Switch``."""
        pipeline = trainer.policy.model._pipeline
        autoencoder = copy.deepcopy(pipeline.vae).to(torch.float32)  # trainers may share theirs
        autoencoder.to(memory_format=torch.contiguous_format)
        decode = autoencoder.decode
        autoencoder.decode = lambda latents, **named: decode(latents.float().contiguous(), **named)
        pipeline.vae = autoencoder


class LibraryLayer(Switch):
    """A library's own layer: what would put awm's in its place does nothing. The subclasses say which."""

    module: Any
    name: str

    def around(self) -> AbstractContextManager[None]:
        """See ``Switch``."""
        return replaced(self.module, self.name, lambda transformer: None)


class LibraryAttention(LibraryLayer):
    """Diffusers' own attention, by torch's fused kernel."""

    module, name = sd3, "use_short_attention"


class LibraryNorm(LibraryLayer):
    """Diffusers' own normalisation of queries and keys."""

    module, name = sd3, "use_rms_norm_in_pieces"


class LibraryGelu(LibraryLayer):
    """Diffusers' own activation after its linear layer, by torch's kernel."""

    module, name = sd3, "use_fused_gelu"


class LibraryAdapters(LibraryLayer):
    """PEFT's own layers with an adapter."""

    module, name = lora, "use_adapted_linear"


class FreedMemory(Switch):
    """Let the C library give freed tensors' memory back to the kernel, as it does by default."""

    @contextmanager
    def around(self) -> Iterator[None]:
        """See ``Switch``."""
        return_freed_memory()
        try:
            yield
        finally:
            keep_freed_memory()


class RewardsAtTheEnd(Switch):
    """Score nothing before the last image of the epoch is there."""

    def __init__(self) -> None:
        self._sampled, self._images = 0, 0
        self._all_sampled = threading.Event()

    @contextmanager
    def around(self) -> Iterator[None]:
        """See ``Switch``."""
        self._sampled = 0
        self._all_sampled.clear()
        try:
            yield
        finally:
            self._all_sampled.set()  # an epoch that broke leaves no thread behind that waits

    def change(self, trainer: Any) -> None:
        """See ``Switch``."""
        model, self._images = trainer.policy.model, trainer.geometry.images_per_rank
        decode, score = model.decode, trainer.rollout.reward

        def decode_and_count(x_0: Tensor) -> Tensor:
            images: Tensor = decode(x_0)
            self._sampled += len(images)
            if self._sampled >= self._images:
                self._all_sampled.set()
            return images

        def score_late(images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
            self._all_sampled.wait()
            rewards: Rewards = score(images, text, metadata)
            return rewards

        model.decode = decode_and_count
        trainer.rollout.reward = score_late


@contextmanager
def all_around(switches: Sequence[Switch]) -> Iterator[None]:
    """Inside the block all of them are thrown, the first one first."""
    if not switches:
        yield
        return
    with switches[0].around(), all_around(switches[1:]):
        yield


MakeSwitch = Callable[[], Switch]
