"""Where a number comes from: what every benchmark writes beside its results."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from awm import provenance as shared
from awm.provenance import ROOT as ROOT


def provenance(*packages: str) -> dict[str, Any]:
    """As ``awm.provenance``, of the benchmark that is running."""
    return shared.provenance(f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".strip(), packages)
