"""The OpenAPI description of ``POST /v1/score``: what ``wire.py`` reads, for people and tools that speak JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward_server.codec import JSON, MSGPACK
from reward_server.images import IMAGE_FORMATS
from reward_server.wire import VERSION


def score_schema(rewards: Sequence[str], max_items: int) -> dict[str, Any]:
    """What FastAPI cannot derive of the scoring operation: parameters, bodies of both media types, replies.

    Args:
        rewards: names this server knows.
        max_items: images in one request.
    """
    request = _object(
        {
            "version": {"type": "integer", "enum": [VERSION]},
            "request_id": {"type": "string", "maxLength": 256},
            "rewards": {"type": "array", "items": {"type": "string", "enum": list(rewards)}, "minItems": 1},
            "items": {"type": "array", "items": _ITEM, "minItems": 1, "maxItems": max_items},
        },
        ["version", "rewards", "items"],
    )
    return {
        "parameters": [
            {
                "name": "X-Deadline-S",
                "in": "header",
                "required": False,
                "description": "seconds the client is going to wait; images that are late get a retryable error",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            }
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": request}, MSGPACK: {"schema": request}}},
        "responses": {
            "200": {
                "description": "one result per item; each reward of it is a score or an error",
                "content": {JSON: {"schema": _RESPONSE}, MSGPACK: {"schema": _RESPONSE}},
            },
            **{status: {"description": text, **_ERROR} for status, text in _REFUSALS.items()},
        },
    }


def error_schema(*statuses: str) -> dict[int | str, dict[str, Any]]:
    """The error replies of an operation."""
    return {status: {"description": _REFUSALS[status], **_ERROR} for status in statuses}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


_REFUSALS = {
    "401": "the token is missing or wrong",
    "413": "the body is too large",
    "415": f"the body is neither {MSGPACK} nor {JSON}",
    "422": "the request is malformed, or asks for a reward this server does not have; sending it again is useless",
    "503": "overloaded or not ready; send it again after Retry-After seconds",
}
_ERROR = {
    "content": {
        JSON: {
            "schema": _object(
                {"error": _object({"code": {"type": "string"}, "message": {"type": "string"}}, ["code", "message"])},
                ["error"],
            )
        }
    }
}
_IMAGE = _object(
    {
        "format": {"type": "string", "enum": list(IMAGE_FORMATS)},
        "data": {"type": "string", "format": "byte", "description": "the file, base64 in JSON and bytes in msgpack"},
        "shape": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1},
            "minItems": 3,
            "maxItems": 3,
            "description": "of raw pixels: [height, width, 3]",
        },
    },
    ["format", "data"],
)
_ITEM = _object(
    {
        "id": {"type": "integer", "description": "comes back with the result; the position if left out"},
        "prompt": {"type": "string"},
        "metadata": {"type": "object", "description": "what the scorer needs beside the prompt"},
        "image": _IMAGE,
    },
    ["prompt", "image"],
)
_OUTCOME = _object(
    {
        "score": {"type": ["number", "null"]},
        "metrics": {"type": "object", "additionalProperties": {"type": "number"}},
        "error": {
            "type": ["object", "null"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "retryable": {"type": "boolean"},
            },
        },
    },
    ["score", "metrics", "error"],
)
_RESPONSE = _object(
    {
        "version": {"type": "integer", "enum": [VERSION]},
        "request_id": {"type": "string"},
        "fingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
        "timing": {"type": "object", "additionalProperties": {"type": "number"}},
        "results": {
            "type": "array",
            "items": _object(
                {"id": {"type": "integer"}, "rewards": {"type": "object", "additionalProperties": _OUTCOME}},
                ["id", "rewards"],
            ),
        },
    },
    ["version", "request_id", "fingerprints", "timing", "results"],
)
