"""The Ray Serve application on a Ray of this machine: two replicas, one of them killed under load.

Skipped without Ray, which is 400 MB: ``pip install -e '.[ray]'`` and run this file by itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from reward_server.codec import MSGPACK
from reward_server.scorers.base import ItemError
from reward_server.wire import ScoreRequest, decode_response, encode_request
from tests.reward_server.contract import GOOD, SETTINGS, TOKEN, Contract, item
from tests.reward_server.serving import free_port, wait_for

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
serve = pytest.importorskip("ray.serve", reason="needs the extra `ray`")

BODY = encode_request(ScoreRequest(("fake",), tuple(item(i) for i in range(4))))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from reward_server.ray_app import NAME, application

    port = free_port()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    app = application(SETTINGS, TOKEN, min_replicas=2, max_replicas=2)
    serve.run(app, name=NAME, route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    left = [*replicas(), *workers()]
    serve.shutdown()
    ray.shutdown()
    wait_for(lambda: not any(alive(process) for process in left))


def replicas() -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if "ServeReplica:rewards" in " ".join(cmdline(p))]


def workers() -> list[psutil.Process]:
    children = [child for replica in replicas() for child in replica.children(recursive=True)]
    return [child for child in children if any(part.endswith("worker/main.py") for part in cmdline(child))]


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return [str(part) for part in process.cmdline()] + [process.name()]
    except psutil.Error:
        return []


def worth_another_try(reply: httpx.Response) -> bool:
    """What the trainer's client would send again: overload, or Ray's own words for a replica that died."""
    return reply.status_code == 503 or (reply.status_code == 500 and "error" not in reply.text)


def post(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/score", content=BODY, headers={"Content-Type": MSGPACK, "Authorization": f"Bearer {TOKEN}"})


def test_both_replicas_answer_and_one_may_die(url: str) -> None:
    wait_for(lambda: len(replicas()) == 2 and len(workers()) == 4)
    stop = threading.Event()
    statuses: dict[int, int] = {}
    wrong: list[object] = []

    def load() -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while not stop.is_set():
                reply = post(client)
                statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
                if reply.status_code == 200:
                    for result in decode_response(reply.content).results:
                        outcome = result.rewards["fake"]
                        if outcome != GOOD and not (isinstance(outcome, ItemError) and outcome.retryable):
                            wrong.append(outcome)
                elif not worth_another_try(reply):
                    wrong.append(reply.text)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    victim = replicas()[0]
    children = victim.children(recursive=True)
    os.kill(victim.pid, signal.SIGKILL)
    wait_for(lambda: not alive(victim) and len(replicas()) == 2, patience_s=120)
    time.sleep(2.0)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a request was never answered"
    assert not wrong
    assert statuses[200] > 100
    wait_for(lambda: not any(alive(child) for child in children))


def test_the_contract(url: str) -> None:
    Contract(url).check()
