"""Soft-TIFA of GenEval 2 (https://arxiv.org/abs/2512.16853): the probability of the right answer to each question.

Every atom of a prompt (an object, an attribute, a relation, a count) has a question with a known answer. Its score
is the probability that the judge's first word is that answer. The arithmetic mean over an image's questions is
Soft-TIFA AM, an estimate at the level of atoms; the geometric mean is Soft-TIFA GM, one at the level of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import Any

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.vlm.judge import AnswerError, check_template, fill, shown
from reward_server.scorers.vlm.replies import Answer
from reward_server.scorers.vlm.yes_no import MIN_MASS, TOP_LOGPROBS, checked_mass, first_token_settings, mass

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VAGUE = ("none", "many", "several", "multiple", "numerous", "few", "dozens", "eleven", "twelve", "twenty")
FLOOR = 1e-9  # keeps the logarithm of the geometric mean finite
KEY = "vqa_list"


class SoftTifa:
    """Asks the questions in an item's metadata, ``{"vqa_list": [[question, answer], ...]}`` as in GenEval 2.

    An answer is yes, no, or a number from zero to ten, in words or digits. Metrics: ``am``, ``gm``, and the
    probability of the least likely answer, ``min``.

    Args:
        template: what is asked; ``{question}`` stands for the question.
        score: which metric is the reward.
        top_logprobs: how many candidates of the first token the endpoint is to send.
        min_mass: smallest probability of all possible answers together that is an answer at all.
    """

    def __init__(
        self,
        template: str,
        *,
        score: str = "gm",
        top_logprobs: int = TOP_LOGPROBS,
        min_mass: float = MIN_MASS,
    ) -> None:
        if score not in ("am", "gm", "min"):
            raise ValueError(f"score is {score!r}; expected gm (geometric mean), am (arithmetic mean) or min.")
        self.template = check_template(template, "question")
        self.score = score
        self.settings: Mapping[str, Any] = first_token_settings(top_logprobs)
        self.min_mass = checked_mass(min_mass)

    def questions(self, item: Item) -> Sequence[str]:
        """One per entry of ``vqa_list``."""
        return [fill(self.template, "question", question) for question, _ in _pairs(item.metadata)]

    def read(self, item: Item, answers: Sequence[Answer]) -> Scores:
        """Means of the probabilities of the right answers."""
        pairs = _pairs(item.metadata)
        values = [self._probability(*pair, answer) for pair, answer in zip(pairs, answers, strict=True)]
        metrics = {
            "am": sum(values) / len(values),
            "gm": exp(sum(log(max(value, FLOOR)) for value in values) / len(values)),
            "min": min(values),
        }
        return Scores(metrics[self.score], metrics)

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """A question that the grey warm-up image answers."""
        return "a plain grey square", {KEY: [["Is this image plain grey?", "Yes"]]}

    def fingerprint(self) -> Mapping[str, str]:
        """Question, mean and thresholds."""
        return {"template": self.template, "score": self.score, "min_mass": str(self.min_mass), "floor": str(FLOOR)}

    def _probability(self, question: str, expected: str, answer: Answer) -> float:
        if mass(answer, _possible(expected)) < self.min_mass:
            raise AnswerError(
                f"{question!r} asks for an answer like {expected!r}, but less than min_mass={self.min_mass:g} of the "
                f"probability is on such words; the model answered {shown(answer.text)}"
            )
        # An answer beyond the listed candidates is at most as likely as the last of them.
        least = min(exp(token.logprob) for token in answer.first)
        return mass(answer, _spellings(expected).__contains__) or least


def _pairs(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    entries = metadata.get(KEY)
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError(f"metadata.{KEY} is {entries!r}; expected a list such as [['Is the dog red?', 'Yes']]")
    return [_pair(entry, f"metadata.{KEY}[{i}]") for i, entry in enumerate(entries)]


def _pair(entry: Any, name: str) -> tuple[str, str]:
    if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise ValueError(f"{name} is {entry!r}; expected a pair of strings, the question and its answer")
    question, answer = entry
    if _normal(answer) not in ("yes", "no", *NUMBERS):
        raise ValueError(f"{name} has the answer {answer!r}; expected yes, no, or a number from zero to ten")
    return question, _normal(answer)


def _normal(answer: str) -> str:
    """The answer in lower case, numbers in words."""
    text = answer.strip().lower()
    return NUMBERS[int(text)] if text.isascii() and text.isdigit() and int(text) < len(NUMBERS) else text


def _spellings(answer: str) -> frozenset[str]:
    return frozenset({answer, str(NUMBERS.index(answer))} if answer in NUMBERS else {answer})


def _possible(answer: str) -> Callable[[str], bool]:
    """What a model may say that answers the question, rightly or wrongly: "many" does answer "how many"."""
    if answer not in NUMBERS:
        return ("yes", "no").__contains__
    return lambda text: text in NUMBERS or text in _VAGUE or text.isdigit()
