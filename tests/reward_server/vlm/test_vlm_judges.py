"""Reading answers: hand-computed probabilities, numbers found in text and JSON, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import log, sqrt
from typing import Any

import numpy as np
import pytest

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.vlm.judge import AnswerError
from reward_server.scorers.vlm.presets import build_judge
from reward_server.scorers.vlm.replies import Answer, Token

GREY = np.full((8, 8, 3), 128, dtype=np.uint8)


def answer(text: str = "", finish_reason: str = "stop", /, **first: float) -> Answer:
    return Answer(text, finish_reason, tuple(Token(token, log(p)) for token, p in first.items()))


def tokens(first: Mapping[str, float]) -> Answer:
    return answer(next(iter(first)), "length", **first)


def read(preset: str, *answers: Answer, metadata: Mapping[str, Any] | None = None, **options: Any) -> Scores:
    return build_judge(preset, options).read(Item(GREY, "a cat", metadata or {}), answers)


def test_probability_of_yes_is_its_share_over_all_spellings() -> None:
    # yes: .40 + .20 + .10 = .70, no: .08 + .06 = .14; "Not", "yesterday" and the rest are neither.
    first = {"Yes": 0.40, " yes": 0.20, "YES.": 0.10, "No": 0.08, "\u2581no": 0.06, "Not": 0.05, "yesterday": 0.05}
    result = read("vqascore", tokens(first))
    assert result.score == pytest.approx(0.70 / 0.84)
    assert result.metrics == pytest.approx({"p_yes": 0.70, "p_no": 0.14})


def test_one_of_the_two_words_may_be_too_unlikely_to_be_listed() -> None:
    assert read("vqascore", tokens({"Yes": 0.999, "The": 0.001})).score == 1.0
    assert read("vqascore", tokens({"No": 0.999, "The": 0.001})).score == 0.0


def test_an_answer_that_is_hardly_yes_or_no_is_an_error() -> None:
    first = {"A": 0.9, "Yes": 0.05, "No": 0.03}
    with pytest.raises(AnswerError, match=r"yes and no have probability 0\.08 together"):
        read("vqascore", tokens(first))
    assert read("vqascore", tokens(first), min_mass=0.05).score == pytest.approx(0.625)


QUESTIONS = {"vqa_list": [["How many cats?", "four"], ["Are they red?", "Yes"], ["Is there a dog?", "no"]]}


def test_soft_tifa_means_by_hand() -> None:
    answers = [
        tokens({"four": 0.30, "4": 0.15, " Four": 0.05, "3": 0.40, "five": 0.10}),  # .50
        tokens({"Yes": 0.80, "No": 0.20}),  # .80
        tokens({"yes": 0.90, "No": 0.08, "no": 0.02}),  # .10
    ]
    result = read("soft_tifa", *answers, metadata=QUESTIONS)
    assert result.metrics == pytest.approx({"am": 1.4 / 3, "gm": 0.04 ** (1 / 3), "min": 0.1})
    assert result.score == result.metrics["gm"]
    assert read("soft_tifa", *answers, metadata=QUESTIONS, score="am").score == pytest.approx(1.4 / 3)


def test_soft_tifa_asks_every_question_in_order() -> None:
    asked = build_judge("soft_tifa", {}).questions(Item(GREY, "p", QUESTIONS))
    assert asked[0] == "How many cats? Answer in one word."
    assert [text.split("?")[0] for text in asked] == ["How many cats", "Are they red", "Is there a dog"]


def test_digits_and_words_are_the_same_answer() -> None:
    first = tokens({"2": 0.6, "two": 0.3, "Three": 0.1})
    assert read("soft_tifa", first, metadata={"vqa_list": [["How many?", "2"]]}).score == pytest.approx(0.9)
    assert read("soft_tifa", first, metadata={"vqa_list": [["How many?", "Two"]]}).score == pytest.approx(0.9)


def test_a_wrong_answer_is_a_low_score_and_not_an_error() -> None:
    # "four" is not listed, so it is at most as likely as the last candidate, .01.
    crowd = tokens({"Many": 0.9, "12": 0.09, "several": 0.01})
    assert read("soft_tifa", crowd, metadata={"vqa_list": [["How many?", "four"]]}).score == pytest.approx(0.01)
    sure = tokens({"Yes": 1.0, "No": 1e-30})
    two = {"vqa_list": [["Is it?", "no"], ["Is it?", "Yes"]]}
    assert read("soft_tifa", sure, sure, metadata=two).metrics["gm"] == pytest.approx(sqrt(1e-9))


def test_words_that_answer_no_such_question_are_an_error() -> None:
    chatter = tokens({"The": 0.95, "four": 0.05})
    with pytest.raises(AnswerError, match=r"'How many\?' asks for an answer like 'four'"):
        read("soft_tifa", chatter, metadata={"vqa_list": [["How many?", "four"]]})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"metadata.vqa_list is None; expected a list"),
        ({"vqa_list": []}, r"metadata.vqa_list is \[\]"),
        ({"vqa_list": ["Is it red?"]}, r"vqa_list\[0\] is 'Is it red\?'; expected a pair"),
        ({"vqa_list": [["Is it?", "Yes"], ["Is it?", True]]}, r"vqa_list\[1\]"),
        ({"vqa_list": [["Which colour?", "red"]]}, r"answer 'red'; expected yes, no, or a number"),
        ({"vqa_list": [["How many?", "11"]]}, r"answer '11'"),
    ],
)
def test_wrong_question_lists_are_named(metadata: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_judge("soft_tifa", {}).questions(Item(GREY, "p", metadata))


def test_unified_reward_axes_and_their_mean() -> None:
    text = "Alignment Score (1-5): 3.5\nCoherence Score (1-5): **4**\n**Style Score (1-5):** 4.5"
    result = read("unifiedreward", answer(text))
    assert result.metrics == {"alignment": 3.5, "coherence": 4.0, "style": 4.5}
    assert result.score == pytest.approx(4.0 / 5)


def test_unified_reward_final_score_is_the_last_one() -> None:
    text = "I end with a number after 'Final Score: 1'.\ncat (animal): 1\nFinal Score: 4.25"
    assert read("unifiedreward_final", answer(text)).score == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I cannot judge this image.", "found no number for alignment"),
        ("Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z", "found no number for alignment"),
        ("Alignment Score (1-5): 3\nCoherence Score (1-5): 4", "found no number for style"),
        ("Alignment Score: 3\nCoherence Score: 4\nStyle Score: 55", "style is 55, outside the scale from 1 to 5"),
        ("Alignment Score: 0\nCoherence Score: 4\nStyle Score: 5", "alignment is 0, outside"),
        ("", "found no number"),
    ],
)
def test_unparsable_text_is_an_error_and_never_a_zero(text: str, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        read("unifiedreward", answer(text))


def test_a_cut_off_answer_is_an_error() -> None:
    with pytest.raises(AnswerError, match="max_tokens"):
        read("unifiedreward_final", answer("At first sight the Final Score: 4 but", "length"))


RUBRIC: dict[str, Any] = {"template": "Rate {prompt}.", "fields": ["beauty", "text"], "low": 0.0, "high": 10.0}


def test_json_rubric_sends_a_schema_and_weighs_the_fields() -> None:
    judge = build_judge("rubric", RUBRIC | {"weights": {"beauty": 3, "text": 1}})
    schema = judge.settings["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["beauty", "text"]
    assert schema["properties"]["text"] == {"type": "number", "minimum": 0.0, "maximum": 10.0}
    result = judge.read(Item(GREY, "p", {}), [answer(json.dumps({"beauty": 8, "text": 4.0}))])
    assert result.score == pytest.approx(0.7)  # (3 * 8 + 1 * 4) / 4 / 10
    assert result.metrics == {"beauty": 8.0, "text": 4.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"beauty": 8, "text": ', "not JSON"),
        ('{"beauty": 8}', "no number under 'text'"),
        ('{"beauty": 8, "text": "4"}', "no number under 'text'"),
        ('{"beauty": true, "text": 4}', "no number under 'beauty'"),
        ('{"beauty": NaN, "text": 4}', "no number under 'beauty'"),
        ("[8, 4]", "no number under 'beauty'"),
        ('{"beauty": 8, "text": 11}', "outside the scale"),
    ],
)
def test_unparsable_json_is_an_error(text: str, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        read("rubric", answer(text), **RUBRIC)


def test_text_rubric_with_ones_own_expression_and_json_in_the_template() -> None:
    options: dict[str, Any] = {
        "template": 'Compare with "{prompt}"; answer {"grade": N}.',
        "fields": {"grade": r'"grade":\s*(-?\d+)'},
        "low": -5.0,
        "high": 5.0,
    }
    judge = build_judge("rubric", options)
    assert judge.questions(Item(GREY, "a {cat}", {})) == ['Compare with "a {cat}"; answer {"grade": N}.']
    assert judge.read(Item(GREY, "p", {}), [answer('{"grade": -2}')]).score == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("vqascore", {"template": "Is this good?"}, "lacks {prompt}"),
        ("vqascore", {"template": "Is this {promt}?"}, "unknown placeholder {promt}"),
        ("vqascore", {"top_logprobs": 1}, "at least 2"),
        ("vqascore", {"min_mass": 0}, "probability above 0"),
        ("soft_tifa", {"template": "{prompt}"}, "unknown placeholder {prompt}; the one it may have is {question}"),
        ("soft_tifa", {"score": "mean"}, "gm .geometric mean"),
        ("rubric", RUBRIC | {"fields": {}}, "expected {name: regular expression}"),
        ("rubric", RUBRIC | {"fields": {"a": r"\d+"}}, "has 0 groups"),
        ("rubric", RUBRIC | {"fields": {"a": r"("}}, "not valid"),
        ("rubric", RUBRIC | {"low": 5.0, "high": 5.0}, "low < high"),
        ("rubric", RUBRIC | {"weights": {"beauty": 1}}, "for each of beauty, text"),
    ],
)
def test_wrong_judge_options_are_refused(preset: str, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_judge(preset, options)
