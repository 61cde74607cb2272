"""``awm-train``: parse, build, run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from awm.command_line import parse, split_dry_run, split_memory_gb
from awm.freed_memory import keep_freed_memory
from awm.quiet import quiet_libraries
from awm.training.stopping import StopRequest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from awm.training.distributed import Distributed
    from awm.training.liveness import Liveness

PURPOSE = (
    "Fine-tune a Stable Diffusion 3 model by reinforcement learning. One process per GPU, by torchrun or accelerate.\n"
    "After an interruption, the same command with --config.resume_from=auto goes on.\n"
    "--dry_run [--world_size N] only prints what the run on N ranks would do and need, and with --memory_gb M what to\n"
    "set on GPUs of M GiB."
)


def main() -> None:
    """Entry point; errors a user can act on become one message and a non-zero exit status."""
    stop = StopRequest()
    stop.install(at_once=True)
    try:
        only_plan, world_size, arguments = split_dry_run(sys.argv[1:])
        memory_gb, arguments = split_memory_gb(arguments, only_plan=only_plan)
        config = parse(arguments, program="awm-train", purpose=PURPOSE)
    except ValueError as error:
        sys.exit(f"awm-train: {error}")

    # Imported after parsing: --help and typos answer at once, torch and diffusers take seconds.
    quiet_libraries()
    if only_plan:
        from awm.dry_run import dry_run

        try:
            return dry_run(config, world_size, memory_gb)
        except ValueError as error:
            sys.exit(f"awm-train: {error}")
    try:
        from awm.training.distributed import Distributed
        from awm.training.ending import end, leave
        from awm.training.liveness import Liveness
    except ImportError:
        if not stop.exiting:
            raise
        sys.exit(stop.exit_code)

    liveness: Liveness | None = None
    try:
        try:
            stop.distributed = distributed = Distributed(config.mixed_precision)
            if distributed.device.type == "cpu":
                keep_freed_memory()
            liveness = Liveness(distributed, stop)
            status = train(config, distributed, stop, liveness)
            distributed.close()
        except Exception as error:
            end(error, liveness, stop)
    except SystemExit as error:  # a signal, before there was anything to save
        leave(error.code, liveness)
    if status or stop.requested.is_set():  # threads may still wait for a slow server
        leave(status, liveness)
    liveness.close()


def train(config: ConfigDict, distributed: Distributed, stop: StopRequest, liveness: Liveness) -> int:
    """The run; what is returned is the exit status of one that ended in good order."""
    from awm.building import build_trainer, without_effect
    from awm.report.tables import console_table
    from awm.rewards.errors import RewardError
    from awm.training.checkpoint import CheckpointError
    from awm.training.ending import report
    from awm.training.parity import ParityError
    from awm.training.run_lock import run_lock
    from awm.training.stopping import StopRequestedError
    from awm.training.update import NonFiniteLossError

    if not config.run_name:
        config.run_name = distributed.broadcast_object(time.strftime("run_%Y%m%d_%H%M%S"))
    status = 0
    with run_lock(Path(config.logdir) / config.run_name, distributed):
        trainer = build_trainer(config, distributed, stop)
        if distributed.is_main and (idle := without_effect(config)):
            print(f"{', '.join(idle)}: without effect with train.algorithm={config.train.algorithm}", flush=True)
        stop.install()  # from here on a signal waits for the next safe point
        try:
            trainer.train()
        except StopRequestedError as error:
            status = error.exit_code
            if distributed.is_main:
                print(error, file=sys.stderr)
        except (RewardError, NonFiniteLossError) as error:
            status = report(error, liveness, f"; {trainer.outputs.saved_note}")
        except (CheckpointError, ParityError) as error:
            status = report(error, liveness)
        page = trainer.outputs.finish()
        if page is not None:
            print(f"\n{console_table(page.parent)}\nreport: {page}")
    return status


if __name__ == "__main__":
    main()
