"""Command line of the reward server."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import uvicorn
import yaml

from reward_server import process
from reward_server.app import create_app
from reward_server.scorers.geneval.scorer import DETECTORS
from reward_server.scorers.table import SCORERS
from reward_server.service import Service
from reward_server.settings import (
    TOKEN_VARIABLE,
    ScorerSettings,
    Settings,
    SettingsError,
    load_settings,
    token_from_environment,
)
from reward_server.wire import Limits
from reward_server.worker.handle import WorkerError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 18080
COMMANDS = {
    "check": "reward_server.check:main",
    "convert-mask2former": "reward_server.convert:mask2former",
    "convert-open-clip": "reward_server.convert:open_clip",
}
GRACE_S = 5  # seconds for requests at hand when the server is told to stop
KEEP_ALIVE_S = 75  # longer than a trainer pauses between batches, so that connections are reused

log = logging.getLogger("reward_server")

_DESCRIPTION = """\
Score images over HTTP: POST /v1/score, and /livez, /readyz, /info, /metrics, /openapi.json.

examples:
  awm-reward-server --scorer geneval --port 0 --url-file /tmp/reward.url     the tiny shapes world, on a free port
  awm-reward-server --scorer geneval --option geneval.detector=hf            real images, transformers' Mask2Former
  awm-reward-server --scorer ocr --scorer pickscore                          two rewards, a process each
  awm-reward-server --config reward_server/server.yaml                       everything else: GPUs, environments, ...

other commands (each with its own --help):
  awm-reward-server check URL                         try every scorer of a running server, print a table
  awm-reward-server convert-mask2former SRC DST       mmdet checkpoint -> transformers folder, for GenEval
  awm-reward-server convert-open-clip SRC DST         open_clip checkpoint -> transformers folder, for HPSv2.1

The line "listening on URL" appears as soon as the port is open. The file of --url-file appears once every scorer
has scored a warm-up image, which is also when /readyz turns from 503 to 200. SIGTERM and Ctrl-C stop cleanly."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server, or the command named first.

    Exit code 0 after SIGTERM or Ctrl-C, 1 if a scorer fails to load, 2 for wrong arguments.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and (command := COMMANDS.get(arguments[0])):
        module, _, function = command.partition(":")
        getattr(importlib.import_module(module), function)(arguments[1:])
        return
    _main(arguments)


def _main(arguments: Sequence[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_cleanly)
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings, host, port = _settings(options)
        token = token_from_environment()
    except ValueError as error:
        parser.error(str(error))
    if token is None and not process.is_loopback(host):
        parser.error(
            f"refusing to listen on {host} without a token: anybody who reaches the port could use it. "
            f"Set the environment variable {TOKEN_VARIABLE} here and for the trainer, or use --host 127.0.0.1."
        )
    process.return_freed_memory()
    if options.exit_with_parent:
        process.exit_with_parent()
    _serve(settings, token, host, port, options.url_file)


def _serve(settings: Settings, token: str | None, host: str, port: int, url_file: Path | None) -> None:
    try:
        listener = process.bind(host, port)
    except OSError as error:
        sys.exit(f"cannot listen on {host}:{port}: {error}; choose another --port, or 0 for any")
    url = process.url_of(listener)
    print(f"listening on {url}", flush=True)
    service = Service(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(service, token),
            log_config=None,  # ours
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    threading.Thread(target=_end_if_useless, args=(service, server), name="watch", daemon=True).start()
    threading.Thread(target=_load, args=(service, server, url, url_file), name="load", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        failed = service.failure
        service.stop()
        if url_file:
            url_file.unlink(missing_ok=True)
    if failed:
        sys.exit(1)


def _end_if_useless(service: Service, server: uvicorn.Server) -> None:
    """A server that has lost every reward for good ends, so that whatever supervises it can start a new one."""
    while not server.should_exit:
        if service.loaded and service.gave_up:
            service.failure = "every reward has failed to start too often"
            log.critical("%s; ending", service.failure)
            server.should_exit = True
        time.sleep(1.0)


def _load(service: Service, server: uvicorn.Server, url: str, url_file: Path | None) -> None:
    try:
        service.load()
    except WorkerError as error:
        if not server.should_exit:  # else it is only a consequence of being told to stop
            log.critical("cannot start: %s", error)
        server.should_exit = True
        return
    log.info("ready: %s", ", ".join(service.settings.scorers))
    if url_file:
        process.write_atomically(url_file, url + "\n")


def _settings(options: argparse.Namespace) -> tuple[Settings, str, int]:
    """Settings, host and port of the YAML file, if one is given, with what the command line says on top."""
    if options.config and (options.scorer or options.detector or options.option or options.device):
        raise SettingsError(
            f"with --config, {options.config} names the scorers and their options, not the command line"
        )
    given: dict[str, Any] = load_settings(options.config) if options.config else {}
    if options.config:
        given["scorers"] = _chosen(given["scorers"], options.only, options.config)
    elif options.only:
        raise SettingsError("--only chooses among the scorers of a --config; give one, or use --scorer")
    else:
        given["scorers"] = _scorers(options)
    limits: Limits = given.pop("limits", Limits())
    changed = {
        "max_body_bytes": options.max_body_mb and options.max_body_mb << 20,
        "max_items": options.max_items,
        "max_pixels": options.max_pixels,
    }
    given["limits"] = replace(limits, **{key: value for key, value in changed.items() if value is not None})
    for key in ("host", "port", "max_queued", "deadline_s"):
        if (value := getattr(options, key)) is not None:
            given[key] = value
    host, port = given.pop("host", DEFAULT_HOST), given.pop("port", DEFAULT_PORT)
    return Settings(**given), host, port


def _chosen(scorers: dict[str, ScorerSettings], names: Sequence[str] | None, path: Path) -> dict[str, ScorerSettings]:
    """The scorers of a file that --only names, or all of them."""
    for name in names or ():
        if name not in scorers:
            raise SettingsError(f"--only {name}: {path} has the scorers {', '.join(scorers)}; add {name} there")
    return {name: scorers[name] for name in names or scorers}


def _scorers(options: argparse.Namespace) -> dict[str, ScorerSettings]:
    own: dict[str, dict[str, Any]] = {name: {} for name in options.scorer or ["geneval"]}
    if options.detector:
        options.option = [f"geneval.detector={options.detector}", *(options.option or [])]
    for text in options.option or []:
        name, value = text.partition("=")[::2]
        scorer, key = name.partition(".")[::2]
        if not key or "=" not in text or scorer not in own:
            raise SettingsError(f"--option {text}: expected SCORER.KEY=VALUE with SCORER among {', '.join(own)}")
        own[scorer][key] = yaml.safe_load(value)
    batching = {
        "devices": tuple(options.device or ["cpu"]),
        "batch_images": options.batch_images,
        "batch_wait_s": options.batch_wait_ms / 1000,
    }
    return {name: ScorerSettings(scorer=name, options=keys, **batching) for name, keys in own.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="awm-reward-server", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to score")
    what.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="scorers, devices, interpreters, limits; see reward_server/README.md",
    )
    what.add_argument(
        "--scorer", action="append", choices=sorted(SCORERS), help="repeat for several (default: geneval)"
    )
    what.add_argument(
        "--only", action="append", metavar="NAME", help="with --config: start only this one of its scorers; repeat"
    )
    what.add_argument(
        "--detector", choices=sorted(DETECTORS), help="short for --option geneval.detector=NAME (default: shapes)"
    )
    what.add_argument(
        "--option", action="append", metavar="SCORER.KEY=VALUE", help="an option of a scorer; repeat for several"
    )
    what.add_argument(
        "--device", action="append", metavar="DEVICE", help="cpu or cuda:N; repeat for a process on each (default: cpu)"
    )
    where = parser.add_argument_group("where to listen")
    where.add_argument(
        "--host",
        help=f"address to bind (default: {DEFAULT_HOST}); any other than loopback needs a token in ${TOKEN_VARIABLE}",
    )
    where.add_argument("--port", type=_whole(0, 65535), help=f"0 takes a free one (default: {DEFAULT_PORT})")
    where.add_argument("--url-file", type=Path, metavar="PATH", help="write the URL here once ready; removed at exit")
    where.add_argument(
        "--exit-with-parent", action="store_true", help="stop when the process that started this one is gone"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-body-mb", type=_whole(1), metavar="MB", help="one request (default: 64)")
    limits.add_argument("--max-items", type=_whole(1), metavar="N", help="images per request (default: 256)")
    limits.add_argument(
        "--max-pixels", type=_whole(1), metavar="N", help="height x width per image (default: 4096 x 4096)"
    )
    limits.add_argument(
        "--max-queued", type=_whole(1), metavar="N", help="images that may wait; more get 503 (default: 4096)"
    )
    limits.add_argument("--deadline-s", type=float, metavar="S", help="longest time a request may take (default: 100)")
    batching = parser.add_argument_group("batching")
    batching.add_argument(
        "--batch-images", type=_whole(1), default=64, metavar="N", help="largest batch (default: %(default)s)"
    )
    batching.add_argument(
        "--batch-wait-ms",
        type=float,
        default=3.0,
        metavar="MS",
        help="wait for more images this long (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="on stderr (default: %(default)s)",
    )
    return parser


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Parser of an integer in a range."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(
                f"{value} is out of range; expected {low} to {'any' if high is None else high}"
            )
        return value

    parse.__name__ = "integer"  # argparse names it in its own message for "abc"
    return parse


def _exit_cleanly(number: int, frame: object) -> NoReturn:
    # uvicorn catches the signal first while it serves, stops in order, and raises it again: end with code 0.
    raise SystemExit(0)


if __name__ == "__main__":
    main()
