"""The synthetic world: activity by hand, planted data, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from awm.lab.sequences.data import NOISE_STD, background, measure, sample_sequences
from awm.lab.sequences.world import Pair, World, encode, gc_content

WORLD = World()
MATCH, MISMATCH = math.log2(0.9 * 4), math.log2(0.1 / 3 * 4)


def bound(mismatches: int = 0) -> float:
    """Probability that a motif of 8 letters with so many mismatches is bound."""
    score = (8 - mismatches) * MATCH + mismatches * MISMATCH
    return 1 / (1 + math.exp(-(score - 9.0) / 0.8))


def planted(*places: tuple[int, str]) -> torch.Tensor:
    """[1, 64] a sequence of A with words written at places; no motif comes near binding A alone."""
    letters = list("A" * 64)
    for start, word in places:
        letters[start : start + len(word)] = word
    return encode("".join(letters))[None]


def expected(raw: float, strong: int) -> float:
    """Activity of ``raw`` motif effects in a sequence with ``strong`` letters C or G."""
    return 8.0 * math.tanh((raw - 30.0 * (strong / 64 - 0.46) ** 2) / 8.0)


@pytest.mark.parametrize(
    ("places", "raw", "strong"),
    [
        ([], 0.0, 0),
        ([(10, "TGACTCAT")], 1.2 * bound(), 3),
        ([(10, "TGACTCCT")], 1.2 * bound(mismatches=1), 4),
        ([(9, "TCACCTGTT")], -1.2 * bound(), 4),
        ([(10, "TGACTCAT"), (22, "GGGCGGTC")], 2.0 * bound() + 2.5 * bound() ** 2, 10),  # gap 4, the best
        ([(10, "TGACTCAT"), (24, "GGGCGGTC")], 2.0 * bound() + 2.5 * bound() ** 2 * math.exp(-4 / 4.5), 10),  # gap 6
        ([(22, "TGACTCAT"), (10, "GGGCGGTC")], 2.0 * bound(), 10),  # the other order does not help
        ([(10, "TGACTCAT"), (40, "GGGCGGTC")], 2.0 * bound(), 10),  # too far apart
    ],
)
def test_activity_by_hand(places: list[tuple[int, str]], raw: float, strong: int) -> None:
    tokens = planted(*places)
    assert gc_content(tokens).item() == pytest.approx(strong / 64)
    assert WORLD.activity(tokens).item() == pytest.approx(expected(raw, strong), abs=2e-3)


def test_activity_saturates_below_the_ceiling() -> None:
    block = "TGACTCATAAAAGGGCGGTC"
    tokens = planted((0, block), (20, block), (40, block))
    assert WORLD.raw_activity(tokens).item() > 11
    assert 6.5 < WORLD.activity(tokens).item() < WORLD.ceiling


def test_data_repeat_with_the_seed_and_hold_the_planted_motifs() -> None:
    def draw(world: World) -> torch.Tensor:
        return sample_sequences(world, 1500, torch.Generator().manual_seed(3))

    tokens = draw(WORLD)
    assert torch.equal(tokens, draw(WORLD))
    assert tokens.shape == (1500, 64) and int(tokens.min()) == 0 and int(tokens.max()) == 3
    bare = draw(
        replace(WORLD, motifs=tuple(replace(m, rate=0.0) for m in WORLD.motifs), pair=Pair(first=0, second=1, rate=0.0))
    )
    with_motifs, without = (WORLD.binding(x).sum(2).mean(0) for x in (tokens, bare))
    assert bool((with_motifs > without + 0.2).all())  # 0.6 copies planted, of which most bind
    assert bool((without < 0.1).all())


def test_background_has_few_cg_steps_and_the_gc_content_it_should() -> None:
    tokens = background(1000, 64, torch.Generator().manual_seed(0))
    cg = ((tokens[:, :-1] == 1) & (tokens[:, 1:] == 2)).double().mean().item()
    gc = ((tokens[:, :-1] == 2) & (tokens[:, 1:] == 1)).double().mean().item()
    assert 0.35 < cg / gc < 0.6
    assert gc_content(tokens).mean().item() == pytest.approx(0.44, abs=0.02)  # 0.46 less what the missing CG cost


def test_measurements_are_noisy_around_the_truth_and_halves_are_disjoint() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = sample_sequences(WORLD, 1000, generator)
    data = measure(WORLD, tokens, generator)
    error = data.activity - WORLD.activity(tokens)
    assert error.std().item() == pytest.approx(NOISE_STD, rel=0.1)
    assert error.mean().item() == pytest.approx(0, abs=0.06)
    first, second = data.halves()
    assert len(first) + len(second) == len(data)
    assert torch.equal(torch.cat([first.tokens, second.tokens]), tokens)


def test_what_is_no_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"letters are 0\.\.3"):
        WORLD.activity(torch.full((2, 64), 4))
    with pytest.raises(ValueError, match="non-empty"):
        WORLD.activity(torch.zeros(64, dtype=torch.int64))
    with pytest.raises(ValueError, match="N are not DNA"):
        encode("ACGN")
    with pytest.raises(ValueError, match="at least 1"):
        sample_sequences(WORLD, 0, torch.Generator())
