"""``awm-train``: parse, build, run."""

from __future__ import annotations

import sys
import time

from awm.command_line import parse
from awm.quiet import quiet_libraries
from awm.rewards.errors import RewardError

PURPOSE = (
    "Fine-tune a Stable Diffusion 3 model by reinforcement learning. One process per GPU, by torchrun or accelerate.\n"
    "After an interruption, the same command with --config.resume_from=auto goes on."
)


def main() -> None:
    """Entry point; errors a user can act on become one message and a non-zero exit status."""
    try:
        config = parse(sys.argv[1:], program="awm-train", purpose=PURPOSE)
    except ValueError as error:
        sys.exit(f"awm-train: {error}")

    # Imported after parsing: --help and typos answer at once, torch and diffusers take seconds.
    quiet_libraries()
    from awm.building import build_trainer
    from awm.report.tables import console_table
    from awm.training.checkpoint import CheckpointError
    from awm.training.distributed import Distributed
    from awm.training.stopping import StopRequest, StopRequestedError
    from awm.training.update import NonFiniteLossError

    distributed = Distributed(config.mixed_precision)
    stop = StopRequest(distributed)
    exit_code: int | str = 0
    try:
        if not config.run_name:
            config.run_name = distributed.broadcast_object(time.strftime("run_%Y%m%d_%H%M%S"))
        trainer = build_trainer(config, distributed, stop)
        stop.install()
        try:
            trainer.train()
        except StopRequestedError as error:
            exit_code = error.exit_code
            if distributed.is_main:
                print(error, file=sys.stderr)
        except RewardError as error:
            exit_code = f"awm-train: RewardError: {error}; {trainer.outputs.saved_note}"
        finally:
            stop.restore()
            report = trainer.outputs.finish()
        if report is not None:
            print(f"\n{console_table(report.parent)}\nreport: {report}")
    except (ValueError, RewardError, CheckpointError, NonFiniteLossError, OSError) as error:
        exit_code = f"awm-train: {type(error).__name__}: {error}"
    distributed.close()
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
