"""The messages between a trainer and the reward server: typed, sized, and never pickled.

A request is one msgpack body (``application/msgpack``); the reply comes back in the same form::

    {"version": 1, "request_id": "7f3a", "rewards": ["geneval"],
     "items": [{"id": 0, "prompt": "a photo of a red star", "metadata": {...},
                "image": {"format": "png", "data": b"..."}}]}

    {"version": 1, "request_id": "7f3a", "fingerprints": {"geneval": "c0ffee..."}, "timing": {"score_s": 0.01},
     "results": [{"id": 0, "rewards": {"geneval": {"score": 0.5, "metrics": {"strict": 0.0}, "error": null}}}]}

``format`` is png, jpeg, webp or raw; raw also carries ``"shape": [height, width, 3]``. For curl, the same
structure as JSON (``application/json``) with base64 image data is accepted and answered in JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reward_server.codec import MSGPACK, WireError, dump, finite, get, load, plain
from reward_server.images import IMAGE_FORMATS, WireImage
from reward_server.outcomes import pack_outcome
from reward_server.scorers.base import ItemError, Outcome, Scores

VERSION = 1
MAX_REWARDS = 64
MAX_PROMPT = 1 << 16  # characters
MAX_METADATA = 1 << 18  # bytes of an item's metadata, as JSON


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts; ``/info`` tells the client.

    Attributes:
        max_body_bytes: size of one request.
        max_items: images in one request.
        max_pixels: height x width of one image.
    """

    max_body_bytes: int = 64 << 20
    max_items: int = 256
    max_pixels: int = 4096 * 4096


@dataclass(frozen=True, slots=True)
class WireItem:
    """One image to score; ``id`` comes back with its result."""

    id: int
    image: WireImage
    prompt: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Score every item with every reward."""

    rewards: tuple[str, ...]
    items: tuple[WireItem, ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class ItemResult:
    """Reward name -> numbers or error, for one item."""

    id: int
    rewards: Mapping[str, Outcome]


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """Results of one request.

    Attributes:
        results: one per item.
        request_id: the request's.
        fingerprints: reward name -> hash of what its scores depend on.
        timing: stage -> seconds.
    """

    results: tuple[ItemResult, ...]
    request_id: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)


def encode_request(request: ScoreRequest, media_type: str = MSGPACK) -> bytes:
    """Body of a request."""
    items = [
        {
            "id": item.id,
            "prompt": item.prompt,
            "metadata": dict(item.metadata),
            "image": _pack_image(item.image, media_type),
        }
        for item in request.items
    ]
    return dump(
        {"version": VERSION, "request_id": request.request_id, "rewards": list(request.rewards), "items": items},
        media_type,
    )


def decode_request(body: bytes, media_type: str = MSGPACK, limits: Limits | None = None) -> ScoreRequest:
    """Typed request of a body.

    Raises:
        WireError: naming the field, and the item if it is one item's fault.
    """
    limits = limits or Limits()
    message = _message(body, media_type, limits.max_body_bytes)
    rewards = get(message, "rewards", list)
    if not 0 < len(rewards) <= MAX_REWARDS or not all(isinstance(name, str) and len(name) < 100 for name in rewards):
        raise WireError("rewards", f"expected a list of 1 to {MAX_REWARDS} reward names")
    items = get(message, "items", list)
    if not 0 < len(items) <= limits.max_items:
        raise WireError("items", f"holds {len(items)} items; expected 1 to {limits.max_items}")
    request_id = message.get("request_id", "")
    if not isinstance(request_id, str) or len(request_id) > 256:
        raise WireError("request_id", "expected a string of at most 256 characters")
    unpacked = tuple(_unpack_item(item, index, media_type) for index, item in enumerate(items))
    if len({item.id for item in unpacked}) != len(unpacked):
        raise WireError("items", "two items share an id; give each its own, or none at all")
    return ScoreRequest(tuple(dict.fromkeys(rewards)), unpacked, request_id)


def encode_response(response: ScoreResponse, media_type: str = MSGPACK) -> bytes:
    """Body of a reply."""
    results = [
        {"id": result.id, "rewards": {name: pack_outcome(outcome) for name, outcome in result.rewards.items()}}
        for result in response.results
    ]
    return dump(
        {
            "version": VERSION,
            "request_id": response.request_id,
            "fingerprints": dict(response.fingerprints),
            "timing": dict(response.timing),
            "results": results,
        },
        media_type,
    )


def decode_response(body: bytes, media_type: str = MSGPACK) -> ScoreResponse:
    """Typed reply of a body.

    Raises:
        WireError: if the peer does not speak this format.
    """
    message = _message(body, media_type, len(body))
    results = []
    for index, entry in enumerate(get(message, "results", list)):
        where = f"results[{index}]"
        rewards = get(entry, "rewards", dict, where)
        outcomes = {name: _unpack_outcome(value, f"{where}.rewards.{name}") for name, value in rewards.items()}
        results.append(ItemResult(get(entry, "id", int, where), outcomes))
    return ScoreResponse(
        results=tuple(results),
        request_id=get(message, "request_id", str),
        fingerprints=get(message, "fingerprints", dict),
        timing=get(message, "timing", dict),
    )


def _pack_image(image: WireImage, media_type: str) -> dict[str, Any]:
    data: bytes | str = image.data if media_type == MSGPACK else base64.b64encode(image.data).decode("ascii")
    packed: dict[str, Any] = {"format": image.format, "data": data}
    return packed if image.shape is None else packed | {"shape": list(image.shape)}


def _unpack_item(item: Any, index: int, media_type: str) -> WireItem:
    where = f"items[{index}]"
    try:
        metadata = get(item, "metadata", dict, where) if "metadata" in item else {}
        plain(metadata, f"{where}.metadata")
        if (size := len(json.dumps(metadata))) > MAX_METADATA:
            raise WireError(f"{where}.metadata", f"takes {size} bytes; at most {MAX_METADATA} are allowed")
        prompt = get(item, "prompt", str, where)
        if len(prompt) > MAX_PROMPT:
            raise WireError(f"{where}.prompt", f"has {len(prompt)} characters; at most {MAX_PROMPT} are allowed")
        return WireItem(
            id=get(item, "id", int, where) if "id" in item else index,
            image=_unpack_image(get(item, "image", dict, where), f"{where}.image", media_type),
            prompt=prompt,
            metadata=metadata,
        )
    except TypeError:
        raise WireError(where, f"is a {type(item).__name__}; expected a dictionary", index) from None
    except WireError as error:
        error.index = index
        raise


def _unpack_image(image: Mapping[str, Any], where: str, media_type: str) -> WireImage:
    kind = get(image, "format", str, where)
    if kind not in IMAGE_FORMATS:
        raise WireError(f"{where}.format", f"is {kind!r}; expected one of {', '.join(IMAGE_FORMATS)}")
    data = get(image, "data", bytes if media_type == MSGPACK else str, where)
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise WireError(f"{where}.data", f"is not base64: {error}") from None
    return WireImage(kind, data, _raw_shape(image.get("shape"), len(data), where) if kind == "raw" else None)


def _raw_shape(shape: Any, size: int, where: str) -> tuple[int, int, int]:
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise WireError(f"{where}.shape", f"is {shape!r}; raw pixels need [height, width, 3]")
    height, width, channels = shape
    if channels != 3 or height * width * channels != size:
        raise WireError(f"{where}.shape", f"is {shape}, but data holds {size} bytes; expected height * width * 3")
    return height, width, channels


def _unpack_outcome(value: Any, where: str) -> Outcome:
    if not isinstance(value, dict):
        raise WireError(where, "expected a dictionary with score, metrics and error")
    if value.get("error") is not None:
        error = get(value, "error", dict, where)
        code, message = get(error, "code", str, f"{where}.error"), get(error, "message", str, f"{where}.error")
        return ItemError(code, message, get(error, "retryable", bool, f"{where}.error"))
    metrics = get(value, "metrics", dict, where)
    return Scores(
        score=finite(value.get("score"), f"{where}.score"),
        metrics={name: finite(number, f"{where}.metrics.{name}") for name, number in metrics.items()},
    )


def _message(body: bytes, media_type: str, max_bytes: int) -> dict[str, Any]:
    message = load(body, media_type, max_bytes)
    if not isinstance(message, dict):
        raise WireError("body", f"is a {type(message).__name__}; expected a dictionary")
    if type(message.get("version")) is not int or message["version"] != VERSION:
        raise WireError("version", f"is {message.get('version')!r}; this side speaks version {VERSION}")
    return message
