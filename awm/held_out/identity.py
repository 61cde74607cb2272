"""What an evaluation's numbers depend on: written beside them, so that only the same evaluation continues them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awm.held_out.items import Item
from awm.held_out.records import PARTS, SCORES

FILE = "evaluation.json"
LABELS = ("label",)  # for people, no part of the identity


def prompts_digest(items: Sequence[Item]) -> str:
    """SHA-256 over all prompts, their metadata and their numbers."""
    lines = [json.dumps([item.prompt, item.copy, item.metadata], sort_keys=True) for item in items]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make ``out`` the folder of this evaluation, or see that it already is.

    Raises:
        ValueError: it holds another one.
    """
    file = out / FILE
    if not file.exists():
        for name in (SCORES, PARTS):
            if (out / name).exists():
                raise ValueError(f"{out} holds {name} of something else; choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(identity, indent=2) + "\n")
        os.replace(temporary, file)
        return
    try:
        there: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); start over with --restart.") from error
    now = json.loads(json.dumps(identity))
    changed = [
        f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key) and key not in LABELS
    ]
    if changed:
        raise ValueError(
            f"{out} holds another evaluation ({'; '.join(changed)}). Choose another --out, set these back to continue "
            f"it, or start over with --restart."
        )
