"""Real runs in real processes: started, watched, hurt, and gone when the test is over.

``Ranks`` forks them from a server that has imported the libraries; ``Process`` starts a command as a user does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ml_collections import ConfigDict
from safetensors.torch import load_file

from awm.configuration import config_to_dict
from awm.training.metrics import read_metrics
from tests.training.ranks import PRELOAD

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
CLOCKS = ("time/", "images_per_s", "memory/")  # metrics that a clock or the machine decides


class Ranks:
    """The ranks of one ``awm-train`` job without a launcher, so that nothing but themselves ends them.

    Args:
        arguments: the command line.
        folder: gets each rank's output.
        world_size: how many.
        hurt: called in every rank before the run.
        environment: added to every rank's.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        world_size: int,
        hurt: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        port, variables = free_port(), ENVIRONMENT | dict(environment or {})
        self.logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
        self.processes = [
            context.Process(
                target=_rank, args=(list(arguments), variables | _place(rank, world_size, port), str(log), hurt)
            )
            for rank, log in enumerate(self.logs)
        ]

    def __enter__(self) -> Ranks:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        if error is not None:
            print(self.describe())  # shown beside the assertion that failed

    @property
    def outputs(self) -> list[str]:
        return [log.read_text(errors="replace") if log.exists() else "" for log in self.logs]

    def signal(self, rank: int, number: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait_for(self, condition: Callable[[], object], patience_s: float = 120.0) -> None:
        """Return when the condition holds; fail if a rank ends first or it takes too long."""
        wait_for(condition, lambda: any(p.exitcode is not None for p in self.processes), self.describe, patience_s)

    def wait(self, patience_s: float = 120.0) -> list[int | None]:
        """Exit statuses when all have ended; minus the number of the signal that killed one."""
        until = time.monotonic() + patience_s
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
            assert process.exitcode is not None, f"still running after {patience_s} s\n{self.describe()}"
        return [process.exitcode for process in self.processes]

    def describe(self) -> str:
        return "\n".join(f"--- rank {rank}\n{text[-3000:]}" for rank, text in enumerate(self.outputs))


def _place(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher tells a rank."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)},
        **{"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


def _rank(arguments: list[str], environment: dict[str, str], log: str, hurt: Callable[[], object] | None) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    import torch

    from awm.train import main

    torch.set_num_threads(1)
    sys.argv = ["awm-train", *arguments]
    if hurt is not None:
        hurt()
    main()


class Process:
    """A process with its output in a file, and its descendants.

    Args:
        command: what to run.
        log: gets standard output and error.
        environment: added to the usual one.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                command,
                env=os.environ | ENVIRONMENT | (environment or {}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.family: set[psutil.Process] = {psutil.Process(self.popen.pid)}

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object], patience_s: float = 120.0) -> None:
        """Return when the condition holds; fail if the process ends first or it takes too long."""
        wait_for(condition, lambda: self.popen.poll() is not None, lambda: self.output[-4000:], patience_s)

    def wait(self, patience_s: float = 120.0) -> int:
        """Its exit status."""
        try:
            return self.popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {patience_s} s:\n{self.output[-4000:]}") from None

    def descendants(self) -> list[psutil.Process]:
        """All that this process, or one of its descendants, has ever been seen to start, if they live."""
        for process in list(self.family):
            try:
                self.family.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
        return [p for p in self.family if p.pid != self.popen.pid and _lives(p)]

    def rank(self, number: int) -> psutil.Process:
        """The process of one rank of a job, which says so in its environment."""
        for process in self.descendants():
            try:
                if process.environ().get("RANK") == str(number):
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        raise AssertionError(f"no rank {number} among the descendants:\n{self.output[-4000:]}")

    def kill(self) -> None:
        """Leave nothing behind."""
        self.descendants()
        for process in self.family:
            if _lives(process):
                process.kill()
        self.popen.wait()


@contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.kill()


class RewardServer:
    """A real reward server, which comes back on the same port."""

    name = "file_size"  # another name than the in-process reward's, so that a run must ask the server

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._settings = folder / "server.yaml"
        self._settings.write_text(f"scorers: {{{self.name}: {{scorer: jpeg_compressibility}}}}\n")
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> RewardServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """It is ready when this returns."""
        ready = self._folder / "server.url"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "reward_server.cli", "--config", str(self._settings)]
        command += ["--port", str(self._port), "--url-file", str(ready)]
        self._process = Process(command, self._folder / "server.log")
        self._process.wait_for(ready.exists)

    def kill(self) -> None:
        self._process.kill()


def arguments(config: ConfigDict, folder: Path, *overrides: str) -> list[str]:
    """Command line of a run with this configuration."""
    path = folder / f"{config.run_name}.json"
    path.write_text(json.dumps(config_to_dict(config)))
    return ["--config", str(path), *overrides]


def torchrun(command: Sequence[str], ranks: int) -> list[str]:
    """``awm-train`` with these arguments on several ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(free_port()), "-m", "awm.train", *command]


def run_folder(config: ConfigDict) -> Path:
    return Path(config.logdir) / config.run_name


def lines_of(config: ConfigDict) -> list[dict[str, Any]]:
    """Metrics without what a clock decides."""
    return timeless(read_metrics(run_folder(config) / "metrics.jsonl"))


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in metrics]


def lora_of(config: ConfigDict, epoch: int) -> dict[str, bytes]:
    """Every tensor of a checkpoint's LoRA folders, bit for bit; the files' headers have no fixed order."""
    folder = run_folder(config) / "checkpoints" / f"epoch_{epoch:06d}"
    return {
        f"{name} {key}": tensor.numpy().tobytes()
        for name in ("lora", "lora_average")
        for key, tensor in load_file(folder / name / "pytorch_lora_weights.safetensors").items()
    }


def epochs(config: ConfigDict) -> int:
    """How many lines the run has written."""
    path = run_folder(config) / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(
    condition: Callable[[], object], ended: Callable[[], bool], describe: Callable[[], str], patience_s: float
) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert not ended() or condition(), f"ended too early\n{describe()}"
        assert time.monotonic() < until, f"waited {patience_s} s in vain\n{describe()}"
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
