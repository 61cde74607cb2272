"""What the OCR reward promises, on hand-computed cases."""

from __future__ import annotations

from typing import Any

import pytest

from awm.data.prompts import load_prompts
from dataset.ocr import build
from reward_server.scorers.ocr.rule import TargetError, levenshtein, normalise, target_text, text_reward


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_levenshtein(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@pytest.mark.parametrize(
    ("reading", "target", "reward"),
    [
        ("Grand Opening", "Grand Opening", 1.0),
        ("GRAND\nopening", "grand open ing", 1.0),  # neither case nor spaces count
        ("the Grand Opening today", "Grand Opening", 1.0),  # occurring is enough
        ("Grund Openin", "Grand Opening", 1 - 2 / 12),
        ("OPEM", "OPEN", 0.75),
        ("", "OPEN", 0.0),
        ("xyzw", "OPEN", 0.0),
        ("a page about something else", "OPEN", 0.0),  # the distance of 20 counts as 4
        ("OPE", "OPEN", 0.75),
        ("OPEXXXX", "OPEN", 0.0),  # 7 letters: one substitution and three deletions
    ],
)
def test_reward(reading: str, target: str, reward: float) -> None:
    assert text_reward(reading, target) == pytest.approx(reward)


def test_a_reading_too_long_to_score_is_zero_just_as_its_distance_says() -> None:
    target = "OPEN"
    for extra in range(2 * len(target)):
        reading = "oxpxexn" + "y" * extra  # contains all letters in order: the nearest a text can be without the word
        distance = levenshtein(reading, normalise(target))
        assert text_reward(reading, target) == 1 - min(distance, 4) / 4


def test_noise_of_a_page_is_cheap() -> None:
    assert text_reward("ab" * 500_000, "x" * 2_000) == 0.0  # the distance would take hours


def test_metadata_come_before_the_prompt() -> None:
    assert target_text('a sign "one" and "two"', {"text": "Two"}) == "Two"
    assert target_text('a sign "one" and "two"', {}) == "one"
    assert target_text('a sign "one" and "two"', {"tag": "words"}) == "one"


@pytest.mark.parametrize(
    ("prompt", "metadata", "field"),
    [
        ("a sign", {}, "prompt"),
        ('a 5" pipe', {}, "prompt"),
        ('a sign that says ""', {}, "prompt"),
        ('a sign that says " "', {}, "prompt"),
        ('a sign that says "OPEN"', {"text": ""}, "metadata.text"),  # no second guess at what was meant
        ('a sign that says "OPEN"', {"text": " \t"}, "metadata.text"),
        ('a sign that says "OPEN"', {"text": None}, "metadata.text"),
        ('a sign that says "OPEN"', {"text": 7}, "metadata.text"),
    ],
)
def test_no_target_is_an_error_that_names_the_field(prompt: str, metadata: dict[str, Any], field: str) -> None:
    with pytest.raises(TargetError) as raised:
        target_text(prompt, metadata)
    assert raised.value.field == field and field in str(raised.value)


@pytest.mark.parametrize("split", ["train", "test"])
def test_trainer_and_server_take_the_same_target_from_every_prompt_of_the_prompt_set(split: str) -> None:
    prompts = load_prompts(build.FOLDER, split, "general_ocr")
    for prompt, metadata in zip(prompts.text, prompts.metadata, strict=True):
        assert target_text(prompt, {}) == target_text(prompt, metadata) == metadata["text"]
        assert text_reward(build.target(prompt), metadata["text"]) == 1.0
