"""The VLM judge reward: images and questions to an OpenAI-compatible endpoint, its answers to numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.images import encode_image
from reward_server.scorers.base import Item, ItemError, Outcome
from reward_server.scorers.vlm.client import ChatClient
from reward_server.scorers.vlm.judge import AnswerError, Judge
from reward_server.scorers.vlm.presets import build_judge
from reward_server.scorers.vlm.replies import Answer

VERSION = "1"  # raise it with any change that can change a score

IMAGE_FORMATS = ("png", "jpeg", "webp")
_OURS = ("model", "messages", "temperature", "n", "stream")


class VlmScorer:
    """Scores images with a judge model that somebody else serves.

    Args:
        base_url: of the endpoint, as in the OpenAI clients: ``http://localhost:8000/v1``.
        model: name under which it serves the model.
        preset: a name in ``presets.PRESETS``; its options are accepted here as well.
        api_key_env: name of the environment variable that holds the key; None sends none.
        concurrency: most requests under way at once.
        timeout_s: longest time for one batch, repeats included; keep it below the ``timeout_s`` after which the server
            gives up on the whole worker (60 unless set).
        image_format: png and webp send the pixels as they are; jpeg (quality 95) is smaller.
        trust_env: use the proxies and certificates that environment variables name. Off, because the proxy of a
            cluster rarely knows the way to the next node; an endpoint on the internet may need it.
        wait_s: how long to wait at the start for an endpoint that is still loading.
        system: text of a system message, if any.
        extra_body: further keys of every request, such as ``{"seed": 0}`` or
            ``{"chat_template_kwargs": {"enable_thinking": False}}``.
        **options: options of the preset.

    Raises:
        ValueError: an option that does not fit.
        RuntimeError: the endpoint is not there, or does not serve ``model``.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        preset: str = "vqascore",
        api_key_env: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 50.0,
        image_format: str = "png",
        trust_env: bool = False,
        wait_s: float = 0.0,
        system: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            raise ValueError(f"image_format is {image_format!r}; expected one of {', '.join(IMAGE_FORMATS)}.")
        self.model = model
        self.preset = preset
        self.judge: Judge = build_judge(preset, options)
        self._system = system
        self._extra = _checked_extra(extra_body or {}, self.judge)
        self._timeout_s = timeout_s
        self._format = image_format
        key = None if api_key_env is None else _read_key(api_key_env)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request, which a worker would print
        self.client = ChatClient(base_url, api_key=key, concurrency=concurrency, trust_env=trust_env)
        try:
            self._root = _find(model, self.client.served_models(wait_s), base_url)
        except RuntimeError:
            self.client.close()
            raise

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Result of each item, in order; an item without a score costs no other item its own."""
        outcomes: dict[int, Outcome] = {}
        bodies: list[Mapping[str, Any]] = []
        owners: list[int] = []
        for index, item in enumerate(items):
            try:
                questions = self.judge.questions(item)
            except ValueError as error:
                outcomes[index] = ItemError("bad_metadata", str(error))
                continue
            image = self._data_url(item)
            bodies += [self._body(question, image) for question in questions]
            owners += [index] * len(questions)
        answers: dict[int, list[Answer | ItemError]] = {}
        for owner, answer in zip(owners, self.client.ask(bodies, self._timeout_s), strict=True):
            answers.setdefault(owner, []).append(answer)
        return [outcomes.get(i) or self._read(item, answers[i]) for i, item in enumerate(items)]

    def fingerprint(self) -> Mapping[str, str]:
        """Model, questions and image format; neither the address nor the key, which change no score."""
        asked = {**self.judge.fingerprint(), "system": self._system, "extra_body": self._extra}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        return {
            "version": VERSION,
            "model": self.model,
            "model_root": self._root,
            "preset": self.preset,
            "judge": digest,
            "image_format": self._format,
        }

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """The judge's example, which the warm-up sends to the endpoint."""
        return self.judge.example()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _read(self, item: Item, answers: Sequence[Answer | ItemError]) -> Outcome:
        errors = [answer for answer in answers if isinstance(answer, ItemError)]
        if errors:
            return min(errors, key=lambda error: error.retryable)  # a lasting error first: a retry would be in vain
        try:
            return self.judge.read(item, [answer for answer in answers if isinstance(answer, Answer)])
        except AnswerError as error:
            return ItemError(error.code, f"{self.model}: {error}")

    def _body(self, question: str, image: str) -> Mapping[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
        system = [{"role": "system", "content": self._system}] if self._system else []
        messages = [*system, {"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "temperature": 0, **self.judge.settings, **self._extra}

    def _data_url(self, item: Item) -> str:
        encoded = base64.b64encode(encode_image(item.image, self._format).data).decode("ascii")
        return f"data:image/{self._format};base64,{encoded}"


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable}, named by api_key_env, is not set; run `export {variable}=...` "
            "before starting the server, or remove api_key_env if the endpoint needs no key."
        )
    return key


def _find(model: str, served: Mapping[str, str], base_url: str) -> str:
    if model not in served:
        raise RuntimeError(
            f"{base_url} does not serve {model!r}; it serves {', '.join(sorted(served)) or 'nothing'}. "
            "Set model to one of these."
        )
    return served[model]


def _checked_extra(extra: Mapping[str, Any], judge: Judge) -> Mapping[str, Any]:
    if taken := sorted(set(extra) & {*_OURS, *judge.settings}):
        raise ValueError(f"extra_body sets {', '.join(taken)}, which the scorer sets itself; use its options.")
    return dict(extra)
