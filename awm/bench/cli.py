"""``awm-bench BENCHMARK [options]``: measures on this machine, and writes numbers (JSON) and a page (HTML)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from awm.registry import Registry

PROGRAM = "awm-bench"
INSTALL = "pip install -e '.[server]'"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One line of the list: where a benchmark lives and the question it answers."""

    path: str
    question: str


BENCHMARKS = {
    "algorithms": Benchmark(
        "awm.bench.algorithms:main", "which learning rule gets furthest on the tiny world with the same budget"
    ),
}
REGISTRY = Registry("benchmark", {name: benchmark.path for name, benchmark in BENCHMARKS.items()})


def usage() -> str:
    """What ``--help`` prints: the benchmarks, one line each."""
    rows = "\n".join(f"  {name:<12}{benchmark.question}" for name, benchmark in BENCHMARKS.items())
    return (
        f"usage: {PROGRAM} BENCHMARK [options]\n\n"
        f"benchmarks:\n{rows}\n\n"
        f"{PROGRAM} BENCHMARK --help lists the options of one."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that ``argv`` (without the program's name) asks for.

    Returns:
        The exit status: the benchmark's own, 0 for help, 1 for a mistake of the user, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        run = REGISTRY.load(name)
        return int(run(rest, f"{PROGRAM} {name}"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "awm":
            raise
        print(f"error: {name} needs the package {error.name!r}, which is not installed; {INSTALL}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1
