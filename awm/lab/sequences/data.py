"""The background data: sequences as an enhancer library would hold them, and their measured activities.

A sequence starts as a first-order Markov chain with its own GC content and few CG steps (as in vertebrate DNA); then
motifs are written over it, each a draw from its letter table at a random place, their numbers Poisson. Measurements
carry Gaussian noise. Nothing is stored: the same generator gives the same data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awm.lab.sequences.world import LETTERS, World

GC_MEAN, GC_STD, CG_FACTOR = 0.46, 0.06, 0.4
NOISE_STD = 0.5  # of a measurement, in units of activity


@dataclass(frozen=True, slots=True)
class Measurements:
    """Sequences and what an experiment said about them.

    Attributes:
        tokens: [M, L] int64 letters 0..3.
        activity: [M] float32 measured, that is noisy, activity.
    """

    tokens: Tensor
    activity: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def halves(self) -> tuple[Measurements, Measurements]:
        """Two disjoint halves."""
        middle = len(self) // 2
        return (
            Measurements(self.tokens[:middle], self.activity[:middle]),
            Measurements(self.tokens[middle:], self.activity[middle:]),
        )


def measure(world: World, tokens: Tensor, generator: torch.Generator, *, noise_std: float = NOISE_STD) -> Measurements:
    """Activities with Gaussian noise of standard deviation ``noise_std``."""
    noise = torch.randn(tokens.shape[0], generator=generator)
    return Measurements(tokens, world.activity(tokens) + noise_std * noise)


def sample_sequences(world: World, number: int, generator: torch.Generator) -> Tensor:
    """[number, L] int64 sequences of the background distribution.

    Args:
        world: its length, motifs and planting rates.
        number: how many, at least one.
        generator: all randomness.
    """
    if number < 1:
        raise ValueError(f"number of sequences is {number}; it must be at least 1.")
    tokens = background(number, world.length, generator)
    for motif in world.motifs:
        plant(tokens, motif.probabilities(), motif.rate, generator)
    plant_pairs(tokens, world, generator)
    return tokens


def background(number: int, length: int, generator: torch.Generator) -> Tensor:
    """[number, length] Markov chains: GC content per sequence normal, CG steps rarer by CG_FACTOR."""
    gc = (GC_MEAN + GC_STD * torch.randn(number, 1, generator=generator)).clamp(0.2, 0.8)
    letter = torch.cat([1 - gc, gc, gc, 1 - gc], 1) / 2
    after_c = letter.clone()
    after_c[:, LETTERS.index("G")] *= CG_FACTOR
    after_c /= after_c.sum(1, keepdim=True)
    tokens = torch.empty(number, length, dtype=torch.int64)
    tokens[:, 0] = torch.multinomial(letter, 1, generator=generator)[:, 0]
    for p in range(1, length):
        is_c = tokens[:, p - 1 : p] == LETTERS.index("C")
        tokens[:, p] = torch.multinomial(torch.where(is_c, after_c, letter), 1, generator=generator)[:, 0]
    return tokens


def plant(tokens: Tensor, table: Tensor, rate: float, generator: torch.Generator) -> None:
    """Write Poisson(``rate``) draws of a motif's letter table [W, 4] over each row of ``tokens``, in place."""
    copies = torch.poisson(torch.full((tokens.shape[0],), rate), generator=generator)
    for copy in range(int(copies.max())):
        rows = (copies > copy).nonzero()[:, 0]
        start = torch.randint(tokens.shape[1] - table.shape[0] + 1, (len(rows),), generator=generator)
        write(tokens, rows, start, table, generator)


def plant_pairs(tokens: Tensor, world: World, generator: torch.Generator) -> None:
    """Write the world's cooperative pair, at a gap near the best one, over Poisson-many places, in place."""
    pair = world.pair
    first, second = (world.motifs[index].probabilities() for index in (pair.first, pair.second))
    copies = torch.poisson(torch.full((tokens.shape[0],), pair.rate), generator=generator)
    span = first.shape[0] + second.shape[0] + pair.max_gap
    for copy in range(int(copies.max())):
        rows = (copies > copy).nonzero()[:, 0]
        start = torch.randint(tokens.shape[1] - span + 1, (len(rows),), generator=generator)
        offset = (pair.spread * torch.randn(len(rows), generator=generator)).round().long()
        gap = (pair.best_gap + offset).clamp(0, pair.max_gap)
        write(tokens, rows, start, first, generator)
        write(tokens, rows, start + first.shape[0] + gap, second, generator)


def write(tokens: Tensor, rows: Tensor, start: Tensor, table: Tensor, generator: torch.Generator) -> None:
    """Write one draw of ``table`` [W, 4] into each of ``rows``, from position ``start`` on, in place."""
    letters = torch.multinomial(table, len(rows), replacement=True, generator=generator).T  # [R, W]
    tokens[rows[:, None], start[:, None] + torch.arange(table.shape[0])] = letters
