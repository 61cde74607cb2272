"""The contract, held by the server on one machine; ``test_ray.py`` holds Ray Serve to the same one."""

from __future__ import annotations

from reward_server.service import Service
from tests.reward_server.contract import SETTINGS, TOKEN, Contract
from tests.reward_server.serving import serve


def test_one_machine() -> None:
    with serve(Service(SETTINGS), token=TOKEN) as url:
        Contract(url).check()
