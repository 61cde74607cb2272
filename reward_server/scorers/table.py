"""Scorers by name. The values are dotted paths, so that listing the names imports no model code."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_server.scorers.base import Scorer

SCORERS: dict[str, str] = {
    "aesthetic": "reward_server.scorers.aesthetic:Aesthetic",
    "clipscore": "reward_server.scorers.clipscore:ClipScore",
    "geneval": "reward_server.scorers.geneval.scorer:GenevalScorer",
    "hpsv2": "reward_server.scorers.hps:HPSv2",
    "jpeg_compressibility": "reward_server.scorers.jpeg:Compressibility",
    "jpeg_incompressibility": "reward_server.scorers.jpeg:Incompressibility",
    "ocr": "reward_server.scorers.ocr.scorer:OcrScorer",
    "pickscore": "reward_server.scorers.pickscore:PickScore",
    "vlm": "reward_server.scorers.vlm.scorer:VlmScorer",
}
"""Name -> "package.module:class"; the class takes the scorer's own options as keyword arguments."""


def build_scorer(target: str, options: Mapping[str, Any] | None = None) -> Scorer:
    """Import and construct a scorer.

    Args:
        target: a name of the table, ``path/to/file.py:Class`` or ``package.module:Class``.
        options: keyword arguments of the class.

    Raises:
        ValueError: no such scorer, or an option it does not take.
    """
    check_target(target)
    kind = _resolve(SCORERS.get(target, target))
    try:
        scorer: Scorer = kind(**(options or {}))
    except TypeError as error:
        raise ValueError(f"scorer {target!r} cannot be made with options {dict(options or {})}: {error}") from error
    return scorer


def check_target(target: str) -> None:
    """Raise ValueError unless ``target`` may name a scorer; nothing is imported."""
    if ":" not in target:
        check_name(SCORERS, target, "scorer")
        return
    file, _, attribute = target.rpartition(":")
    if not attribute.isidentifier():
        raise ValueError(f"{target!r} names no class; expected path/to/file.py:Class or package.module:Class")
    if file.endswith(".py") and not Path(file).is_file():
        raise ValueError(f"{target!r}: there is no file {file}")


def load(table: Mapping[str, str], name: str, kind: str) -> Any:
    """The object behind ``name`` in a table of dotted paths.

    Raises:
        ValueError: listing the known names.
    """
    check_name(table, name, kind)
    return _resolve(table[name])


def check_name(table: Mapping[str, str], name: str, kind: str) -> None:
    """Raise ValueError, listing the known names, unless ``name`` is one of them."""
    if name not in table:
        close = difflib.get_close_matches(name, list(table), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}.{hint}")


def _resolve(target: str) -> Any:
    where, _, attribute = target.rpartition(":")
    module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"{where} has no {attribute!r}") from None


def _load_file(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))  # its neighbours, as if it had been started as a script
    name = f"scorer_file_{path.stem}"  # never the name of a package that the file itself imports
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
