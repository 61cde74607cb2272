"""What turns a judge model's answers into a reward: the questions to ask, and how to read what comes back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.vlm.replies import Answer

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class AnswerError(ValueError):
    """An answer that holds no score. At temperature 0, asking again would bring the same one.

    Attributes:
        code: ``unparsable``, or ``no_logprobs`` for an endpoint that sends none.
    """

    def __init__(self, message: str, code: str = "unparsable") -> None:
        super().__init__(message)
        self.code = code


class Judge(Protocol):
    """Questions, and how to read their answers."""

    settings: Mapping[str, Any]
    """Keys of the request beside the model, the message and the temperature."""

    def questions(self, item: Item) -> Sequence[str]:
        """What to ask about an item's image: at least one question.

        Raises:
            ValueError: the item's metadata lacks something, or holds something wrong.
        """

    def read(self, item: Item, answers: Sequence[Answer]) -> Scores:
        """The reward, from the answers to ``questions`` in order.

        Raises:
            AnswerError: naming what is missing in which answer.
        """

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """A prompt and metadata for the warm-up."""

    def fingerprint(self) -> Mapping[str, str]:
        """What the scores depend on, beside the model."""


def check_template(template: str, placeholder: str, *, required: bool = True) -> str:
    """The template, if it holds ``{placeholder}`` (unless not required) and no other; braces in JSON are let be.

    Raises:
        ValueError: naming the placeholder that is missing, or the one that is unknown.
    """
    found = set(_PLACEHOLDER.findall(template))
    if unknown := found - {placeholder}:
        raise ValueError(
            f"the template has the unknown placeholder {{{min(unknown)}}}; the one it may have is {{{placeholder}}}."
        )
    if required and not found:
        raise ValueError(
            f"the template {template!r} lacks {{{placeholder}}}; write it where the {placeholder} is to stand."
        )
    return template


def fill(template: str, placeholder: str, text: str) -> str:
    """The template with ``text`` in its place. Not ``str.format``: templates may hold JSON."""
    return template.replace(f"{{{placeholder}}}", text)


def shown(text: str, limit: int = 200) -> str:
    """An answer as a message quotes it."""
    return repr(text if len(text) <= limit else f"{text[:limit]}...")
