"""The worker's side: build the scorer, warm it up, then answer one batch after the other until the server is gone."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from reward_server.images import ImageError, WireImage, decode_image
from reward_server.outcomes import pack_outcome
from reward_server.scorers.base import Item, ItemError, Outcome, Scorer, Scores
from reward_server.scorers.table import build_scorer
from reward_server.worker.frames import Closed, receive, send
from reward_server.worker.scoring import FAILED, score_items

WARM_UP_SIZE = 64  # pixels a side
PIXEL_BUDGET = 4  # largest images' worth of pixels decoded at a time
PARENT_POLL_S = 0.5


def run(descriptor: int) -> None:
    """Serve the server at the other end of the socket until it closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business
    os.set_inheritable(descriptor, False)  # what the scorer starts must not hold the socket open after us
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    _exit_with_parent()
    with socket.socket(fileno=descriptor) as connection:
        try:
            start, _ = receive(connection)
            scorer = _started(connection, start)
            while scorer is not None:
                _answer(connection, scorer, start["name"], start["max_pixels"])
        except (Closed, BrokenPipeError, ConnectionResetError):
            return


def _started(connection: socket.socket, start: Mapping[str, Any]) -> Scorer | None:
    """The scorer, after it has scored a grey image; or None, the server being told why."""
    try:
        scorer = build_scorer(start["scorer"], start["options"])
        outcome = _warm_up(scorer, start["name"])
        prompt, metadata = scorer.example()
        if not isinstance(outcome, Scores):
            raise RuntimeError(f"could not score the warm-up image: {outcome.message}")
        hello = {
            "error": None,
            "metrics": sorted(outcome.metrics),
            "versions": dict(scorer.fingerprint()),
            "example": {"prompt": prompt, "metadata": dict(metadata)},
        }
        json.dumps(hello)  # a scorer's own error, such as a path among its versions, is told like any other
    except Exception as error:
        if not isinstance(error, ValueError | OSError):  # those are sentences for users, the others are defects
            traceback.print_exc()
        send(connection, {"error": f"{type(error).__name__}: {error}"})
        return None
    send(connection, hello)
    return scorer


def _warm_up(scorer: Scorer, name: str) -> Outcome:
    prompt, metadata = scorer.example()
    grey = np.full((WARM_UP_SIZE, WARM_UP_SIZE, 3), 128, dtype=np.uint8)
    return score_items(scorer, [Item(grey, prompt, metadata)], name)[0]


def _answer(connection: socket.socket, scorer: Scorer, name: str, max_pixels: int) -> None:
    header, blobs = receive(connection)
    timing = {"decode_s": 0.0, "score_s": 0.0}
    outcomes: list[Outcome] = []
    items = list(zip(header["items"], blobs, strict=True))
    while len(outcomes) < len(items):
        started = time.perf_counter()
        prepared = _prepare_some(items[len(outcomes) :], max_pixels)
        decoded = time.perf_counter()
        outcomes += _score(scorer, prepared, name)
        timing["decode_s"] += decoded - started
        timing["score_s"] += time.perf_counter() - decoded
    if outcomes and all(isinstance(outcome, ItemError) and outcome.code == FAILED for outcome in outcomes):
        _end_if_broken(scorer, name)
    send(connection, {"outcomes": [pack_outcome(outcome) for outcome in outcomes], "timing": timing})


def _prepare_some(items: Sequence[tuple[Mapping[str, Any], bytearray]], max_pixels: int) -> list[Item | ItemError]:
    """Decode the first items, no more pixels at a time than a few of the largest images have."""
    prepared: list[Item | ItemError] = []
    room = PIXEL_BUDGET * max_pixels
    for about, blob in items:
        item = _prepare(about, blob, max_pixels)
        prepared.append(item)
        room -= 0 if isinstance(item, ItemError) else item.image.shape[0] * item.image.shape[1]
        if room <= 0:
            break
    return prepared


def _end_if_broken(scorer: Scorer, name: str) -> None:
    """A CUDA error, for one, spoils every later call of its process: only a new process can help."""
    if isinstance(_warm_up(scorer, name), ItemError):
        logging.getLogger(__name__).error("reward %s fails on its warm-up image too: starting anew", name)
        os._exit(1)


def _prepare(about: Mapping[str, Any], blob: bytearray, max_pixels: int) -> Item | ItemError:
    shape = about["shape"]
    try:
        # A bytearray will do for whoever only reads it, and megabytes are not copied.
        image = WireImage(about["format"], cast(bytes, blob), None if shape is None else tuple(shape))
        return Item(decode_image(image, max_pixels), about["prompt"], about["metadata"])
    except ImageError as error:
        return ItemError("bad_image", f"image: {error}")


def _score(scorer: Scorer, prepared: Sequence[Item | ItemError], name: str) -> list[Outcome]:
    scores = iter(score_items(scorer, [item for item in prepared if isinstance(item, Item)], name))
    return [item if isinstance(item, ItemError) else next(scores) for item in prepared]


def _exit_with_parent() -> None:
    """End this process when the server is gone, even in the midst of a batch, when nobody reads the socket."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os.killpg(0, signal.SIGKILL)  # with whatever the scorer has started

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
