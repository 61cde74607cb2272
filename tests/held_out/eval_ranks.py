"""What every rank of an evaluation does in the tests of awm-eval."""

from __future__ import annotations

import os
import signal
from typing import Any

from awm import evaluate
from awm.configuration import config_from_json
from awm.held_out.records import PartWriter
from awm.training.stopping import StopRequest


def evaluate_on_ranks(config_file: str, *arguments: str, kill: tuple[int, int] | None = None) -> int | str:
    """The exit status or message of ``awm-eval``; ``kill`` (rank, n): that rank dies when it has n batches written."""
    if kill is not None and os.environ["RANK"] == str(kill[0]):
        write, batches = PartWriter.write, [0]

        def write_and_die(self: PartWriter, batch: Any) -> None:
            if batches[0] == kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, batch)
            batches[0] += 1

        PartWriter.write = write_and_die  # type: ignore[method-assign]
    options = evaluate.parser().parse_args(arguments)
    return evaluate.evaluate(config_from_json(config_file), options, StopRequest())
