"""``awm-reward-server check URL``: does every scorer of a running server give a number?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from reward_server.codec import MSGPACK, WireError
from reward_server.images import encode_image
from reward_server.scorers.base import Scores
from reward_server.settings import TOKEN_VARIABLE, SettingsError, token_from_environment
from reward_server.wire import ScoreRequest, WireItem, decode_response, encode_request

SIZE = 256  # pixels a side of the test image


def main(arguments: Sequence[str]) -> None:
    """Print a table with a line per reward; exit code 1 if anything does not work."""
    parser = argparse.ArgumentParser(
        prog="awm-reward-server check",
        description="Try every scorer of a running server on a grey image and print a table. The token, if the server "
        f"asks for one, is taken from the environment variable {TOKEN_VARIABLE}.",
    )
    parser.add_argument("url", help="such as http://127.0.0.1:18080")
    parser.add_argument("--images", type=int, default=8, help="images per request (default: %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="per request (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        token = token_from_environment()
    except SettingsError as error:
        sys.exit(str(error))
    if options.images < 1:
        parser.error(f"--images {options.images}: expected at least 1")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=options.url, headers=headers, timeout=options.timeout_s, trust_env=False) as client:
        try:
            rewards = _rewards(client)
            rows = [_try(client, name, about, options.images) for name, about in rewards.items()]
        except httpx.TransportError as error:
            sys.exit(f"{options.url} does not answer: {error}. Is the server running, and is this its address?")
    _print(rows)
    if any(row[1] != "ok" for row in rows):
        sys.exit(1)


def _rewards(client: httpx.Client) -> dict[str, Any]:
    reply = client.get("/info")
    if reply.status_code == 401:
        sys.exit(f"{client.base_url} asks for a token: set the environment variable {TOKEN_VARIABLE} to it.")
    if reply.status_code != 200:
        sys.exit(f"{client.base_url} answers /info with {reply.status_code}: {reply.text[:500]}")
    try:
        rewards: dict[str, Any] = reply.json()["rewards"]
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{client.base_url} is no reward server: it answers /info with {reply.text[:200]!r}")
    return rewards


def _try(client: httpx.Client, name: str, about: Mapping[str, Any], count: int) -> list[str]:
    """Reward, state, score, milliseconds per image, workers, fingerprint."""
    image = encode_image(np.full((SIZE, SIZE, 3), 128, dtype=np.uint8))
    example = about["example"]
    items = tuple(WireItem(i, image, example["prompt"], example["metadata"]) for i in range(count))
    started = time.perf_counter()
    reply = client.post(
        "/v1/score", content=encode_request(ScoreRequest((name,), items)), headers={"Content-Type": MSGPACK}
    )
    milliseconds = 1000 * (time.perf_counter() - started) / count
    tail = [f"{milliseconds:.1f}", str(about["workers"]), about["fingerprint"]]
    if reply.status_code != 200:
        return [name, f"HTTP {reply.status_code}: {reply.text[:200]}", "", *tail]
    try:
        outcomes = [result.rewards[name] for result in decode_response(reply.content).results]
    except WireError as error:
        return [name, str(error), "", *tail]
    errors = [outcome.message for outcome in outcomes if not isinstance(outcome, Scores)]
    if errors:
        return [name, f"{len(errors)} of {count} failed: {errors[0]}", "", *tail]
    return [name, "ok", f"{sum(o.score for o in outcomes if isinstance(o, Scores)) / count:.4g}", *tail]


def _print(rows: Sequence[Sequence[str]]) -> None:
    table = [["reward", "state", "score of a grey image", "ms per image", "workers", "fingerprint"], *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
