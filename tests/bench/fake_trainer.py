"""Takes the words of awm-train's command line and leaves a run folder, in a moment.

A learning rate of 2e-3 diverges in the second epoch, one of 3e-3 breaks before the first; with seed 9 it waits to be
told to stop, and goes on in the next call.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from made_up import write_run


def main() -> None:
    words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    run = Path(words["config.logdir"]) / words["config.run_name"]
    run.mkdir(parents=True, exist_ok=True)
    assert words["config.resume_from"] == "auto"
    assert words["config.reward_server.urls"] == "('http://fake:1',)"
    print("starting")
    rate = words.get("config.train.learning_rate")
    if rate == "3e-3":
        sys.exit("awm-train: no more memory")
    if rate == "2e-3":
        write_run(run, epochs=1, every=int(words["config.eval_freq"]))
        print("awm-train: NonFiniteLossError: non-finite loss on rank 0 in epoch 2", file=sys.stderr)
        print("report: what is printed after it")
        sys.exit(1)
    if words["config.seed"] == "9" and not (run / "checkpoint").exists():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        (run / "checkpoint").touch()
        while True:
            time.sleep(0.05)
    write_run(run, epochs=int(words["config.num_epochs"]), every=int(words["config.eval_freq"]))


if __name__ == "__main__":
    main()
