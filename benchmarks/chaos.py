"""Hurt a training run at random moments, continue it with the same command each time, and compare with a quiet run.

    python benchmarks/chaos.py
    python benchmarks/chaos.py --disturbances 8 --epochs 30 --out /tmp/chaos.json

The shipped tiny model on two ranks under torchrun, scored by a real reward server. The kinds of disturbance take turns;
the moments are random, between the start of the processes and a few epochs later. At the end metrics.jsonl must equal
the quiet run's but for clocks and memory, the final LoRA weights bit for bit, and no process may be left. Exit status 1
otherwise. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from provenance import ROOT, provenance
from safetensors.torch import load_file

from awm.training.metrics import read_metrics

CLOCKS = ("time/", "images_per_s", "memory/")
GONE_WITHIN_S = 60.0
LORA = ("lora", "lora_average")
SIZES = {
    "sample.num_prompts_per_epoch": 2,
    "sample.num_image_per_prompt": 4,
    "sample.num_steps": 6,
    "sample.eval_num_steps": 4,
    "sample.train_batch_size": 2,
    "evaluation.max_prompts": 8,
    "evaluation.num_images_per_prompt": 1,
    "train.batch_size": 2,
    "train.train_timesteps": 2,
    "train.updates_per_inner_epoch": 2,
    "train.beta": 0.001,
    "eval_freq": 10,
    "save_freq": 2,
    "num_checkpoint_limit": 3,
    "mixed_precision": "no",
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/chaos.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    results: dict[str, Any] = provenance("torch", "diffusers", "accelerate")
    with tempfile.TemporaryDirectory() as folder:
        results |= measure(Path(folder), arguments.disturbances, arguments.epochs, random.Random(arguments.seed))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({key: value for key, value in results.items() if key != "disturbances"}, indent=2))
    if not (results["metrics_equal"] and results["lora_equal"] and not results["processes_left"]):
        sys.exit("the disturbed run differs from the quiet one, or left processes behind")


def measure(folder: Path, disturbances: int, epochs: int, rng: random.Random) -> dict[str, Any]:
    """Both runs, and whether they are equal."""
    server = Server(folder)
    try:
        quiet, hurt = Run(folder, "quiet", server, epochs), Run(folder, "hurt", server, epochs)
        started = time.monotonic()
        quiet.start()
        quiet.finish()
        quiet_s = time.monotonic() - started
        kinds = list(KINDS)
        done = [disturb(hurt, kinds[number % len(kinds)], rng) for number in range(disturbances)]
        hurt.start_unless_running()
        hurt.finish()
        return compare(quiet, hurt) | {
            "epochs": epochs,
            "quiet_seconds": round(quiet_s, 1),
            "disturbed_seconds": round(time.monotonic() - started - quiet_s, 1),
            "starts": hurt.starts,
            "slowest_end_seconds": max(one.get("gone_after_s", 0.0) for one in done),
            "processes_left": len(hurt.left() + quiet.left()),
            "disturbances": done,
        }
    finally:
        for run in (quiet, hurt):
            run.destroy()
        server.kill()


class Server:
    """A real reward server that comes back on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start it; it is ready when this returns."""
        ready = self.folder / "reward.url"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "reward_server.cli", "--scorer", "geneval", "--detector", "shapes"]
        command += ["--port", str(self.port), "--url-file", str(ready)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_for(ready.exists, 60)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


class Run:
    """A run folder, and the job that works on it now.

    Attributes:
        starts: how often the command was given.
    """

    def __init__(self, folder: Path, name: str, server: Server, epochs: int) -> None:
        self.folder, self.server, self.epochs, self.starts = folder / "logs" / name, server, epochs, 0
        self.log = folder / f"{name}.log"
        settings = {"run_name": name, "logdir": str(folder / "logs"), "num_epochs": epochs, "resume_from": "auto"}
        settings |= SIZES | {"reward_server.urls": f"('http://127.0.0.1:{server.port}',)"}
        self.arguments = [f"--config.{key}={value}" for key, value in settings.items()]
        self.job: psutil.Popen | None = None
        self.family: set[psutil.Process] = set()

    def start(self) -> None:
        """The command of the run, the same each time."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["-m", "awm.train", "--config", "config/awm.py:quickstart", *self.arguments]
        with self.log.open("ab") as log:
            self.job = psutil.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self.family.add(psutil.Process(self.job.pid))
        self.starts += 1

    def start_unless_running(self) -> None:
        """Some disturbances do not end the run."""
        if self.job is None or self.job.poll() is not None:
            self.start()

    def finish(self) -> None:
        """Until the run is complete."""
        assert self.job is not None
        while self.job.poll() is None:
            self.left()
            time.sleep(0.2)
        if self.job.returncode or self.done() < self.epochs:
            sys.exit(f"the run ended with {self.job.returncode}:\n{self.log.read_text()[-4000:]}")

    def done(self) -> int:
        """Epochs in metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return int(lines[-1]["epoch"]) if lines else 0

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.folder / "checkpoints").glob("epoch_*"))

    def left(self) -> list[psutil.Process]:
        """Processes of all jobs so far that live."""
        for process in list(self.family):
            try:
                self.family.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
        return [process for process in self.family if lives(process)]

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank, once it is there."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [p for p in self.left() if environment(p).get("RANK") == str(number)]
            return bool(found)

        wait_for(look, 60)
        return found[0]

    def destroy(self) -> None:
        """Leave nothing behind."""
        for process in self.left():
            process.kill()


def disturb(run: Run, kind: str, rng: random.Random) -> dict[str, Any]:
    """One disturbance at a random moment, and the end of all processes that should end."""
    run.start_unless_running()
    before = run.done()
    ranks = [run.rank(0), run.rank(1)]
    if rng.random() < 0.8:  # else while the model is loaded
        wait_for(lambda: run.done() > before or not alive(run), 120)
    time.sleep(rng.uniform(0, 4))
    if not alive(run):
        sys.exit(f"the run was complete before the disturbance {kind!r}, or failed; raise --epochs.\n{tail(run)}")
    moment = run.done()
    hurt_at = KINDS[kind](run, ranks, rng)
    result: dict[str, Any] = {"kind": kind, "epochs_done": moment}
    if hurt_at:
        wait_for(lambda: not (alive(run) or run.left()), GONE_WITHIN_S)
        result["gone_after_s"] = round(time.monotonic() - hurt_at, 1)
    print(json.dumps(result), flush=True)
    return result


Kind = Callable[[Run, list[psutil.Process], random.Random], float]
"""Hurts a run; returns when, or 0 if the run goes on. (run, processes of its ranks, source of randomness)"""


def kill_rank(number: int) -> Kind:
    """SIGKILL of one rank."""

    def kill(run: Run, ranks: list[psutil.Process], rng: random.Random) -> float:
        ranks[number].kill()
        return time.monotonic()

    return kill


def kill_while_saving(run: Run, ranks: list[psutil.Process], rng: random.Random) -> float:
    """SIGKILL of the rank that writes, as soon as a checkpoint is being written."""
    folder = run.folder / "checkpoints"
    wait_for(lambda: any(folder.glob(".partial_*")) or not alive(run), 120, poll_s=0.0005)
    time.sleep(rng.uniform(0, 0.02))
    ranks[0].kill()
    return time.monotonic()


def signal_launcher(number: int) -> Kind:
    """A signal to torchrun, which passes it on."""

    def send(run: Run, ranks: list[psutil.Process], rng: random.Random) -> float:
        assert run.job is not None
        run.job.send_signal(number)
        return time.monotonic()

    return send


def kill_server(run: Run, ranks: list[psutil.Process], rng: random.Random) -> float:
    """SIGKILL of the reward server, which comes back after a while; the run goes on by itself."""
    run.server.kill()
    time.sleep(rng.uniform(0, 3))
    run.server.start()
    return 0.0


def kill_launcher(run: Run, ranks: list[psutil.Process], rng: random.Random) -> float:
    """SIGKILL of torchrun alone: its ranks are orphans."""
    assert run.job is not None
    run.job.kill()
    return time.monotonic()


def corrupt_newest(run: Run, ranks: list[psutil.Process], rng: random.Random) -> float:
    """SIGKILL of everything, and one byte of the newest checkpoint changed."""
    wait_for(lambda: len(run.checkpoints()) > 1 or not alive(run), 120)
    killed = time.monotonic()
    for process in run.left():
        process.kill()
    wait_for(lambda: not run.left(), GONE_WITHIN_S)
    path = run.checkpoints()[-1] / "state.pt"
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 0xFF
    path.write_bytes(content)
    return killed


KINDS: dict[str, Kind] = {
    "SIGKILL rank 0": kill_rank(0),
    "SIGKILL rank 1": kill_rank(1),
    "SIGKILL rank 0 during a save": kill_while_saving,
    "SIGTERM torchrun": signal_launcher(signal.SIGTERM),
    "SIGINT torchrun": signal_launcher(signal.SIGINT),
    "SIGKILL reward server": kill_server,
    "SIGKILL torchrun": kill_launcher,
    "newest checkpoint corrupted": corrupt_newest,
}


def compare(quiet: Run, hurt: Run) -> dict[str, Any]:
    """Whether the two runs left the same."""
    lines = [[timeless(line) for line in read_metrics(run.folder / "metrics.jsonl")] for run in (quiet, hurt)]
    different = [a.get("epoch") for a, b in zip(*lines, strict=False) if a != b]
    final = [run.checkpoints()[-1] for run in (quiet, hurt)]
    return {
        "metrics_equal": lines[0] == lines[1],
        "metrics_lines": len(lines[1]),
        "first_different_epochs": list(islice(different, 5)),
        "lora_equal": weights(final[0]) == weights(final[1]),
    }


def weights(checkpoint: Path) -> dict[str, bytes]:
    """Every LoRA tensor, bit for bit; the files' headers have no fixed order."""
    return {
        f"{name} {key}": tensor.numpy().tobytes()
        for name in LORA
        for key, tensor in load_file(checkpoint / name / "pytorch_lora_weights.safetensors").items()
    }


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """Metrics without what a clock or the machine decides."""
    return {name: value for name, value in line.items() if not name.startswith(CLOCKS)}


def alive(run: Run) -> bool:
    """Whether the job runs."""
    return run.job is not None and run.job.poll() is None


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment(process: psutil.Process) -> dict[str, str]:
    """Its variables; none if it is gone."""
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}


def tail(run: Run) -> str:
    """The end of what the job printed."""
    return run.log.read_text(errors="replace")[-4000:]


def wait_for(condition: Callable[[], object], patience_s: float, poll_s: float = 0.02) -> None:
    """Return when the condition holds; end the program if it never does."""
    until = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {patience_s} s in vain")
        time.sleep(poll_s)


if __name__ == "__main__":
    main()
