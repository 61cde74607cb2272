"""What the paired comparison promises, on numbers worked out by hand."""

import math
import random
import statistics

import pytest

from awm.report.statistics import mean_of_tasks, paired_gain


def test_gain_and_standard_error_by_hand() -> None:
    # Differences 1, 0, 0, -1, 1: mean 0.2, squared deviations 0.64 + 0.04 + 0.04 + 1.44 + 0.64 = 2.8.
    gain = paired_gain([0, 1, 0, 1, 0], [1, 1, 0, 0, 1])
    assert (gain.n, gain.wins, gain.losses) == (5, 2, 1)
    assert (gain.before, gain.after) == (0.4, 0.6)
    assert gain.gain == pytest.approx(0.2)
    assert gain.standard_error == pytest.approx(math.sqrt(2.8 / 4 / 5))
    assert gain.in_standard_errors == pytest.approx(0.2 / math.sqrt(0.14))
    assert not gain.is_clear


def test_images_of_one_prompt_count_together() -> None:
    # Differences 1, 1 | 0, 0 | 1, 1: mean 2/3; sums of deviations 2/3, -4/3, 2/3, their squares 24/9 together.
    before, after, prompt = [0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1], ["a", "a", "b", "b", "c", "c"]
    gain = paired_gain(before, after, prompt)
    assert gain.gain == pytest.approx(2 / 3)
    assert gain.standard_error == pytest.approx(math.sqrt(3 / 2 * 24 / 9) / 6)
    alone = paired_gain(before, after)
    assert (alone.gain, alone.wins) == (gain.gain, gain.wins) and alone.standard_error < gain.standard_error
    assert paired_gain(before, after, range(6)) == alone


def test_copies_of_an_image_add_no_evidence() -> None:
    before, after = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]
    once = paired_gain(before, after, "abcd")
    thrice = paired_gain(3 * before, 3 * after, 3 * "abcd")
    assert thrice.n == 12 and thrice.standard_error == pytest.approx(once.standard_error)
    assert math.isnan(paired_gain(before, after, "aaaa").standard_error)


def test_clusters_of_different_sizes_give_the_standard_error_they_have() -> None:
    """Against simulation: 40 prompts with a gain of their own, half with one image and half with five."""
    rng = random.Random(0)
    sizes = [1, 5] * 20
    gains, errors = [], []
    for _ in range(400):
        effects = [rng.gauss(0, 1) for _ in sizes]
        scores = [rng.gauss(effect, 0.5) for effect, size in zip(effects, sizes, strict=True) for _ in range(size)]
        prompts = [number for number, size in enumerate(sizes) for _ in range(size)]
        gain = paired_gain([0.0] * len(scores), scores, prompts)
        gains.append(gain.gain)
        errors.append(gain.standard_error)
    assert sum(errors) / len(errors) == pytest.approx(statistics.stdev(gains), rel=0.12)


def test_images_without_a_score_on_either_side_leave_both_means() -> None:
    gain = paired_gain([0.0, None, 1.0, 0.5], [1.0, 1.0, None, 0.5])
    assert (gain.n, gain.before, gain.after, gain.wins) == (2, 0.25, 0.75, 1)


def test_swapping_before_and_after_swaps_the_sign_only() -> None:
    before, after = [0.1, 0.7, 0.4, 0.9], [0.5, 0.6, 0.8, 1.0]
    there, back = paired_gain(before, after), paired_gain(after, before)
    assert there.gain == pytest.approx(-back.gain)
    assert there.standard_error == pytest.approx(back.standard_error)
    assert (there.wins, there.losses) == (back.losses, back.wins)


@pytest.mark.parametrize("scores", [[], [1.0], [0.0, 1.0, 1.0]])
def test_no_change_is_never_clear(scores: list[float]) -> None:
    gain = paired_gain(scores, scores)
    assert math.isnan(gain.in_standard_errors) and not gain.is_clear
    assert math.isnan(gain.gain) == (not scores)


def test_evaluations_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_gain([1.0], [1.0, 0.0])


def test_every_task_counts_the_same_however_many_images_it_has() -> None:
    small = paired_gain([0, 0], [1, 0])  # 0 -> 0.5, standard error 0.5
    large = paired_gain([1, 1, 0, 0], [1, 1, 0, 0])  # 0.5 -> 0.5, standard error 0
    mean = mean_of_tasks([small, large])
    assert (mean.n, mean.before, mean.after, mean.gain) == (6, 0.25, 0.5, 0.25)
    assert mean.standard_error == pytest.approx(0.25)
