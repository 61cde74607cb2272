"""launch_ranks.py: real torchrun, by Accelerate, over ranks that do as they are told."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.train_scripts.nodes_on_loopback import ROOT, clean_environment, free_port

RANK = """
import os, signal, sys, time
from pathlib import Path

here, rank, does = Path(__file__).parent, os.environ.get("RANK", "0"), sys.argv[1]

def save(*_):
    with open(here / f"signals{rank}", "a") as file:
        file.write("TERM ")
    time.sleep(0.5)
    print(f"rank {rank} saved", flush=True)
    sys.exit(0)

if does == "saves":
    signal.signal(signal.SIGTERM, save)
with open(here / f"started{rank}", "a") as file:
    file.write("x")
if does == "fails":
    if rank == "1":
        sys.exit(7)
elif does == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


class Ranks:
    """A running launch_ranks.py."""

    def __init__(self, folder: Path, does: str, *options: str, config: str = "multi_gpu.yaml") -> None:
        (folder / "obedient_rank.py").write_text(RANK)
        command = [
            sys.executable,
            "train_scripts/launch_ranks.py",
            "--config_file",
            f"train_scripts/accelerate/{config}",
        ]
        command += ["--main_process_port", free_port(), *options, "-m", "obedient_rank", does]
        environment = clean_environment(PYTHONPATH=str(folder))
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.folder = folder

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        give_up = time.monotonic() + 60
        while not all((self.folder / f"started{rank}").exists() for rank in ranks):
            assert time.monotonic() < give_up and self.process.poll() is None, self.end()
            time.sleep(0.02)
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


def test_the_status_of_the_rank_that_failed(tmp_path: Path) -> None:
    status, output = Ranks(tmp_path, "fails", "--num_processes", "2").end()
    assert status == 7
    assert "ended with status 7" in output and "Traceback" not in output


def test_ranks_save_and_their_success_counts(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "saves", "--num_processes", "2", "--max_restarts", "2")
    ranks.signal(signal.SIGINT, 0, 1)
    status, output = ranks.end()
    assert status == 0, output
    for rank in range(2):
        assert f"rank {rank} saved" in output
        assert (tmp_path / f"signals{rank}").read_text() == "TERM "


def test_ranks_started_again_after_a_signal_end_too(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "dies of it", "--num_processes", "1", "--max_restarts", "2")
    ranks.signal(signal.SIGTERM, 0)
    assert ranks.end()[0] == 128 + signal.SIGTERM


def test_a_killed_rank_is_started_again_as_often_as_allowed(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "is killed", "--num_processes", "1", "--max_restarts", "1")
    status, output = ranks.end()
    assert status == 128 + signal.SIGKILL and "ended with SIGKILL" in output
    assert (tmp_path / "started0").read_text() == "xx"


def test_one_process_without_torchrun(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "saves", config="single_gpu.yaml")
    ranks.signal(signal.SIGTERM, 0)
    assert ranks.end()[0] == 0
    assert (tmp_path / "signals0").read_text() == "TERM "


def test_a_signal_before_there_are_ranks(tmp_path: Path) -> None:
    node = ("--num_machines", "2", "--machine_rank", "1", "--num_processes", "2", "--main_process_ip", "127.0.0.1")
    ranks = Ranks(tmp_path, "saves", *node)
    time.sleep(4)  # then it waits for node 0, which never comes, in a call that lasts minutes
    ranks.signal(signal.SIGTERM)
    assert ranks.end()[0] == 0  # nothing was lost
