"""What ``--weights-from PATH`` means: a run, a checkpoint, a LoRA or a fully fine-tuned transformer."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from awm.registry import nearest

if TYPE_CHECKING:
    from awm.models.weights import Weights

WhichWeights = Literal["average", "current"]
FOLDERS: dict[WhichWeights, str] = {"average": "lora_average", "current": "lora"}  # in a checkpoint

EXPLANATION = """\
  RUN                                   its newest whole checkpoint
  RUN/checkpoints/epoch_000100          that checkpoint: the averaged weights, or --weights current
  a folder or .safetensors file         any LoRA for SD3 in diffusers' format, of any rank
  a folder with transformer/ in it      a fully fine-tuned transformer, as save_pretrained wrote it
  nothing                               the base model"""


@dataclass(frozen=True, slots=True)
class Located:
    """Weights that were found.

    Attributes:
        weights: where they are.
        label: what to call them, such as "my_run epoch_000100 average".
        digest: SHA-256 over the files; the same for copies.
    """

    weights: Weights
    label: str
    digest: str


def locate(path: Path, which: WhichWeights | None = None) -> Located:
    """The weights at ``path``.

    Args:
        path: see ``EXPLANATION``.
        which: weight set of a checkpoint; None takes the average.

    Raises:
        ValueError: nothing there, or something damaged or foreign.
    """
    if not path.exists():
        raise ValueError(_missing(path))
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if found := _checkpoints(checkpoints):
        return _newest(checkpoints, found, which or "average")
    if _is_checkpoint(path):
        return _in_checkpoint(path, which or "average")
    if checkpoints != path:
        raise ValueError(f"{path} is a run without a checkpoint yet; wait for its first one, see save_freq.")
    return _plain(path, which)


def run_config(path: Path) -> Path | None:
    """The ``config.json`` of the run that ``path`` belongs to: in it, beside it or above; None if there is none."""
    for folder in (path, path.parent, path.parent.parent):
        file = folder / "config.json"
        if file.is_file():
            try:
                values: Any = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                return None
            if isinstance(values, Mapping) and "run_name" in values:
                return file
    return None


def _newest(folder: Path, found: Iterable[Path], which: WhichWeights) -> Located:
    problem = ""
    for path in sorted(found, reverse=True):
        try:
            return _in_checkpoint(path, which)
        except ValueError as error:
            problem = str(error)
            print(f"{problem} Trying the one before it.", file=sys.stderr)
    raise ValueError(f"no checkpoint in {folder} is whole. The oldest: {problem}")


def _in_checkpoint(path: Path, which: WhichWeights) -> Located:
    """Only the files that are needed are read and compared with the manifest: the optimizer's are far larger."""
    from awm.models.weights import find_weights
    from awm.training.checkpoint import MANIFEST

    try:
        manifest: dict[str, str] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a complete checkpoint: its {MANIFEST} is missing or broken.") from error
    folder = path / FOLDERS[which]
    digests = {}
    for name, expected in manifest.items():
        if name.startswith(f"{folder.name}/"):
            digests[name] = _digest(path / name) if (path / name).is_file() else ""
            if digests[name] != expected:
                raise ValueError(f"the checkpoint {path} is damaged: {name} is not the file that was saved.")
    weights = find_weights(folder) if digests else None
    if weights is None:
        raise ValueError(f"the checkpoint {path} has no {which} weights: {folder.name} is missing or empty.")
    run = path.resolve().parent.parent.name
    used = [digests[file.relative_to(path).as_posix()] for file in weights.files]
    return Located(weights, f"{run} {path.resolve().name} {which}", _total(used))


def _plain(path: Path, which: WhichWeights | None) -> Located:
    from awm.models.weights import find_weights

    if which is not None:
        raise ValueError(
            f"--weights {which} chooses between the weights of a checkpoint, but {path} is none; leave it out."
        )
    weights = find_weights(path)
    if weights is None:
        raise ValueError(f"there are no weights in {path}. --weights-from takes\n{EXPLANATION}")
    return Located(weights, str(path), _total(_digest(file) for file in weights.files))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("epoch_*") if _is_checkpoint(path)) if folder.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    is_named_so = re.fullmatch(r"epoch_\d{6,}", path.resolve().name) is not None
    return path.is_dir() and ((path / "manifest.json").is_file() or is_named_so)


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no {path}: not even {path.parent} exists. Weights are read from local folders only."
    close = nearest(path.name, [other.name for other in path.parent.iterdir()])
    return f"there is no {path}.{close} Weights are read from local folders only; fetch others with 'hf download'."


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _total(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
