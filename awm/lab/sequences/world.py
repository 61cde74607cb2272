"""A synthetic regulatory world: which activity a DNA sequence has, known exactly.

A motif k is a table of letter probabilities. With s_k(p) its log2 odds at position p against equal letters, a protein
binds there with probability b_k(p) = sigmoid((s_k(p) - threshold) / softness), and

    raw(x) = sum_k effect_k sum_p b_k(p)                                                    activators and repressors
           + bonus sum_p sum_gap b_first(p) b_second(p + width + gap) exp(-(gap - best)^2 / (2 spread^2))     a pair
           - curvature (GC(x) - preferred)^2                                                      GC content
    activity(x) = ceiling tanh(raw(x) / ceiling)                                                  saturation

The shape follows what is known about enhancers (additive motifs, helpers at a preferred distance, repressors); the
motifs and all numbers are invented here, so that a fine-tuned model can be judged by the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LETTERS = "ACGT"


@dataclass(frozen=True, slots=True)
class Motif:
    """One binding site.

    Attributes:
        name: for tables.
        consensus: its most probable letters.
        effect: activity per bound site, before saturation; negative for a repressor.
        rate: mean number of copies planted in a sequence of the background data.
        certainty: probability of the consensus letter at each position; the other three share the rest.
    """

    name: str
    consensus: str
    effect: float
    rate: float
    certainty: float = 0.9

    def probabilities(self) -> Tensor:
        """[W, 4] probability of each letter at each position of the motif."""
        others = (1 - self.certainty) / (len(LETTERS) - 1)
        table = torch.full((len(self.consensus), len(LETTERS)), others)
        table[torch.arange(len(self.consensus)), encode(self.consensus)] = self.certainty
        return table


@dataclass(frozen=True, slots=True)
class Pair:
    """Two motifs that help each other when the second follows the first at about the right distance.

    Attributes:
        first: index of the motif on the left.
        second: index of the motif on the right.
        bonus: activity of a bound pair at the best gap, before saturation.
        best_gap: letters between the two.
        spread: standard deviation of the preference, letters.
        max_gap: no help beyond it.
        rate: mean number of such pairs planted in a sequence of the background data.
    """

    first: int
    second: int
    bonus: float = 2.5
    best_gap: int = 4
    spread: float = 1.5
    max_gap: int = 8
    rate: float = 0.25


@dataclass(frozen=True, slots=True)
class World:
    """The motifs, their grammar and the activity of any sequence; the numbers are this experiment's definition."""

    length: int = 64
    motifs: tuple[Motif, ...] = (
        Motif("A", "TGACTCAT", effect=1.2, rate=0.6),
        Motif("B", "GGGCGGTC", effect=0.8, rate=0.6),
        Motif("C", "AGATAACA", effect=1.0, rate=0.6),
        Motif("R", "CACCTGTT", effect=-1.2, rate=0.6),
        Motif("S", "TTCAGCAG", effect=-0.8, rate=0.6),
    )
    pair: Pair = Pair(first=0, second=1)
    threshold: float = 9.0
    softness: float = 0.8
    ceiling: float = 8.0
    preferred_gc: float = 0.46
    gc_curvature: float = 30.0

    def binding(self, tokens: Tensor) -> Tensor:
        """[B, K, P] probability that motif k is bound at position p, P = L - W + 1, of tokens [B, L] in 0..3."""
        check_tokens(tokens)
        odds = torch.stack([(motif.probabilities() * len(LETTERS)).log2().T for motif in self.motifs])  # [K, 4, W]
        score = F.conv1d(one_hot(tokens), odds)
        return torch.sigmoid((score - self.threshold) / self.softness)

    def raw_activity(self, tokens: Tensor) -> Tensor:
        """[B] activity before saturation: motifs, the pair and GC content, see the module's equation."""
        bound = self.binding(tokens)
        effect = torch.tensor([motif.effect for motif in self.motifs])
        gc_term = self.gc_curvature * (gc_content(tokens) - self.preferred_gc).square()
        return bound.sum(2) @ effect + self.pair.bonus * self.pair_count(bound) - gc_term

    def pair_count(self, bound: Tensor) -> Tensor:
        """[B] number of bound pairs, each counted by how well its gap fits; ``bound`` is [B, K, P]."""
        pair, width = self.pair, len(self.motifs[self.pair.first].consensus)
        total = bound.new_zeros(bound.shape[0])
        for gap in range(pair.max_gap + 1):
            shift = width + gap
            together = bound[:, pair.first, :-shift] * bound[:, pair.second, shift:]
            fit = torch.tensor(-((gap - pair.best_gap) ** 2) / (2 * pair.spread**2)).exp()
            total = total + fit * together.sum(1)
        return total

    def activity(self, tokens: Tensor) -> Tensor:
        """[B] float32 true activity of tokens [B, L], between -ceiling and ceiling."""
        return self.ceiling * torch.tanh(self.raw_activity(tokens) / self.ceiling)


def encode(letters: str) -> Tensor:
    """[L] int64 tokens of a string over ACGT; another letter raises ValueError."""
    unknown = sorted(set(letters) - set(LETTERS))
    if unknown:
        raise ValueError(f"the letters {', '.join(unknown)} are not DNA; use only {LETTERS}.")
    return torch.tensor([LETTERS.index(letter) for letter in letters], dtype=torch.int64)


def one_hot(tokens: Tensor) -> Tensor:
    """[B, 4, L] float32 indicators of tokens [B, L]."""
    return F.one_hot(tokens, len(LETTERS)).to(torch.float32).transpose(1, 2)


def gc_content(tokens: Tensor) -> Tensor:
    """[B] share of C and G."""
    return ((tokens == LETTERS.index("C")) | (tokens == LETTERS.index("G"))).to(torch.float32).mean(1)


def check_tokens(tokens: Tensor) -> None:
    """Raise ValueError unless ``tokens`` is [B, L] with values 0..3: a mask has no activity."""
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"sequences must be a non-empty [B, L] tensor, not of shape {tuple(tokens.shape)}.")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= len(LETTERS):
        raise ValueError(
            f"tokens run from {low} to {high}, but letters are 0..3 ({LETTERS}); sample until no mask is left."
        )
