"""The server over real HTTP: who is at fault is told by the status, and one bad image harms no other."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import Request

from reward_server.app import Intake
from reward_server.codec import MSGPACK
from reward_server.images import encode_image
from reward_server.scorers.base import ItemError, Scores
from reward_server.service import Service
from reward_server.settings import SettingsError
from reward_server.wire import (
    Limits,
    ScoreRequest,
    ScoreResponse,
    WireImage,
    WireItem,
    decode_response,
    encode_request,
)
from reward_server.worker.handle import WorkerError
from tests.reward_server.serving import Gate, serve, settings, wait_for

STAR = {"tag": "single_object", "include": [{"class": "star", "count": 1}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(Service(settings("fake", "geneval"))) as address:
        yield address


def grey(level: int = 51, prompt: str = "", item_id: int = 0) -> WireItem:
    return WireItem(item_id, encode_image(np.full((8, 8, 3), level, dtype=np.uint8), "raw"), prompt, {})


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=60)


def post(
    url: str, *items: WireItem, rewards: tuple[str, ...] = ("fake",), request_id: str = "", **headers: str
) -> httpx.Response:
    body = encode_request(ScoreRequest(rewards, items, request_id))
    return httpx.post(url + "/v1/score", content=body, headers={"Content-Type": MSGPACK} | headers, timeout=60)


def scored(reply: httpx.Response) -> ScoreResponse:
    assert reply.status_code == 200, reply.text
    return decode_response(reply.content)


def test_a_good_batch(url: str) -> None:
    response = scored(post(url, *[grey(51 * i, item_id=10 + i) for i in range(4)], request_id="id-1"))
    assert [result.id for result in response.results] == [10, 11, 12, 13]
    assert [result.rewards["fake"] for result in response.results] == [
        Scores(i / 5, {"twice": i / 2.5}) for i in range(4)
    ]
    assert response.request_id == "id-1"
    assert response.timing["score_s"] > 0


def test_sending_a_request_again_gives_the_same_answer(url: str) -> None:
    assert scored(post(url, grey())).results == scored(post(url, grey())).results


def test_one_junk_image_harms_no_other(url: str) -> None:
    junk = WireItem(1, WireImage("png", b"junk"), "", {})
    first, second, third = (r.rewards["fake"] for r in scored(post(url, grey(), junk, grey(item_id=2))).results)
    assert first == third == Scores(0.2, {"twice": 0.4})
    assert isinstance(second, ItemError) and second.code == "bad_image" and not second.retryable


def test_one_item_that_breaks_the_scorer_harms_no_other(url: str) -> None:
    prompts = ["", "poison", "nan", "text"]
    results = scored(post(url, *[grey(prompt=prompt, item_id=i) for i, prompt in enumerate(prompts)])).results
    assert results[0].rewards["fake"] == Scores(0.2, {"twice": 0.4})
    codes = [r.rewards["fake"].code for r in results[1:] if isinstance(r.rewards["fake"], ItemError)]
    assert codes == ["scorer_failed", "not_finite", "scorer_failed"]


def test_bad_metadata_is_that_items_error(url: str) -> None:
    items = [WireItem(i, grey().image, "", metadata) for i, metadata in enumerate([STAR, {"tag": "stars"}])]
    good, bad = (r.rewards["geneval"] for r in scored(post(url, *items, rewards=("geneval",))).results)
    assert good == Scores(0.0, {"strict": 0.0, "correct": 0.0, "soft_reference": 0.0})
    assert isinstance(bad, ItemError) and bad.code == "bad_metadata" and "metadata.tag" in bad.message


def test_several_rewards_in_one_request(url: str) -> None:
    (result,) = scored(post(url, WireItem(0, grey().image, "", STAR), rewards=("fake", "geneval"))).results
    assert set(result.rewards) == {"fake", "geneval"}


def test_an_image_beyond_the_pixel_limit(url: str) -> None:
    large = WireItem(0, encode_image(np.zeros((300, 300, 3), dtype=np.uint8)), "", {})
    outcome = scored(post(url, large)).results[0].rewards["fake"]
    assert isinstance(outcome, ItemError) and "at most 65536" in outcome.message


def test_json_for_curl(url: str) -> None:
    data = base64.b64encode(grey().image.data).decode()
    item = {"prompt": "", "image": {"format": "raw", "shape": [8, 8, 3], "data": data}}
    reply = httpx.post(url + "/v1/score", json={"version": 1, "rewards": ["fake"], "items": [item]})
    assert reply.json()["results"][0]["rewards"]["fake"] == {"score": 0.2, "metrics": {"twice": 0.4}, "error": None}


def error(reply: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()["error"]
    return found


def test_unknown_reward_lists_what_there_is(url: str) -> None:
    reply = post(url, grey(), rewards=("fake", "pickscore"))
    assert reply.status_code == 422
    assert error(reply)["code"] == "unknown_reward" and error(reply)["known"] == ["fake", "geneval"]


def test_malformed_body_names_index_and_field(url: str) -> None:
    reply = post(url, grey(), WireItem(1, WireImage("raw", b"xx", (1, 1, 3)), "", {}))
    assert reply.status_code == 422
    assert (error(reply)["index"], error(reply)["field"]) == (1, "items[1].image.shape")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"X-Deadline-S": "soon"}, 422, "malformed"),
        ({"X-Deadline-S": "-1"}, 422, "malformed"),
        ({"X-Deadline-S": "nan"}, 422, "malformed"),
    ],
)
def test_bad_headers(url: str, headers: dict[str, str], status: int, code: str) -> None:
    reply = post(url, grey(), **headers)
    assert (reply.status_code, error(reply)["code"]) == (status, code)


def test_no_items_and_too_many(url: str) -> None:
    assert post(url).status_code == 422
    assert "1 to 16" in error(post(url, *[grey(item_id=i) for i in range(17)]))["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body(url: str, chunked: bool) -> None:
    body = bytes((1 << 20) + 1)
    content = iter([body[: 1 << 19], body[1 << 19 :]]) if chunked else body
    reply = httpx.post(url + "/v1/score", content=content, headers={"Content-Type": MSGPACK})
    assert reply.status_code == 413


def test_health_and_info(url: str) -> None:
    assert get(url + "/livez").json() == {"live": True}
    assert get(url + "/readyz").json() == {"ready": True}
    info = get(url + "/info").json()
    assert info["rewards"]["geneval"]["metrics"] == ["correct", "soft_reference", "strict"]
    assert info["rewards"]["geneval"]["versions"]["detector"] == "shapes"
    assert info["limits"]["max_items"] == 16


def test_equal_versions_equal_fingerprint() -> None:
    def fingerprint(version: str) -> str:
        service = Service(settings("fake", options={"fake": {"version": version}}))
        service.load()
        service.stop()
        return service.fingerprint("fake")

    assert fingerprint("1") == fingerprint("1") != fingerprint("2")


def test_not_ready_before_the_warm_up() -> None:
    service = Service(settings("fake"))
    with serve(service, load=False) as url:
        assert get(url + "/readyz").status_code == 503
        assert get(url + "/livez").status_code == 200
        assert get(url + "/info").status_code == 503
        reply = post(url, grey())
        assert (reply.status_code, error(reply)["code"], reply.headers["Retry-After"]) == (503, "not_ready", "1")
        service.load()
        assert get(url + "/readyz").json() == {"ready": True}
        assert post(url, grey()).status_code == 200


def test_a_scorer_that_cannot_load_says_why() -> None:
    service = Service(settings("geneval", options={"geneval": {"detector": "eyes"}}))
    with pytest.raises(WorkerError, match=r"unknown detector 'eyes'; known: .*shapes"):
        service.load()
    assert service.failure is not None and not service.ready
    service.stop()


def test_a_scorer_that_cannot_score_its_warm_up_image_says_why() -> None:
    service = Service(settings("fake", options={"fake": {"class": "Broken"}}))
    with pytest.raises(WorkerError, match=r"could not score the warm-up image: .*the weights are upside down"):
        service.load()
    service.stop()


def test_token_is_needed_for_scores_and_info() -> None:
    with serve(Service(settings("fake")), token="secret") as url:
        assert post(url, grey()).status_code == 401
        assert post(url, grey(), Authorization="Bearer wrong").status_code == 401
        assert get(url + "/info").status_code == 401
        assert post(url, grey(), Authorization="Bearer secret").status_code == 200
        assert get(url + "/readyz").status_code == 200


def test_overload_and_deadline(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    service = Service(settings("fake", options={"fake": gate.options}, limits=Limits(max_items=4), max_queued=6))
    with serve(service) as url:
        slow = threading.Thread(target=post, args=(url, grey(prompt="wait")))
        slow.start()
        gate.wait_until_entered()

        late = scored(post(url, *[grey(item_id=i) for i in range(4)], **{"X-Deadline-S": "0.2"}))
        outcome = late.results[0].rewards["fake"]
        assert isinstance(outcome, ItemError) and outcome.code == "deadline" and outcome.retryable

        refused = post(url, grey(), grey(item_id=1))
        assert (refused.status_code, error(refused)["code"], refused.headers["Retry-After"]) == (503, "overloaded", "1")

        gate.open()
        slow.join()
        assert isinstance(scored(post(url, grey())).results[0].rewards["fake"], Scores)
        wait_for(lambda: service._queued == 0)


def test_images_of_several_requests_share_a_batch(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    service = Service(settings("fake", options={"fake": gate.options}))
    with serve(service) as url, ThreadPoolExecutor(4) as pool:
        pool.submit(post, url, grey(prompt="wait"))
        gate.wait_until_entered()
        for _ in range(3):
            pool.submit(post, url, grey(), grey(item_id=1))
        wait_for(lambda: service._queued == 7)
        gate.open()
    assert gate.batches() == [1, 1, 6]  # warm-up, the one at the gate, all that waited


def test_a_request_sent_again_while_in_work_is_scored_once(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    service = Service(settings("fake", options={"fake": gate.options}))
    with serve(service) as url, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(post, url, grey(prompt="wait"), request_id="twice") for _ in range(2)]
        gate.wait_until_entered()
        other = pool.submit(post, url, grey(102), request_id="twice")  # by mistake: its own images count
        wait_for(lambda: service._queued == 2 and b"awm_reward_requests_joined_total 1.0" in service.metrics())
        gate.open()
        assert {reply.result().content[-60:] for reply in asked} == {asked[0].result().content[-60:]}
        assert [scored(reply.result()).results[0].rewards["fake"].score for reply in (asked[0], other)] == [0.2, 0.4]  # type: ignore[union-attr]
    assert sum(gate.batches()) == 3
    assert not service._in_work


def test_metrics_count_what_happened() -> None:
    with serve(Service(settings("fake")), token="secret") as url:
        assert get(url + "/metrics").status_code == 401
        authorised = {"Authorization": "Bearer secret"}
        post(url, grey(), grey(prompt="poison", item_id=1), **authorised)
        post(url)
        text = httpx.get(url + "/metrics", headers=authorised).text
    for line in (
        'awm_reward_requests_total{status="200"} 1.0',
        'awm_reward_requests_total{status="401"} 1.0',
        'awm_reward_images_total{outcome="ok",reward="fake"} 1.0',
        'awm_reward_images_total{outcome="scorer_failed",reward="fake"} 1.0',
        'awm_reward_batch_images_sum{reward="fake"} 2.0',
        'awm_reward_workers_alive{reward="fake"} 1.0',
        'awm_reward_worker_restarts_total{reward="fake"} 0.0',
    ):
        assert line in text.splitlines(), f"{line} is not in\n{text}"


def test_the_schema_describes_both_media_types(url: str) -> None:
    schema = get(url + "/openapi.json").json()
    operation = schema["paths"]["/v1/score"]["post"]
    assert set(operation["requestBody"]["content"]) == {MSGPACK, "application/json"}
    assert {"200", "401", "413", "415", "422", "503"} <= set(operation["responses"])


def test_a_queue_too_small_for_one_request_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="raise it to 512"):
        settings("fake", "geneval", limits=Limits(max_items=256), max_queued=256)


def test_a_defect_of_the_server_is_said_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(settings("fake"))
    with serve(service) as url:
        monkeypatch.setattr(service, "fingerprint", lambda name: {}[name])
        reply = post(url, grey())
    assert (reply.status_code, error(reply)["code"]) == (500, "internal")


def test_bytes_that_wait_are_limited_too(tmp_path: Path) -> None:
    """Requests whose deadline is over hold their images until a worker gets to them."""
    gate = Gate(tmp_path)
    limits = Limits(max_body_bytes=1 << 16, max_items=4, max_pixels=1 << 16)
    service = Service(settings("fake", options={"fake": gate.options}, limits=limits, max_queued=1000))
    with serve(service) as url, ThreadPoolExecutor(2) as pool:
        pool.submit(post, url, grey(prompt="wait"))
        gate.wait_until_entered()
        large = WireItem(0, encode_image(np.zeros((140, 140, 3), dtype=np.uint8), "raw"), "", {})
        statuses = [post(url, large, **{"X-Deadline-S": "0.01"}).status_code for _ in range(20)]
        assert statuses.count(200) in (16, 17) and statuses[-1] == 503
        gate.open()
        wait_for(lambda: service._bytes == 0)
        assert post(url, large).status_code == 200


def test_a_connection_that_sends_nothing_gives_its_room_back(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nContent-Type: {MSGPACK}\r\nX-Deadline-S: 0.3\r\n"
    for length in ("Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall((head + length).encode())
            assert b"503" in connection.recv(100)
    assert post(url, grey()).status_code == 200


def test_a_chunked_body_is_chunked_whatever_length_it_claims() -> None:
    intake = Intake(1000)
    scope = {"type": "http", "headers": [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")]}
    assert intake._announced_size(Request(scope)) == 1000


def test_an_unknown_path_answers_like_everything_else(url: str) -> None:
    for reply in (get(url + "/v2/score"), get(url + "/v1/score")):
        assert error(reply)["code"] == "no_such_operation"
