"""Two thousand broken requests: no crash, no hang, no score for what was no image, no process left behind."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import httpx
import msgpack
import numpy as np
import psutil
import pytest

from reward_server.codec import JSON, MSGPACK
from reward_server.images import encode_image
from reward_server.scorers.base import Scores
from reward_server.service import Service
from reward_server.wire import ScoreRequest, WireItem, decode_response, encode_request
from tests.reward_server.serving import serve, settings

ROUNDS = 2000
IMAGE = encode_image(np.full((8, 8, 3), 51, dtype=np.uint8))
GOOD = encode_request(
    ScoreRequest(
        ("fake",), tuple(WireItem(i, IMAGE, "a red star", {"tag": "x", "list": [1, 2.5, None]}) for i in range(2)), "r"
    )
)
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "\ud800".encode("utf-8", "surrogatepass"),
    b"",
    b"\x00" * 100,
    [],
    {},
    [[[[[]]]]],
    {"a": {"b": {"c": b"bytes"}}},
    {1: 2},
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(0),
]


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Service, str]]:
    service = Service(settings("fake", "geneval"))
    with serve(service) as url:
        yield service, url


@cache
def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few kB that claims to be, and inflates to, billions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 22), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def truncated(choice: random.Random) -> bytes:
    return GOOD[: choice.randrange(len(GOOD))]


def flipped(choice: random.Random) -> bytes:
    body = bytearray(GOOD)
    for _ in range(choice.randint(1, 8)):
        body[choice.randrange(len(body))] = choice.randrange(256)
    return bytes(body)


def noise(choice: random.Random) -> bytes:
    return choice.randbytes(choice.randrange(2000))


def wrong_type(choice: random.Random) -> bytes:
    """A good message with something else in the place of one of its values."""
    message = msgpack.unpackb(GOOD)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(message)
    container, key = choice.choice(places)
    container[key] = choice.choice(JUNK)
    return bytes(msgpack.packb(message, unicode_errors="surrogatepass"))


def huge_count(choice: random.Random) -> bytes:
    """A header that announces billions of entries or bytes, and next to nothing after it."""
    announced = choice.choice(
        [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"]
    )
    return GOOD.replace(b"\xa5items\x92", b"\xa5items" + announced, 1)


def deep(choice: random.Random) -> bytes:
    return b"\x91" * choice.randrange(1, 200_000) + b"\xc0"


def nested_metadata(choice: random.Random) -> bytes:
    """As deep as the codec lets pass, and deeper."""
    metadata: Any = 1
    for _ in range(choice.choice([10, 31, 33, 200, 500, 990, 1015])):
        metadata = [metadata] if choice.random() < 0.5 else {"a": metadata}
    message = msgpack.unpackb(GOOD)
    message["items"][0]["metadata"] = {"nested": metadata}
    return bytes(msgpack.packb(message))


def many_containers(choice: random.Random) -> bytes:
    """Few bytes, much memory: lists of empty lists."""
    row = b"\xdc\xff\xff" + b"\x90" * 65535
    return GOOD.replace(b"\xa5items\x92", b"\xa5items\x9f" + row * choice.randint(1, 15), 1)


def long_text(choice: random.Random) -> bytes:
    message = msgpack.unpackb(GOOD)
    if choice.random() < 0.5:
        message["items"][0]["prompt"] = "x" * choice.choice([60_000, 70_000, 900_000])
    else:
        message["items"][0]["metadata"] = {"text": "x" * choice.choice([200_000, 300_000])}
    return bytes(msgpack.packb(message))


def junk_image(choice: random.Random) -> bytes:
    message = msgpack.unpackb(GOOD)
    data = bytearray(IMAGE.data)
    kind = choice.randrange(4)
    if kind == 0:
        data = bytearray(choice.randbytes(100))
    elif kind == 1:
        data = data[: choice.randrange(len(data) // 2)]  # well before the last pixel
    elif kind == 2:
        data = bytearray(bomb())
    else:
        message["items"][0]["image"]["format"] = choice.choice(["jpeg", "webp", "gif", "svg", "/etc/passwd"])
    message["items"][0]["image"]["data"] = bytes(data)
    return bytes(msgpack.packb(message))


KINDS: list[Callable[[random.Random], bytes]] = [
    truncated,
    flipped,
    noise,
    wrong_type,
    huge_count,
    deep,
    junk_image,
    nested_metadata,
    many_containers,
    long_text,
]


@cache  # a million empty lists take a second
def as_json(body: bytes) -> bytes:
    """The same message for the other decoder, if there is one."""

    def plain(value: Any) -> Any:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

    try:
        return json.dumps(msgpack.unpackb(body, strict_map_key=False), default=plain).encode()
    except Exception:
        return body


def test_two_thousand_broken_bodies(service: tuple[Service, str]) -> None:
    running, url = service
    before, children = running.worker_pids(), descendants()
    assert set().union(*before.values()) <= children
    statuses: dict[int, int] = {}
    choice = random.Random(20240229)
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        for number in range(ROUNDS):
            kind = KINDS[number % len(KINDS)]
            body = kind(choice)
            media_type = JSON if choice.random() < 0.3 else MSGPACK
            if media_type == JSON:
                body = as_json(body)
            reply = http.post("/v1/score", content=body, headers={"Content-Type": media_type})
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            assert reply.status_code in (200, 413, 422), f"{kind.__name__} {number}: {reply.status_code} {reply.text}"
            if reply.status_code == 200 and media_type == MSGPACK:
                check(reply.content, kind)
            elif reply.status_code != 200:
                assert reply.json()["error"]["message"]
        assert http.post("/v1/score", content=GOOD, headers={"Content-Type": MSGPACK}).status_code == 200
    assert running.worker_pids() == before, "a worker was lost"
    assert descendants() == children
    assert statuses[422] > ROUNDS / 2 and statuses[200] > ROUNDS / 20


def descendants() -> set[int]:
    """All processes below this one, those that other tests have started included."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def check(content: bytes, kind: Callable[[random.Random], bytes]) -> None:
    """An untouched image scores 0.2, whatever its batch mate is; a broken one does not score."""
    for result in decode_response(content).results:
        outcome = result.rewards.get("fake")
        if isinstance(outcome, Scores):
            assert 0.0 <= outcome.score <= 1.0
            if kind is junk_image:
                assert result.id == 1 and outcome == Scores(0.2, {"twice": 0.4})


def test_nothing_in_a_request_opens_a_file(service: tuple[Service, str], tmp_path: Any) -> None:
    """Neither a path nor a URL in the place of an image, a prompt or metadata is followed."""
    target = tmp_path / "image.png"
    target.write_bytes(IMAGE.data)
    for value in (str(target), f"file://{target}"):
        item = WireItem(0, IMAGE, value, {"image": value, "path": value})
        message = msgpack.unpackb(encode_request(ScoreRequest(("fake",), (item,))))
        message["items"][0]["image"]["data"] = value.encode()
        reply = httpx.post(service[1] + "/v1/score", content=msgpack.packb(message), headers={"Content-Type": MSGPACK})
        error = decode_response(reply.content).results[0].rewards["fake"]
        assert not isinstance(error, Scores) and error.code == "bad_image"
