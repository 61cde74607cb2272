"""Real ranks in real processes, talking over gloo, without paying for the imports each time.

A fork server imports the heavy libraries once; every rank is a fork of it, started in a fraction of a second.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

PRELOAD = ["torch", "diffusers", "transformers", "peft", "accelerate", "awm.building", "tests.training.rank_scenarios"]
LIMIT_S = 120


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, limit_s: float = LIMIT_S) -> Any:
    """What ``function(*args)`` returns on rank 0 of ``world_size`` processes; a failure on any is a failure here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    port = _free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, function, args, pipe[1]))
        for rank, pipe in enumerate(pipes)
    ]
    for rank, (_, there) in zip(ranks, pipes, strict=True):
        rank.start()
        there.close()  # so that the end of a rank that is killed is the end of its pipe
    try:
        answer = _collect([pipe[0] for pipe in pipes], limit_s)
        for rank in ranks:
            rank.join(10)
    finally:
        for rank in ranks:
            if rank.is_alive():
                rank.kill()
    return torch.load(io.BytesIO(answer), weights_only=False)


def _collect(pipes: list[Connection], limit_s: float) -> bytes:
    """Rank 0's answer once all have one; the first error ends the waiting, as the others may wait for that rank."""
    waiting, answer = dict(zip(pipes, range(len(pipes)), strict=True)), b""
    deadline = time.monotonic() + limit_s
    while waiting:
        ready = wait(list(waiting), timeout=deadline - time.monotonic())
        assert ready, f"ranks {sorted(waiting.values())} of {len(pipes)} gave no answer within {limit_s} s"
        for pipe in ready:
            assert isinstance(pipe, Connection)
            number = waiting.pop(pipe)
            result, error = pipe.recv()  # bytes: shared memory would be gone with its process
            assert not error, f"rank {number}: {error}"
            answer = answer or result or b""
    return answer


def _rank(
    rank: int,
    world_size: int,
    port: int,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    pipe: Connection,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )
    torch.set_num_threads(1)
    try:
        answer = io.BytesIO()
        torch.save(function(*args), answer)
        pipe.send((answer.getvalue() if rank == 0 else None, None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
