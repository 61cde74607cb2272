"""Whatever bytes arrive, decoding gives a request or a WireError; and what was encoded comes back as it was."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.codec import JSON, MSGPACK, WireError
from reward_server.images import WireImage
from reward_server.service import Service
from reward_server.wire import Limits, ScoreRequest, WireItem, decode_request, encode_request
from tests.reward_server import serving

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(0, 9), inner, max_size=4),
    max_leaves=12,
)
IMAGES = st.builds(WireImage, st.sampled_from(["png", "jpeg", "webp"]), st.binary(max_size=50))
REQUESTS = st.builds(
    lambda rewards, images, prompts, metadata: ScoreRequest(
        tuple(rewards), tuple(WireItem(i, *rest) for i, rest in enumerate(zip(images, prompts, metadata, strict=False)))
    ),
    st.lists(TEXT.filter(bool), min_size=1, max_size=3, unique=True),
    st.lists(IMAGES, min_size=1, max_size=3),
    st.lists(TEXT, min_size=3, max_size=3),
    st.lists(st.dictionaries(TEXT, PLAIN, max_size=3), min_size=3, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(REQUESTS, st.sampled_from([MSGPACK, JSON]))
def test_a_request_comes_back_as_it_was(request: ScoreRequest, media_type: str) -> None:
    assert decode_request(encode_request(request, media_type), media_type) == request


@settings(max_examples=1000, deadline=None)
@given(
    st.binary(max_size=300) | ANYTHING.map(lambda value: bytes(msgpack.packb(value))), st.sampled_from([MSGPACK, JSON])
)
def test_any_bytes_are_a_request_or_a_wire_error(body: bytes, media_type: str) -> None:
    try:
        request = decode_request(body, media_type, Limits())
    except WireError as error:
        assert error.field and str(error)
    else:
        assert isinstance(request, ScoreRequest)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(["rewards", "items", "request_id", "version"]), ANYTHING, ANYTHING, st.integers(0, 4))
def test_anything_in_any_field_is_a_request_or_a_wire_error(field: str, value: Any, part: Any, place: int) -> None:
    item = {"id": 0, "prompt": "", "metadata": {}, "image": {"format": "png", "data": b"x"}}
    item[("id", "prompt", "metadata", "image", "image")[place]] = part if place < 4 else {"format": part, "data": value}
    message = {"version": 1, "request_id": "", "rewards": ["fake"], "items": [item]} | (
        {field: value} if place == 0 else {}
    )
    try:
        decode_request(bytes(msgpack.packb(message)), MSGPACK)
    except WireError as error:
        assert error.field and len(str(error)) < 1000


def test_the_published_schema_and_the_server_agree(tmp_path: Path) -> None:
    """Schemathesis, from outside: no status, media type or body that the schema does not announce, so no 500."""
    with serving.serve(Service(serving.settings("fake"))) as url:
        checks = "status_code_conformance,content_type_conformance,response_schema_conformance"
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "-c", checks]
        found = subprocess.run(
            [*command, "--max-examples", "150", "--seed", "1"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=tmp_path,  # where it keeps its notes
        )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-2000:]
    assert re.search(r"\d\d+ generated, \d\d+ passed", found.stdout)
