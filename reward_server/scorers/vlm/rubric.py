"""Scores that the judge writes down: numbers found in its answer by regular expressions, or in JSON it must produce.

A number outside the scale, a missing one or a cut-off answer is an error, never a zero: to the trainer a zero is an
image as bad as can be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.vlm.judge import AnswerError, check_template, fill, shown
from reward_server.scorers.vlm.replies import Answer

NUMBER = r"([-+]?\d+(?:\.\d+)?)"


class Rubric:
    """Asks for one or more numbers; score = their weighted mean, divided by the top of the scale.

    Args:
        template: what is asked; ``{prompt}``, if it occurs, stands for the prompt.
        fields: name -> regular expression whose only group is the number; the last match counts, since a model
            may quote the requested format before it answers. Or a list of names: the endpoint is then made to
            answer with a JSON object of these keys (``response_format``).
        low: smallest number of the scale.
        high: largest number of the scale.
        weights: name -> weight in the mean; None weighs all fields alike.
        max_tokens: longest answer, in tokens.
    """

    def __init__(
        self,
        template: str,
        *,
        fields: Mapping[str, str] | Sequence[str],
        low: float,
        high: float,
        weights: Mapping[str, float] | None = None,
        max_tokens: int = 512,
    ) -> None:
        if not fields or isinstance(fields, str):
            raise ValueError(f"fields is {fields!r}; expected {{name: regular expression}} or a list of names.")
        if not low < high or high <= 0:
            raise ValueError(f"the scale runs from {low:g} to {high:g}; expected low < high and high > 0.")
        self.template = check_template(template, "prompt", required=False)
        self.names = tuple(fields)
        self.patterns = {n: _pattern(n, p) for n, p in fields.items()} if isinstance(fields, Mapping) else None
        self.low, self.high = low, high
        self.weights = _weights(self.names, weights)
        self.settings: Mapping[str, Any] = {"max_tokens": max_tokens} | (
            {"response_format": _response_format(self.names, low, high)} if self.patterns is None else {}
        )

    def questions(self, item: Item) -> Sequence[str]:
        """The template with the prompt."""
        return [fill(self.template, "prompt", item.prompt)]

    def read(self, item: Item, answers: Sequence[Answer]) -> Scores:
        """The weighted mean; the numbers themselves are the metrics."""
        answer = answers[0]
        if answer.finish_reason == "length":
            raise AnswerError(f"the answer was cut off at max_tokens; raise it. It ends in {answer.text[-100:]!r}")
        numbers = self._from_json(answer.text) if self.patterns is None else self._from_text(answer.text)
        for name, number in numbers.items():
            if not self.low <= number <= self.high:
                raise AnswerError(
                    f"{name} is {number:g}, outside the scale from {self.low:g} to {self.high:g}, "
                    f"in the answer {shown(answer.text)}"
                )
        mean = sum(self.weights[name] * numbers[name] for name in self.names)
        return Scores(mean / self.high, numbers)

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """The prompt that fits the grey warm-up image."""
        return "a plain grey square", {}

    def fingerprint(self) -> Mapping[str, str]:
        """Question, expressions, scale and weights."""
        patterns = None if self.patterns is None else {name: p.pattern for name, p in self.patterns.items()}
        return {
            "template": self.template,
            "fields": json.dumps(patterns or self.names),
            "scale": f"{self.low:g} to {self.high:g}",
            "weights": json.dumps(self.weights),
            "max_tokens": str(self.settings["max_tokens"]),
        }

    def _from_text(self, text: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, pattern in (self.patterns or {}).items():
            matches = pattern.findall(text)
            try:
                found[name] = float(matches[-1])
            except (IndexError, ValueError):
                raise AnswerError(
                    f"found no number for {name} ({pattern.pattern}) in the answer {shown(text)}"
                ) from None
        return found

    def _from_json(self, text: str) -> dict[str, float]:
        try:
            values = json.loads(text)
        except ValueError:
            raise AnswerError(f"the answer is not JSON: {shown(text)}") from None
        found: dict[str, float] = {}
        for name in self.names:
            value = values.get(name) if isinstance(values, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                raise AnswerError(f"the answer has no number under {name!r}: {shown(text)}")
            found[name] = float(value)
        return found


def _pattern(name: str, pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the expression {pattern!r} of field {name!r} is not valid: {error}.") from None
    if compiled.groups != 1:
        raise ValueError(
            f"the expression {pattern!r} of field {name!r} has {compiled.groups} groups; put exactly the number into "
            "parentheses, and write (?:...) for other groups."
        )
    return compiled


def _weights(names: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    given = dict.fromkeys(names, 1.0) if weights is None else dict(weights)
    total = sum(given.values())
    if set(given) != set(names) or min(given.values()) < 0 or total <= 0:
        raise ValueError(f"weights are {given}; expected one number of at least 0 for each of {', '.join(names)}.")
    return {name: given[name] / total for name in names}


def _response_format(names: Sequence[str], low: float, high: float) -> Mapping[str, Any]:
    number = {"type": "number", "minimum": low, "maximum": high}
    schema = {
        "type": "object",
        "properties": dict.fromkeys(names, number),
        "required": list(names),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "scores", "strict": True, "schema": schema}}
