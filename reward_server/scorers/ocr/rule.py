"""The OCR reward: one minus the share of the requested text that is misread.

With s the text that was read and t the requested one, both in lower case and without spaces, and n = len(t)::

    reward = 1                          if t occurs in s
             1 - min(levenshtein, n)/n  otherwise

This is the rule of Flow-GRPO, https://arxiv.org/abs/2505.05470. Because occurring is enough, other text beside the
requested one costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TargetError(ValueError):
    """No text to look for.

    Attributes:
        field: where it should be: ``metadata.text`` or ``prompt``.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


def target_text(prompt: str, metadata: Mapping[str, Any]) -> str:
    """The text the image should show: ``metadata["text"]`` or, without that key, what stands in the prompt's quotes.

    Args:
        prompt: such as ``a sign that says "OPEN"``; only the first pair of double quotes is looked at.
        metadata: of the prompt.

    Raises:
        TargetError: there is none, or it has no character beside spaces.
    """
    if "text" in metadata:
        field, target = "metadata.text", metadata["text"]
        if not isinstance(target, str):
            raise TargetError(field, f"is {target!r}; expected the text to be read in the image, such as 'OPEN'")
    else:
        field, parts = "prompt", prompt.split('"')
        if len(parts) < 3:
            raise TargetError(
                field, f'{prompt!r} has no text in double quotes; write a sign that says "OPEN", or give metadata.text'
            )
        target = parts[1]
    if not normalise(target):
        raise TargetError(field, f"asks for the empty text {target!r}; expected at least one character beside spaces")
    return target


def normalise(text: str) -> str:
    """What is compared: lower case, without white space."""
    return "".join(text.lower().split())


def text_reward(reading: str, target: str) -> float:
    """The reward in [0, 1] for reading ``reading`` where ``target`` was asked for.

    Args:
        reading: as the engine reads it; the empty text for an image without text.
        target: what ``target_text`` returned.
    """
    read, wanted = normalise(reading), normalise(target)
    if wanted in read:
        return 1.0
    if len(read) >= 2 * len(wanted):
        return 0.0  # at least n deletions; spares a page of noise the quadratic distance
    return 1.0 - min(levenshtein(read, wanted), len(wanted)) / len(wanted)


def levenshtein(a: str, b: str) -> int:
    """The fewest insertions, deletions and substitutions of a character that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))  # distances of the empty prefix of a to every prefix of b
    for i, x in enumerate(a, start=1):
        above_left, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (x != y))
    return row[-1]
