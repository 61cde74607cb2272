"""The reward server that all runs of a benchmark share."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

START_S = 120.0
STOP_S = 20.0
POLL_S = 0.2


class RewardServer:
    """A server process on this machine; a context manager that starts it and leaves none behind.

    It ends by itself if this process is killed. Trainers wait for a while when it is gone, and meet it again at its
    old address once ``ensure`` has started another.

    Args:
        scorers: what it is to score.
        folder: for its log and its address.
    """

    def __init__(self, scorers: tuple[str, ...], folder: Path) -> None:
        self._scorers, self._folder = scorers, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> RewardServer:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start(port="0")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def ensure(self) -> None:
        """Start it again if it has died.

        Raises:
            ValueError: it does not start any more.
        """
        if self._process is not None and self._process.poll() is not None:
            self._start(port=self.url.rpartition(":")[2])

    def _start(self, port: str) -> None:
        address, log = self._folder / "reward_server.url", self._folder / "reward_server.log"
        address.unlink(missing_ok=True)
        options = [word for name in self._scorers for word in ("--scorer", name)]
        options += ["--detector", "shapes", "--port", port, "--url-file", str(address), "--exit-with-parent"]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "reward_server.cli", *options],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is ours: the trainers still need it to save
            )
        deadline = time.monotonic() + START_S
        while not address.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"the reward server did not start within {START_S:g} s; {log} says why.")
            time.sleep(POLL_S)
        self.url = address.read_text().strip()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
