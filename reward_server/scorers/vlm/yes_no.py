"""The probability of "yes": P(yes) / (P(yes) + P(no)), from the log probabilities of the answer's first token.

VQAScore (https://arxiv.org/abs/2404.01291) takes P("Yes") to 'Does this figure show "{prompt}"?'. The share among
yes and no is the same where the model answers with either, and comparable between models where it does not quite.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import Any

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.vlm.judge import AnswerError, check_template, fill, shown
from reward_server.scorers.vlm.replies import Answer, Token

TOP_LOGPROBS = 20  # the most that OpenAI sends, and vLLM by default
MIN_MASS = 0.1
_AROUND = string.whitespace + string.punctuation + "\u2581\u0120\u010a"  # the last three: markers of raw tokens


class YesNo:
    """Asks one yes/no question; score = P(yes) / (P(yes) + P(no)), metrics ``p_yes`` and ``p_no``.

    Args:
        template: the question; ``{prompt}`` stands for the prompt.
        top_logprobs: how many candidates of the first token the endpoint is to send.
        min_mass: smallest P(yes) + P(no) that is an answer at all.
    """

    def __init__(self, template: str, *, top_logprobs: int = TOP_LOGPROBS, min_mass: float = MIN_MASS) -> None:
        self.template = check_template(template, "prompt")
        self.settings: Mapping[str, Any] = first_token_settings(top_logprobs)
        self.min_mass = checked_mass(min_mass)

    def questions(self, item: Item) -> Sequence[str]:
        """The template with the prompt."""
        return [fill(self.template, "prompt", item.prompt)]

    def read(self, item: Item, answers: Sequence[Answer]) -> Scores:
        """Share of yes in the first token of the one answer."""
        yes, no = yes_no(answers[0], self.min_mass)
        return Scores(yes / (yes + no), {"p_yes": yes, "p_no": no})

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """The prompt that fits the grey warm-up image."""
        return "a plain grey square", {}

    def fingerprint(self) -> Mapping[str, str]:
        """Question and threshold."""
        return {"template": self.template, "min_mass": str(self.min_mass)}


def yes_no(answer: Answer, min_mass: float) -> tuple[float, float]:
    """P(yes) and P(no) of an answer's first token, each over its spellings.

    Raises:
        AnswerError: together they are less likely than ``min_mass``, or there are no log probabilities.
    """
    yes, no = mass(answer, "yes".__eq__), mass(answer, "no".__eq__)
    if yes + no < min_mass:
        raise AnswerError(
            f"yes and no have probability {yes + no:.3g} together, less than min_mass={min_mass:g}; "
            f"the model answered {shown(answer.text)}"
        )
    return yes, no


def mass(answer: Answer, wanted: Callable[[str], bool]) -> float:
    """Probability that the first token, in lower case and without spaces and punctuation, is a wanted word.

    Raises:
        AnswerError: the endpoint sent no log probabilities.
    """
    if not answer.first:
        raise AnswerError(
            "the endpoint sends no logprobs; serve the model with vLLM or SGLang, or use a rubric, which needs none",
            "no_logprobs",
        )
    return min(1.0, sum(exp(token.logprob) for token in answer.first if wanted(word(token))))


def word(token: Token) -> str:
    """A token as a plain word: `` Yes.`` and ``YES`` are both ``yes``."""
    return token.text.strip(_AROUND).lower()


def first_token_settings(top_logprobs: int) -> Mapping[str, Any]:
    """Keys of a request that wants only the distribution of the first token."""
    if top_logprobs < 2:
        raise ValueError(f"top_logprobs is {top_logprobs}; give at least 2, better {TOP_LOGPROBS}.")
    return {"max_tokens": 1, "logprobs": True, "top_logprobs": top_logprobs}


def checked_mass(min_mass: float) -> float:
    """``min_mass``, if it is a probability above 0."""
    if not 0 < min_mass <= 1:
        raise ValueError(f"min_mass is {min_mass}; expected a probability above 0, such as {MIN_MASS}.")
    return min_mass
