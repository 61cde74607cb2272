"""The JSON an experiment leaves: what was asked, what came out, and where and how it was run."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from awm.provenance import provenance

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco")
SIGNIFICANT_DIGITS = 6


def write_result(
    folder: Path,
    name: str,
    *,
    command: Sequence[str],
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    seconds: float,
) -> Path:
    """Write <folder>/<name>.json with command, commit, machine, versions, seconds, settings and results.

    Tensors and arrays become lists, numbers keep six significant digits, and what is not finite becomes null.

    Args:
        folder: made if missing.
        name: of the experiment, "bandits".
        command: the words to type to get it again, ["awm-lab", "bandits", "--seeds", "64"].
        settings: every number the result depends on.
        results: what was found.
        seconds: time taken.

    Returns:
        The file.
    """
    record = provenance(shlex.join(command), PACKAGES)
    record |= {"seconds": round(seconds, 1), "settings": plain(settings), "results": plain(results)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def plain(value: Any) -> Any:
    """``value`` as JSON knows it; see ``write_result``."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Sequence | set) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
