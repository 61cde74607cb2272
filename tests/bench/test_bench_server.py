"""The reward server of a benchmark: there, there again, and gone."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from awm.bench.server import RewardServer


def is_ready(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
        return bool(answer.status == 200)


def pid(server: RewardServer) -> int:
    assert server._process is not None
    return server._process.pid


def test_it_answers_comes_back_at_its_address_and_leaves_nothing_behind(tmp_path: Path):
    with RewardServer(("geneval",), tmp_path) as server:
        address, first = server.url, pid(server)
        assert is_ready(address)
        server.ensure()
        assert pid(server) == first
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while pid(server) == first and time.monotonic() < deadline:
            time.sleep(0.1)
            server.ensure()
        assert pid(server) != first and server.url == address and is_ready(address)
        last = pid(server)
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_server_that_does_not_start_is_an_error_that_names_its_log(tmp_path: Path):
    with (
        pytest.raises(ValueError, match=r"did not start .*reward_server\.log says why"),
        RewardServer(("?",), tmp_path),
    ):
        pass
    assert "invalid choice" in (tmp_path / "reward_server.log").read_text()
