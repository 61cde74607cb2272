"""Prompt files: one prompt a line, plain text or JSON, turned into text and reward metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awm.registry import Registry

PromptFn = Callable[[str], tuple[str, dict[str, Any]]]
"""One line of a file -> (prompt, metadata for the reward); raises ValueError on a malformed line."""

PROMPT_FNS = Registry(
    "prompt_fn",
    {
        "geneval": "awm.data.prompts:geneval",
        "general_ocr": "awm.data.prompts:general_ocr",
        "pickscore": "awm.data.prompts:plain",
    },
)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts of a split, in file order."""

    text: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.text)


def geneval(line: str) -> tuple[str, dict[str, Any]]:
    """GenEval metadata: a JSON object with ``prompt``, ``tag`` and ``include``."""
    record = _json_object(line)
    for key in ("prompt", "tag", "include"):
        if key not in record:
            raise ValueError(f"GenEval metadata needs the key {key!r}; found {sorted(record)}")
    return str(record["prompt"]), record


def general_ocr(line: str) -> tuple[str, dict[str, Any]]:
    """A prompt with the text to be rendered between double quotes, or JSON with ``prompt`` and ``text``."""
    if line.startswith("{"):
        record = _json_object(line)
        prompt, target = str(record.get("prompt", "")), str(record.get("text", ""))
    else:
        quoted = line.split('"')
        prompt, target = line, quoted[1] if len(quoted) >= 3 else ""
    if not prompt or not target.strip():
        raise ValueError('an OCR prompt needs the text to render in double quotes, as in: a sign that says "OPEN"')
    return prompt, {"text": target}


def plain(line: str) -> tuple[str, dict[str, Any]]:
    """A prompt and nothing else, or JSON with ``prompt`` and anything more as metadata."""
    if not line.startswith("{"):
        return line, {}
    record = _json_object(line)
    if not record.get("prompt"):
        raise ValueError(f"a JSON prompt line needs the key 'prompt'; found {sorted(record)}")
    return str(record["prompt"]), record


def load_prompts(folder: str | Path, split: str, prompt_fn: str) -> PromptSet:
    """Read ``<folder>/<split>.jsonl``, ``<split>_metadata.jsonl`` or ``<split>.txt``; blank lines are skipped.

    Raises:
        ValueError: no such file, or a malformed line, named with its number.
    """
    folder = Path(folder)
    names = [f"{split}.jsonl", f"{split}_metadata.jsonl", f"{split}.txt"]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"no {split} prompts in {folder}: expected one of {', '.join(names)}. "
            f"Set config.dataset to a folder that has them; dataset/README.md says how each one is built."
        )
    return read_prompts(path, prompt_fn)


def read_prompts(path: Path, prompt_fn: str) -> PromptSet:
    """Read one prompt file; see :func:`load_prompts`."""
    convert: PromptFn = PROMPT_FNS.load(prompt_fn)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also ends a prompt at U+2028 and others
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    text, metadata = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt, record = convert(line.strip())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}. The line is: {line[:120]!r}") from error
        text.append(prompt)
        metadata.append(record)
    if not text:
        raise ValueError(f"{path} holds no prompts.")
    return PromptSet(tuple(text), tuple(metadata))


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    return record
