"""``awm-bench BENCHMARK [options]``: measures on this machine, and writes numbers (JSON) and a page (HTML)."""

from __future__ import annotations

from awm.subcommands import Subcommand, Subcommands

BENCHMARKS = {
    "algorithms": Subcommand(
        "awm.bench.algorithms:main", "which learning rule gets furthest on the tiny world with the same budget"
    ),
    "throughput": Subcommand(
        "awm.bench.throughput.command:main", "images per second, by phase and against what the device could do"
    ),
}
COMMAND = Subcommands("awm-bench", "benchmark", BENCHMARKS, install="pip install -e '.[server]'")
main = COMMAND.main
