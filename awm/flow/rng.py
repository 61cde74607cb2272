"""Random numbers that belong to a sample, not to the process or the batch it happens to be in.

Every sample of every epoch has its own generator, keyed by (seed, stream, epoch, index) through numpy's
SeedSequence. Whatever the number of processes or the size of a batch, sample i sees the same noise.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


def sample_generator(
    seed: int, stream: str, epoch: int, index: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of one sample for one purpose.

    The key is hashed to 64 bits, all of which a CUDA generator uses; torch's CPU generator keeps the low 32,
    so among millions of draws of one run two far apart may be equal, as with any 32-bit seed.

    Args:
        seed: the run's seed, >= 0.
        stream: purpose of the numbers ("rollout", "train/0", ...); streams are independent.
        epoch: epoch number, >= 0.
        index: number of the sample within the epoch, >= 0.
        device: where the numbers are drawn; different kinds of device draw different numbers.
    """
    key = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), epoch, index])
    return torch.Generator(device).manual_seed(int(key.generate_state(1, np.uint64)[0]))


def evaluation_index(text: str, copy: int = 0) -> int:
    """A stable sample index for the ``copy``-th image of a prompt.

    Keyed by the words, not by the position in the file, so that an evaluation on a subset, or on a
    reordered file, starts each prompt from the same noise.
    """
    return int.from_bytes(hashlib.sha256(f"{copy}:{text}".encode()).digest()[:8], "big")


class Noise(Protocol):
    """A batch's normal numbers, one row a sample."""

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next standard normal numbers, [B, *shape] float32."""


class SampleNoise:
    """A batch's random numbers, each row drawn from its own sample's generator.

    Successive calls continue each row's stream, and row i is the same in whichever batch it is drawn.

    Args:
        seed: the run's seed.
        stream: purpose of the numbers.
        epoch: epoch number.
        indices: [B] number of each row's sample within the epoch.
        device: where the numbers are drawn.
    """

    def __init__(
        self, seed: int, stream: str, epoch: int, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu"
    ) -> None:
        numbers = indices.tolist() if isinstance(indices, Tensor) else indices
        self.device = torch.device(device)
        self.generators = [sample_generator(seed, stream, epoch, i, device) for i in numbers]

    @classmethod
    def for_evaluation(
        cls, seed: int, text: Sequence[str], copies: Sequence[int], device: torch.device | str = "cpu"
    ) -> SampleNoise:
        """Noise keyed by prompt and copy number, the same at every epoch, so that evaluations compare.

        Args:
            seed: the evaluation's seed.
            text: B prompts.
            copies: [B] 0 for a prompt's first image, 1 for its second, ...
            device: where the numbers are drawn.
        """
        indices = [evaluation_index(words, copy) for words, copy in zip(text, copies, strict=True)]
        return cls(seed, "evaluation", 0, indices, device)

    def randn(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, [B, *shape] float32."""
        return torch.stack([torch.randn(tuple(shape), generator=g, device=self.device) for g in self.generators])

    def rand(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), [B, *shape] float32."""
        return torch.stack([torch.rand(tuple(shape), generator=g, device=self.device) for g in self.generators])


class SharedStart:
    """A batch's random numbers whose first draw comes from other generators than the rest.

    With the first draw keyed by prompt, the images of a prompt start from the same noise and part where the sampler
    draws its own: on a deterministic stretch they are one (Flow-GRPO-Fast's branching, MixGRPO's and DanceGRPO's
    shared initial noise).

    Args:
        start: of the first draw.
        rest: of the others.
    """

    def __init__(self, start: SampleNoise, rest: SampleNoise) -> None:
        self._next, self._rest = start, rest

    def randn(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, [B, *shape] float32."""
        drawn = self._next.randn(shape)
        self._next = self._rest
        return drawn
