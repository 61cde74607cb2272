"""What launch.sh must know of a run before it starts: one line each, from the trainer's own arguments.

    python train_scripts/describe_run.py --config config/awm.py:geneval_sd3_no_cfg_1node [--config.KEY=VALUE ...]

Prints the run folder, then the scorers that ``reward_server.urls`` has to have, separated by spaces. A mistake in the
arguments is one message and exit status 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ml_collections import ConfigDict

from awm.command_line import parse
from awm.rewards.collect import split_name
from awm.rewards.table import IN_PROCESS


def main() -> None:
    """Entry point."""
    try:
        config = parse(sys.argv[1:], program="launch.sh", purpose=__doc__ or "")
        print(run_folder(config))
        print(*scorers(config))
    except ValueError as error:
        print(f"launch.sh: {error}", file=sys.stderr)
        sys.exit(2)


def run_folder(config: ConfigDict) -> Path:
    """``<logdir>/<run_name>``.

    Raises:
        ValueError: no run_name; nodes that each took a name with the time in it would not agree.
    """
    if not config.run_name:
        raise ValueError("the configuration has no run_name; give one with EXTRA=--config.run_name=NAME.")
    return Path(str(config.logdir)) / str(config.run_name)


def scorers(config: ConfigDict) -> list[str]:
    """Scorers of ``reward_fn`` that are neither computed in process nor asked of servers of their own."""
    names = dict.fromkeys(split_name(name)[0] for name in config.reward_fn)
    return [name for name in names if name not in IN_PROCESS and name not in config.reward_server.urls_of]


if __name__ == "__main__":
    main()
