"""What an OpenAI-compatible endpoint sends back, checked field by field: ids of models, and chat completions.

The format is that of https://platform.openai.com/docs/api-reference/chat/object, which vLLM and SGLang follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import httpx

from reward_server.scorers.base import ItemError

SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Token:
    """One candidate for a position of the answer, with the natural logarithm of its probability."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion.

    Attributes:
        text: what the model wrote.
        finish_reason: ``stop``, ``length`` (cut off at ``max_tokens``) or ``content_filter``.
        first: the most likely first tokens, the sampled one among them; empty if none were sent.
    """

    text: str
    finish_reason: str
    first: tuple[Token, ...] = ()


def parse_answer(reply: httpx.Response) -> Answer | ItemError:
    """The first choice of a chat completion; an error reply, or anything that is not one, is an ``ItemError``."""
    if reply.status_code != 200:
        # Retried neither here nor by the trainer: the same request gets the same refusal.
        return ItemError("refused", f"answers {says(reply)}")
    try:
        choice = reply.json()["choices"][0]
        return Answer(_text(choice["message"]), str(choice.get("finish_reason")), _first_tokens(choice))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return ItemError("bad_reply", f"not a chat completion ({type(error).__name__}): {says(reply)}", retryable=True)


def parse_models(reply: httpx.Response) -> Mapping[str, str] | None:
    """Name -> root of the models of a ``GET /models`` reply; None if it is not one."""
    if reply.status_code != 200:
        return None
    try:
        entries = reply.json()["data"]
        return {str(entry["id"]): str(entry.get("root") or entry["id"]) for entry in entries}
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def says(reply: httpx.Response) -> str:
    """Status and the beginning of the body, for a message."""
    body = " ".join(reply.text.split())
    return f"{reply.status_code}: {body[:SHOWN_CHARACTERS]}{'...' if len(body) > SHOWN_CHARACTERS else ''}"


def _text(message: Mapping[str, Any]) -> str:
    text = message.get("content") or message.get("refusal") or ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}, not text")
    return text


def _first_tokens(choice: Mapping[str, Any]) -> tuple[Token, ...]:
    positions = (choice.get("logprobs") or {}).get("content") or []
    if not positions:
        return ()
    sampled = _token(positions[0])
    candidates = tuple(_token(entry) for entry in positions[0].get("top_logprobs") or ())
    return candidates if sampled in candidates else (sampled, *candidates)


def _token(entry: Mapping[str, Any]) -> Token:
    logprob = float(entry["logprob"])
    if isnan(logprob) or logprob > 1e-3:  # rounding may take it a little above 0
        raise ValueError(f"logprob is {logprob}")
    return Token(str(entry["token"]), logprob)
