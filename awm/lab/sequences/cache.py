"""What has been computed stays in a folder, so that the same command continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from awm.lab.record import plain
from awm.lab.sequences.settings import Settings

MODELS_FORMAT, RUNS_FORMAT = 1, 2  # raise when code changes what a stored file would hold
OF_MODELS = ("world", "data_size", "reward_epochs", "pretrain_steps")


def fingerprint(settings: Settings, *, models_only: bool) -> str:
    """Ten hexadecimal digits of the settings that a stored file depends on."""
    values = asdict(settings)
    chosen = {name: value for name, value in values.items() if not models_only or name in OF_MODELS}
    text = json.dumps([MODELS_FORMAT if models_only else RUNS_FORMAT, torch.__version__, chosen], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class Cache:
    """Files of one folder; a file is whole or absent.

    Attributes:
        folder: made at the first write.
    """

    folder: Path

    def weights(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Tensors by name, read from <name>-<key>.pt or made and written."""
        path = self.folder / f"{name}-{key}.pt"
        if path.exists():
            loaded: dict[str, Any] = torch.load(path, weights_only=True)
            return loaded
        made = make()
        self._write(path, lambda partial: torch.save(made, partial))
        return made

    def record(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Numbers by name, read from <name>-<key>.json or made and written."""
        path = self.folder / f"{name}-{key}.json"
        if not path.exists():
            made = make()
            self._write(path, lambda partial: partial.write_text(json.dumps(plain(made))))
        loaded: dict[str, Any] = json.loads(path.read_text())
        return loaded

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f"{path.suffix}.{os.getpid()}.partial")
        write(partial)
        partial.replace(path)
