"""The reward server as a Ray Serve application: the same service, as replicas over a cluster, with autoscaling.

Each replica is the whole server of a YAML file without its socket: it starts the same worker processes, each in its
own interpreter, so that rewards with conflicting dependencies work under Ray too. Ray gives the requests to the
replica with the fewest, starts another one under load, and replaces one that dies.

    python -m reward_server.ray_app --config reward_server/server.yaml --max-replicas 4

Needs ``pip install -e '.[ray]'``. Without Ray, several servers and a list of their URLs do the same job.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from reward_server import process
from reward_server.app import create_app
from reward_server.service import Service
from reward_server.settings import TOKEN_VARIABLE, Settings, SettingsError, load_settings, token_from_environment

NAME = "rewards"
TARGET_REQUESTS = 4  # in work per replica; more start another one
MAX_REQUESTS = 32  # in work per replica; the others wait in Ray's queue, which is bounded too
MAX_WAITING = 512
HEALTH_PERIOD_S = 5.0


@serve.ingress()
class Replica:
    """One server's worth of workers. Ready, for Ray, once every scorer has scored its warm-up image.

    Args:
        settings: what it runs.
        token: bearer token it asks for, or None.
    """

    def __init__(self, settings: Settings, token: str | None) -> None:
        self._service = Service(settings)
        self._token = token
        try:
            self._service.load()
        except Exception:
            self._service.stop()
            raise

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP face; Ray asks for it once the scorers are warm."""
        return create_app(self._service, self._token)

    async def check_health(self) -> None:
        """Ray replaces a replica that has given up a scorer; one whose worker is being started anew stays."""
        if self._service.failure or self._service.gave_up:
            raise RuntimeError(self._service.not_ready_because())

    async def __del__(self) -> None:
        await asyncio.to_thread(self._service.stop)


def application(settings: Settings, token: str | None, *, min_replicas: int, max_replicas: int) -> serve.Application:
    """What ``serve.run`` takes.

    Args:
        settings: of every replica; "cuda:0" there is the first of the GPUs that Ray gives to a replica.
        token: bearer token, or None.
        min_replicas: never fewer.
        max_replicas: never more.
    """
    devices = [device for scorer in settings.scorers.values() for device in scorer.devices]
    gpus = max((1 + int(device.partition(":")[2]) for device in devices if device != "cpu"), default=0)
    deployment = serve.deployment(
        Replica,
        name=NAME,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": TARGET_REQUESTS,
        },
        max_ongoing_requests=MAX_REQUESTS,
        max_queued_requests=MAX_WAITING,
        health_check_period_s=HEALTH_PERIOD_S,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
    )
    return deployment.bind(settings, token)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the application until told to stop."""
    options = _parser().parse_args(arguments)
    try:
        given = load_settings(options.config)
        host = options.host or given.get("host", "127.0.0.1")
        port = given.get("port", 18080) if options.port is None else options.port
        token = token_from_environment()
        settings = Settings(**{key: value for key, value in given.items() if key not in ("host", "port")})
    except SettingsError as error:
        sys.exit(str(error))
    if token is None and not process.is_loopback(host):
        sys.exit(f"refusing to listen on {host} without a token: set the environment variable {TOKEN_VARIABLE}.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both raise KeyboardInterrupt, wherever we are
    ray.init(address=options.address, log_to_driver=True)
    try:
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        app = application(settings, token, min_replicas=options.min_replicas, max_replicas=options.max_replicas)
        serve.run(app, name=NAME, route_prefix="/")
        print(f"listening on http://{host}:{port}, on every node of the cluster", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--config", type=Path, required=True, metavar="YAML", help="the server's settings; each replica runs them all")
    add("--min-replicas", type=int, default=1, metavar="N", help="(default: %(default)s)")
    add("--max-replicas", type=int, default=1, metavar="N", help="(default: %(default)s)")
    add("--address", help="of the Ray cluster, or auto; without it, a Ray of its own on this machine")
    add("--host", help="address to bind on every node (default: that of the YAML, else 127.0.0.1)")
    add("--port", type=int, help="(default: that of the YAML, else 18080)")
    return parser


if __name__ == "__main__":
    main()
