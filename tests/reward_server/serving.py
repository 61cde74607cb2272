"""A real reward server in a thread, on a free port or a given one, with scorers that misbehave on request."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvicorn

from reward_server import process
from reward_server.app import create_app
from reward_server.service import Service
from reward_server.settings import ScorerSettings, Settings
from reward_server.wire import Limits

FAKES = Path(__file__).with_name("fakes.py")
_OF_SCORERS = {f.name for f in fields(ScorerSettings)} - {"scorer", "options"}


def settings(*rewards: str, options: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> Settings:
    """Settings with small limits. "geneval" is the real one, any other reward a fake.

    Args:
        *rewards: names; "fake" and "fake_2" are the same kind of fake.
        options: reward name -> options of its scorer; "class" among them names another class of the fakes.
        **changes: of ``Settings``, or of every reward's ``ScorerSettings``.
    """
    limits = changes.pop("limits", Limits(max_body_bytes=1 << 20, max_items=16, max_pixels=256 * 256))
    own = {key: changes.pop(key) for key in list(changes) if key in _OF_SCORERS}
    scorers = {}
    for name in rewards:
        keys = dict((options or {}).get(name, {}))
        target = name if name == "geneval" else f"{FAKES}:{keys.pop('class', 'Fake')}"
        scorers[name] = ScorerSettings(target, keys, **own)
    return Settings(scorers, limits, **{"max_queued": 64} | changes)


class Gate:
    """Holds batches with the prompt "wait" until it is opened; ``options`` are for the fake behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = {"folder": str(folder)}

    def wait_until_entered(self) -> None:
        """Until the scorer stands before the gate."""
        wait_for((self.folder / "entered").exists)

    def open(self) -> None:
        """Let it through, now and from now on."""
        (self.folder / "open").touch()

    def batches(self) -> list[int]:
        """Sizes of the batches so far, the warm-up's among them."""
        return [int(line) for line in (self.folder / "batches").read_text().split()]


def wait_for(condition: Callable[[], object], patience_s: float = 60.0) -> None:
    """Return when the condition holds; fail if it never does."""
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


@contextmanager
def serve(service: Service, token: str | None = None, port: int = 0, load: bool = True) -> Iterator[str]:
    """URL of a server that is ready inside the block, unless it shall not be loaded, and gone after it."""
    if load:
        service.load()
    listener = process.bind("127.0.0.1", port)
    server = uvicorn.Server(
        uvicorn.Config(create_app(service, token), log_config=None, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield process.url_of(listener)
    finally:
        server.should_exit = True
        thread.join(10)
        service.stop()
        listener.close()


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
