"""Where a number comes from: command, commit, machine and versions, written beside every result."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def provenance(command: str, packages: Sequence[str]) -> dict[str, Any]:
    """Command, commit, machine, and the versions of those of some packages that are installed.

    Args:
        command: what to type to get the result again.
        packages: distribution names.

    Returns:
        command, commit (None outside a git checkout), clean (whether tracked files equal the commit, but for results
        of other runs), machine and versions; all of it goes into JSON.
    """
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return {
        "command": command,
        "commit": _git("rev-parse", "HEAD"),
        "clean": None if changes is None else not changes,
        "machine": f"{platform.machine()}, {_processor()}, {_num_cores()} cores",
        "versions": {"python": platform.python_version()} | _versions(packages),
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git(*arguments: str) -> str | None:
    # Installed from a wheel this is no checkout, though a folder above may be somebody else's.
    if not (ROOT / ".git").exists():
        return None
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
