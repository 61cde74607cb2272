"""Workers killed at random under load: every request is answered, and every answer is right or worth another try."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import httpx
import numpy as np
import psutil

from reward_server.codec import MSGPACK
from reward_server.images import encode_image
from reward_server.scorers.base import ItemError, Scores
from reward_server.service import Service
from reward_server.wire import ScoreRequest, WireItem, decode_response, encode_request
from tests.reward_server.serving import serve, settings

KILLS = 50
CLIENTS = 4
IMAGES = 4


def test_fifty_kills_under_load() -> None:
    service = Service(settings("fake", options={"fake": {"seconds": 0.005}}, workers_per_device=2))
    stop = threading.Event()
    answered: list[str] = []
    wrong: list[object] = []

    def client(url: str, seed: int) -> None:
        levels = np.random.default_rng(seed).integers(0, 256, (10_000, IMAGES))
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            for row in levels:
                if stop.is_set():
                    return
                items = tuple(
                    WireItem(i, encode_image(np.full((8, 8, 3), level, dtype=np.uint8), "raw"), "", {})
                    for i, level in enumerate(row)
                )
                body = encode_request(ScoreRequest(("fake",), items))
                reply = http.post("/v1/score", content=body, headers={"Content-Type": MSGPACK})
                if reply.status_code == 503 and "Retry-After" in reply.headers:
                    answered.append("busy")
                    time.sleep(0.01)
                elif reply.status_code != 200:
                    wrong.append(reply.text)
                else:
                    for result, level in zip(decode_response(reply.content).results, row, strict=True):
                        outcome = result.rewards["fake"]
                        right = (
                            outcome.retryable
                            if isinstance(outcome, ItemError)
                            else outcome == Scores(level / 255, {"twice": level / 127.5})
                        )
                        answered.append(outcome.code if isinstance(outcome, ItemError) else "scored")
                        if not right:
                            wrong.append(outcome)

    seen: set[int] = set()
    choice = random.Random(0)
    with serve(service) as url:
        threads = [threading.Thread(target=client, args=(url, seed)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while len(seen) < KILLS and not wrong:
            time.sleep(choice.uniform(0.0, 0.1))
            if victims := [pid for pid in service.worker_pids()["fake"] if pid not in seen]:
                victim = choice.choice(victims)
                seen.add(victim)
                os.kill(victim, signal.SIGKILL)
        time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a request was never answered"
        left = service.worker_pids()["fake"]
    assert not wrong
    assert len(seen) == KILLS
    assert answered.count("scored") > len(answered) / 10 and len(answered) > KILLS
    assert not any(psutil.pid_exists(pid) for pid in seen | set(left))
    assert service._queued == 0 and not service._in_work
