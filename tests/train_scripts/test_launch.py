"""launch.sh: what it refuses, what it starts, whose status it ends with, and that it leaves nothing behind."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.train_scripts.fake_environments import Launch
from tests.train_scripts.nodes_on_loopback import ROOT, clean_environment


@pytest.fixture
def run(tmp_path: Path) -> Launch:
    return Launch(tmp_path)


TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CONFIG": ""}, "no CONFIG. Type CONFIG=config/awm.py:geneval_sd3_no_cfg_1node"),
        ({"VENV": "/nowhere"}, "there is no environment /nowhere. Type bash train_scripts/setup_env.sh"),
        ({"NPROC": "many"}, "NPROC=many; it must be a whole number from 1"),
        ({"NPROC": "0"}, "NPROC=0; it must be"),
        ({"RESUME": "yes"}, "RESUME=yes; valid are 1"),
        ({"ENGINE": "zero9"}, "ENGINE=zero9; valid are ddp, fsdp2"),
        ({"REWARD": "remote"}, "REWARD=remote; valid are local"),
        ({"REWARD": "local", "REWARD_URLS": "http://a:1"}, "are both set; unset one"),
        ({"REWARD_URLS": "a:18080"}, "REWARD_URLS=a:18080; expected URLs with commas"),
        ({"EXTRA": "--config.reward_server.urls=('http://a:1',)"}, "Type REWARD_URLS=http://HOST:18080"),
        ({"REWARD_WAIT_S": "1h"}, "REWARD_WAIT_S=1h; it must be"),
        ({"SCORERS": "geneval", "REWARD_VENV": "/nowhere"}, "no environment /nowhere for the reward server"),
        ({"NNODES": "2"}, "nothing says which one this is. Set NODE_RANK to 0 on the node"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR is not set"),
        (TWO | {"NODE_RANK": "2"}, "number 2 of 2 nodes; valid numbers are 0 to 1"),
        (TWO | {"NODE_RANK": "-1"}, "NODE_RANK=-1; it must be a whole number from 0"),
        (TWO | {"RANK": "0"}, "NODE_RANK=1, but RANK=0"),
        (TWO | {"WORLD_SIZE": "16"}, "NNODES=2, but WORLD_SIZE=16. Here both mean the number of nodes"),
        ({"NPROC": "00"}, "NPROC=00; it must be a whole number from 1"),
        (TWO | {"MASTER_PORT": "http"}, "MASTER_PORT=http; it must be"),
        (TWO | {"TORCHELASTIC_RUN_ID": "x"}, "started by torchrun"),
        ({"RANK": "1"}, "number 1 of 1 nodes"),
        ({"SLURM_NNODES": "4"}, "SLURM gave this job 4 nodes, but this runs on one of them only. Type srun"),
        (
            {"SLURM_NNODES": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "32", "SLURM_STEP_NUM_NODES": "4"},
            "SLURM started this 32 times on 4 nodes",
        ),
        (
            {"SLURM_NNODES": "4", "SLURM_STEP_ID": "0", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "n[1-4]"},
            "SLURM_JOB_NODELIST=n[1-4], but there is no scontrol",
        ),
    ],
)
def test_a_mistake_is_one_message_and_nothing_starts(run: Launch, settings: dict[str, str], message: str) -> None:
    status, output = run.run(**settings)
    assert status == 2
    assert message in output and output.count("launch.sh: ") == 1
    assert not run.notes("trainer.args") and not run.notes("server.args")


def test_one_node_needs_no_variables(run: Launch) -> None:
    assert run.run("--config.seed=1", EXTRA="--config.resolution=256  --config.beta=('a',)") == (0, run.log())
    assert run.option("--config_file").endswith("accelerate/single_gpu.yaml")
    words = run.arguments()[run.arguments().index("awm.train") :]
    assert words[1:] == [
        "--config",
        "config/awm.py:geneval_sd3_no_cfg_1node",
        "--config.resume_from=auto",
        "--config.resolution=256",
        "--config.beta=('a',)",
        "--config.seed=1",
    ]
    assert not run.notes("server.args")


def test_the_variables_of_users_and_platforms(run: Launch) -> None:
    run.run(NPROC="4", HUGGINGFACE_TOKEN="h", WANDB_API_KEY="w", RESUME="0", **TWO)
    assert run.option("--config_file").endswith("accelerate/multi_node.yaml")
    expected = {
        "--num_machines": "2",
        "--machine_rank": "1",
        "--num_processes": "8",
        "--main_process_ip": "a",
        "--main_process_port": "29500",
        "--max_restarts": "0",
    }
    assert {name: run.option(name) for name in expected} == expected
    assert "--rdzv_backend" not in run.arguments() and "--config.resume_from=auto" not in run.arguments()
    assert "--config.trackers=('wandb',)" in run.arguments()
    run.run(WANDB_API_KEY="w", EXTRA="--config.trackers=none")  # the two would add up
    assert [word for word in run.arguments() if "trackers" in word] == ["--config.trackers=none"]
    run.run(NPROC="4", HUGGINGFACE_TOKEN="h", WANDB_API_KEY="w", RESUME="0", **TWO)
    # What says which node this is must not reach the ranks as what says which rank they are.
    assert run.environment()["HF_TOKEN"] == "h" and not {"RANK", "WORLD_SIZE", "NODE_RANK"} & run.environment().keys()

    run.run(
        CUDA_VISIBLE_DEVICES="2,3,5", RANK="03", WORLD_SIZE="4", MASTER_ADDR="b", MASTER_PORT="08", MAX_RESTARTS="2"
    )
    assert run.option("--num_processes") == "12" and run.option("--machine_rank") == "3"
    assert run.option("--main_process_port") == "8"
    assert run.option("--rdzv_backend") == "c10d" and run.option("--rdzv_conf").endswith("is_host=false")


def test_slurm_says_everything(run: Launch) -> None:
    scontrol = run.folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[7-8]" ] && printf "n7\\nn8\\n"\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "n[7-8]"}
    status, output = run.run(PATH=f"{scontrol.parent}:/usr/bin:/bin", **slurm)
    assert status == 0, output
    assert (run.option("--machine_rank"), run.option("--main_process_ip")) == ("1", "n7")
    assert run.run(NNODES="1", **slurm)[0] == 0  # this node alone, whatever SLURM gave
    assert run.option("--num_machines") == "1"
    # A step on two nodes of a job that has more.
    slurm |= {"SLURM_NNODES": "9", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-9]"}
    run.run(PATH=f"{scontrol.parent}:/usr/bin:/bin", SLURM_STEP_NODELIST="n[7-8]", **slurm)
    assert (run.option("--num_machines"), run.option("--main_process_ip")) == ("2", "n7")


def test_a_container_without_nvidia_smi_asks_torch(run: Launch) -> None:
    command = "source train_scripts/nodes.sh; unset CUDA_VISIBLE_DEVICES; hash -r; PATH=/nowhere; gpus_of_this_node"
    python = Path(run.settings["VENV"]) / "bin" / "python"
    python.write_text(python.read_text().replace("/usr/bin/env bash", str(shutil.which("bash"))))
    counted = subprocess.run(["bash", "-c", command], cwd=ROOT, env=clean_environment(**run.settings), stdout=-1)
    assert counted.stdout == b"8\n"


def test_a_dry_run_starts_nothing(run: Launch) -> None:
    for words in (("--dry_run",), ("--dry-run", "--world_size", "8")):
        assert run.run("--config.seed=1", *words, SCORERS="geneval", NPROC="4") == (0, "")
        expected = ["--config.resume_from=auto", "--config.seed=1", *words]
        expected += [] if "--world_size" in words else ["--world_size", "4"]
        assert run.notes("plan.args").splitlines()[-len(expected) :] == expected
    assert not run.notes("server.args") and not run.notes("trainer.args") and not (run.seen / "run").exists()


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ({"NPROC": "2"}, "multi_gpu.yaml"),
        ({"MAX_RESTARTS": "1"}, "multi_gpu.yaml"),  # which needs torchrun
        ({"ENGINE": "fsdp2"}, "fsdp2.yaml"),
        ({"ENGINE": "deepspeed_zero1"}, "deepspeed_zero1.yaml"),
        ({"ENGINE": "deepspeed_zero2", **TWO}, "deepspeed_zero2.yaml"),
    ],
)
def test_the_engine_picks_the_accelerate_configuration(run: Launch, settings: dict[str, str], file: str) -> None:
    run.run(**settings)
    assert run.option("--config_file") == f"train_scripts/accelerate/{file}"


def test_it_ends_with_the_status_of_the_trainer_and_keeps_a_log(run: Launch) -> None:
    for status in ("0", "3", "137"):
        assert run.run(STATUS=status, NODE_RANK="0")[0] == int(status)
    assert run.log().count("training") == 3 and "the trainer ended with status 137" in run.log()
    assert run.run(DESCRIBE_STATUS="2")[0] == 2  # and a wrong configuration with that of its check


@pytest.mark.parametrize(
    ("number", "said", "status"),
    [
        (signal.SIGTERM, 0, 0),
        (signal.SIGTERM, 4, 4),
        (signal.SIGINT, 0, 130),
        (signal.SIGINT, 1, 1),
        (signal.SIGHUP, 0, 0),
        (signal.SIGUSR1, 0, 0),
        (signal.SIGINT, 143, 130),  # the launcher's, of ranks that were not there yet
    ],
)
def test_a_signal_reaches_the_trainer_once_and_its_answer_counts(
    run: Launch, number: signal.Signals, said: int, status: int
) -> None:
    ended, output = run.run_until_signalled(number, STATUS=str(said), SCORERS="geneval")
    assert ended == status and "checkpoint saved" in output
    assert run.notes("trainer.signals") == "TERM\n"
    # The server is stopped after the trainer, not by the same signal.
    assert run.notes("server.signals") == "stopped\n" and output.index("saved") < output.index("trainer ended")


def test_two_signals_in_a_row_are_one_request(run: Launch) -> None:
    status, output = run.run_until_signalled(signal.SIGTERM, signal.SIGTERM, pause_s=0.05)
    assert status == 0 and "checkpoint saved" in output, output


def test_a_second_signal_kills_everything_at_once(run: Launch) -> None:
    signals = (signal.SIGTERM, signal.SIGTERM)
    # The script counts whole seconds: two may be 2.9.
    status, output = run.run_until_signalled(*signals, pause_s=3.2, TRAINER="stubborn", SCORERS="geneval")
    assert status == 143 and "again: killing everything" in output


def test_a_reward_server_is_started_for_the_scorers_of_the_run(run: Launch) -> None:
    status, output = run.run(SCORERS="geneval pickscore", REWARD_GPU="7", REWARD_CONFIG="my.yaml")
    assert status == 0
    assert "--config my.yaml --host 127.0.0.1 --only geneval --only pickscore --port 0" in run.notes("server.args")
    assert "--exit-with-parent" in run.notes("server.args") and run.notes("server.gpus") == "7\n"
    assert "--config.reward_server.urls=('http://127.0.0.1:12345',)" in run.arguments()
    assert run.notes("server.signals") == "stopped\n" and "Reward server ready" in output
    assert "loading the scorers" in run.log("reward_server.log")
    run.run(SCORERS="geneval", REWARD="none")
    assert not any("urls" in word for word in run.arguments())


def test_a_server_that_cannot_start_ends_the_run_with_its_log(run: Launch) -> None:
    status, output = run.run(SCORERS="geneval", SERVER="dies")
    assert status == 1 and "cannot start: no such model" in output and not run.notes("trainer.args")


def test_a_server_that_is_never_ready(run: Launch) -> None:
    status, output = run.run(SCORERS="geneval", SERVER="never", REWARD_WAIT_S="1")
    assert status == 1 and "was not ready within 1 s" in output and not run.notes("trainer.args")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_the_server_loads(run: Launch, number: signal.Signals, expected: int) -> None:
    status, output = run.run_until_signalled(number, at="server.gpus", SCORERS="geneval", SERVER="never")
    assert status == expected and "before training began" in output and not run.notes("trainer.args")


def test_a_server_that_dies_is_started_again_on_its_port(run: Launch) -> None:
    ended, output = run.run_until_signalled(signal.SIGTERM, at="restarted", SERVER="dies_once", SCORERS="geneval")
    assert ended == 0 and "ended with status 9" in output
    assert "--port 12345" in run.notes("server.args").splitlines()[1]


@pytest.fixture
def servers() -> Iterator[Callable[[int], str]]:
    started: list[HTTPServer] = []

    def start(*statuses: int) -> str:
        """A server that answers with each status in turn, and goes on with the last."""
        answers = list(statuses)

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
                self.end_headers()
                self.wfile.write(b'{"reason": "geneval is loading"}')

            def log_message(self, *_: object) -> None:
                pass

        started.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_servers_that_run_elsewhere_are_waited_for(run: Launch, servers: Callable[..., str]) -> None:
    a, b = servers(200), servers(503, 200)
    status, output = run.run(SCORERS="geneval", REWARD_URLS=f"{a},{b}", http_proxy="http://127.0.0.1:9")
    assert status == 0 and "geneval is loading" in output
    assert f"--config.reward_server.urls=('{a}','{b}',)" in run.arguments()
    assert not run.notes("server.args")


def test_servers_elsewhere_that_are_none(run: Launch, servers: Callable[..., str]) -> None:
    status, output = run.run(SCORERS="geneval", REWARD_URLS=servers(404))
    assert status == 1 and "answers 404; is this a reward server?" in output
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        status, output = run.run(SCORERS="geneval", REWARD_URLS=url, REWARD_WAIT_S="1")
    assert status == 1 and f"{url} is not ready: no answer" in output and not run.notes("trainer.args")
    assert "--host 0.0.0.0 and AWM_REWARD_TOKEN" in output


def test_a_port_that_speaks_something_else_than_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            with other.accept()[0] as visitor:
                visitor.recv(1000)
                visitor.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=greet, daemon=True).start()
        command = ["train_scripts/await_servers.py", "0", f"http://127.0.0.1:{other.getsockname()[1]}"]
        asked = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 1 and "no answer (SSH-2.0-x" in asked.stderr and "Traceback" not in asked.stderr
