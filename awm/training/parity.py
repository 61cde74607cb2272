"""Do faster weights sample images that are worth the same? The same prompts and noise, with plain and fast weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.data.grouping import epoch_prompt_indices, rank_prompts
from awm.data.prompts import PromptSet
from awm.flow.rng import SampleNoise
from awm.interfaces import Sampler
from awm.rewards.errors import RewardError
from awm.training.distributed import Distributed
from awm.training.rollout import Progress, Rollout

IMAGES = 64  # pairs of a comparison, over all ranks
AGAIN_AFTER = 10  # epochs: the LoRA has grown then, and merging rounds it
ERRORS = 2.0  # standard errors that a gap may be without saying anything
LATENT_GAP = 0.5  # where rewards say nothing; images of other noise differ by about 1.4


class ParityError(RuntimeError):
    """Fast weights sample something else; raised on every rank, before anything is trained."""


@dataclass(frozen=True, slots=True)
class Parity:
    """A comparison of n pairs of images, plain and fast, of the same prompt and noise.

    Attributes:
        pairs: n, those that both have a score.
        gap: mean of d_i = r_i(fast) - r_i(plain).
        standard_error: of ``gap``, sqrt((sum_i (d_i - gap)^2 + spread^2) / (n (n - 1))). The spread^2 counts one
            pair more that differs: of a few rewards of 0 and 1, all may change alike by chance, and without it that
            chance would seem to be none. For many pairs it is of no weight.
        spread: standard deviation of all 2 n rewards.
        latent_gap: rms of x_0(fast) - x_0(plain) over rms of x_0(plain), of all pairs.
    """

    pairs: int
    gap: float
    standard_error: float
    spread: float
    latent_gap: float

    def exceeds(self, max_gap: float) -> bool:
        """Whether the difference is too large and not chance.

        |gap| - 2 standard_error > max_gap spread: the smallest gap that is compatible with the pairs is still beyond
        what is tolerated. A single image that is now right or wrong is no reason, and neither is a noisy comparison;
        it can only miss a small difference, and says its standard error. Where all rewards are equal (spread 0) they
        say nothing, and the images themselves decide: their latents may differ by half their rms.
        """
        if not math.isfinite(self.latent_gap):
            return True
        if self.spread == 0:
            return self.latent_gap > LATENT_GAP
        return abs(self.gap) - ERRORS * self.standard_error > max_gap * self.spread

    def metrics(self, max_gap: float) -> dict[str, float]:
        """For the log; reward differences in units of the rewards' standard deviation."""
        unit = self.spread or 1.0
        return {
            "parity/reward_gap": self.gap / unit,
            "parity/standard_error": self.standard_error / unit,
            "parity/latent_gap": self.latent_gap,
            "parity/exceeded": float(self.exceeds(max_gap)),
        }

    def __str__(self) -> str:
        return (
            f"reward {self.gap:+.4f} +- {self.standard_error:.4f} (standard deviation {self.spread:.4f}), x_0 "
            f"{self.latent_gap:.2%} rms, {self.pairs} pairs of images"
        )


def compare(plain: Tensor, fast: Tensor, latent_gap: float) -> Parity:
    """Compare rewards [N] each; NaN where there is none.

    Raises:
        RewardError: fewer than two pairs have both scores.
    """
    both = torch.isfinite(plain) & torch.isfinite(fast)
    a, b = plain[both].double(), fast[both].double()
    count = len(a)
    if count < 2:
        raise RewardError(
            "reward",
            "",
            f"of {len(plain)} pairs of images, {count} got both scores, so that plain and fast weights cannot be "
            f"compared; the reward server's log says why",
        )
    differences, spread = b - a, torch.cat([a, b]).std(correction=0)
    squares = (differences - differences.mean()).square().sum() + spread.square()
    return Parity(
        pairs=count,
        gap=float(differences.mean()),
        standard_error=float((squares / (count * (count - 1))).sqrt()),
        spread=float(spread),
        latent_gap=latent_gap,
    )


class ParityCheck:
    """Compares on prompts of the training set; all ranks take part and come to the same result.

    At the start of a run the LoRA adds nothing (B = 0), and merging it is exact: only eight bits show then. Therefore
    the trainer asks again when the run has trained ``AGAIN_AFTER`` epochs, and whenever it is resumed.

    Args:
        rollout: the one whose weights are compared, with its reward.
        prompts: the training prompts.
        num_prompts: of an epoch.
        distributed: the ranks.
        seed: keys the noise.
        max_gap: tolerated difference of mean rewards, in standard deviations of the rewards.
        progress: a bar over a phase of so many images, as :meth:`awm.training.outputs.RunOutputs.progress`.
    """

    def __init__(
        self,
        *,
        rollout: Rollout,
        prompts: PromptSet,
        num_prompts: int,
        distributed: Distributed,
        seed: int,
        max_gap: float,
        progress: Callable[[int, str, int], AbstractContextManager[Progress]],
    ) -> None:
        self.rollout, self.prompts, self.num_prompts = rollout, prompts, num_prompts
        self.distributed, self.seed, self.max_gap, self.progress = distributed, seed, max_gap, progress

    def __call__(self, epoch: int, sampler: Sampler) -> Parity:
        """Compare with the prompts of ``epoch`` (counted from 0); a collective."""
        per_rank = -(-IMAGES // self.distributed.world_size)
        first = self.distributed.rank * per_rank
        index = torch.arange(first, first + per_rank)
        chosen = epoch_prompt_indices(self.seed, epoch, len(self.prompts), self.num_prompts)
        in_turn = [chosen[number % len(chosen)] for number in range(per_rank * self.distributed.world_size)]
        prompts = rank_prompts(self.prompts, in_turn, 1, self.distributed.rank, per_rank)

        def noise(rows: slice) -> SampleNoise:
            return SampleNoise(self.seed, "parity", epoch, index[rows], self.distributed.device)

        with self.progress(epoch + 1, "comparing", 2 * per_rank) as done:
            plain, fast = (self.rollout(prompts, noise, done, (), sampler=sampler, plain=p) for p in (True, False))
        x_plain, x_fast = plain.trajectory.x_0.float(), fast.trajectory.x_0.float()
        squares = self.distributed.sum(torch.stack([(x_fast - x_plain).square().sum(), x_plain.square().sum()]))
        return compare(
            self.distributed.gather(plain.rewards.total),
            self.distributed.gather(fast.rewards.total),
            latent_gap=float((squares[0] / squares[1]).sqrt()),
        )

    def require(self, epoch: int, sampler: Sampler) -> Parity:
        """Compare before anything is trained.

        Raises:
            ParityError: on every rank, if the fast weights must not be used.
        """
        parity = self(epoch, sampler)
        if parity.exceeds(self.max_gap):
            raise ParityError(
                f"the faster weights of sample.merge_lora and sample.fp8 sample other images than the trained ones: "
                f"{parity}. That is beyond sample.max_reward_gap={self.max_gap:g} standard deviations and chance. "
                f"Set sample.fp8=False if it is on, or else sample.merge_lora=False. Nothing has been trained since "
                f"the start."
            )
        return parity
