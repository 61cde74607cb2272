"""Environments whose python and reward server are short scripts, so that launch.sh can be watched alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.train_scripts.nodes_on_loopback import finish, launch

# Answers for describe_run.py and plays launch_ranks.py: notes arguments and environment, then does as TRAINER says.
PYTHON = """\
#!/usr/bin/env bash
case $1 in
  *describe_run.py) printf '%s\\n%s\\n' "$SEEN/run" "$SCORERS"; exit "${DESCRIBE_STATUS:-0}" ;;
  *launch_ranks.py) ;;
  -c) [[ $2 == *device_count* ]] && echo 8; exit ;;
  -m) printf '%s\\n' "$@" >"$SEEN/plan.args"; exit ;;
  *) exec REAL "$@" ;;
esac
printf '%s\\n' "$@" >"$SEEN/trainer.args"
env >"$SEEN/trainer.env"
trap 'echo TERM >>"$SEEN/trainer.signals"; sleep 0.3; echo "checkpoint saved"; exit "$STATUS"' TERM
echo "training"
if [[ $TRAINER == stubborn ]]; then trap '' TERM; setsid sleep 100 & fi
if [[ $TRAINER != ends ]]; then touch "$SEEN/training"; while true; do sleep 0.05; done; fi
exit "$STATUS"
"""

SERVER = """\
#!/usr/bin/env bash
printf '%s ' "$@" >>"$SEEN/server.args"; echo >>"$SEEN/server.args"
echo "${CUDA_VISIBLE_DEVICES-unset}" >"$SEEN/server.gpus"
while (( $# )); do
  case $1 in --url-file) url_file=$2 ;; --port) port=$2 ;; esac
  shift
done
echo "loading the scorers"
if [[ $SERVER == dies ]]; then echo "cannot start: no such model" >&2; exit 1; fi
(( port )) || port=12345
[[ $SERVER == never ]] || echo "http://127.0.0.1:$port" >"$url_file"
trap 'echo stopped >>"$SEEN/server.signals"; exit 0' TERM
if [[ $SERVER == dies_once && ! -e $SEEN/died ]]; then touch "$SEEN/died"; sleep 0.5; exit 9; fi
if [[ -e $SEEN/died ]]; then touch "$SEEN/restarted"; fi
while true; do sleep 0.05; done
"""


@dataclass
class Launch:
    """launch.sh with fakes: what to run it with, and what it did.

    Attributes:
        seen: what the fakes noted.
        settings: environment variables.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen = self.folder / "seen"
        self.seen.mkdir()
        self.settings = {
            "CONFIG": "config/awm.py:geneval_sd3_no_cfg_1node",
            "SEEN": str(self.seen),
            "SCORERS": "",
            "TRAINER": "ends",
            "STATUS": "0",
            "SERVER": "serves",
            "VENV": str(self._environment("venv", "python", PYTHON.replace("REAL", sys.executable))),
            "REWARD_VENV": str(self._environment("reward", "awm-reward-server", SERVER)),
        } | self.settings

    def _environment(self, name: str, command: str, text: str) -> Path:
        folder = self.folder / name
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / command).write_text(text)
        (folder / "bin" / command).chmod(0o755)
        return folder

    def run(self, *arguments: str, script: str = "launch.sh", **settings: str) -> tuple[int, str]:
        """Exit status and output of a run that ends by itself."""
        ended = finish(launch(*arguments, script=script, **(self.settings | settings)), 30)
        assert not self.left_over()
        return ended

    def run_until_signalled(
        self,
        *numbers: signal.Signals,
        at: str = "training",
        pause_s: float = 2.2,
        script: str = "launch.sh",
        also: str = "",
        **settings: str,
    ) -> tuple[int, str]:
        """Exit status and output of a run that gets ``numbers``, ``pause_s`` apart, once the file ``at`` is there.

        So does the process whose number a fake wrote into the file ``also``.
        """
        process = launch(script=script, **(self.settings | {"TRAINER": "trains"} | settings))
        give_up = time.monotonic() + 30
        while not (self.seen / at).exists():
            assert process.poll() is None and time.monotonic() < give_up, finish(process)
            time.sleep(0.02)
        for number in numbers:
            process.send_signal(number)
            if also:
                os.kill(int(self.notes(also)), number)
            time.sleep(pause_s if len(numbers) > 1 else 0)
        ended = finish(process, 30)
        assert not self.left_over()
        return ended

    def arguments(self) -> list[str]:
        """What the trainer's launcher was called with."""
        return (self.seen / "trainer.args").read_text().splitlines()

    def option(self, name: str) -> str:
        """The value of one of its options."""
        arguments = self.arguments()
        return arguments[arguments.index(name) + 1]

    def environment(self) -> dict[str, str]:
        """The trainer's environment."""
        lines = (self.seen / "trainer.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def notes(self, name: str) -> str:
        """What a fake wrote into the file ``name``, nothing if there is none."""
        path = self.seen / name
        return path.read_text() if path.exists() else ""

    def log(self, name: str = "train.log", node: int = 0) -> str:
        """A log of a node."""
        return (self.seen / "run" / "nodes" / f"node_{node}" / name).read_text()

    def left_over(self) -> list[str]:
        """Command lines of processes that were started for this run and are still there."""
        mark, found = f"SEEN={self.seen}".encode(), []
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and int(process.name) != os.getpid():
                try:
                    if mark in (process / "environ").read_bytes().split(b"\0"):
                        found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
                except OSError:
                    continue
        return found
