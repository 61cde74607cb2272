"""How the server runs: what it scores, in which processes, and what it accepts. From YAML or the command line."""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from reward_server.scorers.table import SCORERS, check_target
from reward_server.wire import Limits

TOKEN_VARIABLE = "AWM_REWARD_TOKEN"
"""Environment variable with the bearer token, for the server and for its clients."""
LONGEST_S = 7 * 24 * 3600.0  # seconds; more is a slip of the pen
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_DEVICE = re.compile(r"cpu|cuda:\d+")


class SettingsError(ValueError):
    """Settings that cannot work; the message names the key, what it holds and what it may hold."""


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """One reward: what computes it, and in which processes.

    Attributes:
        scorer: a name of the table, or ``path/to/file.py:Class``, or ``package.module:Class``.
        options: keyword arguments of the scorer.
        python: interpreter of its workers; None takes the server's own.
        devices: "cpu" or "cuda:N"; each gets ``workers_per_device`` processes.
        workers_per_device: processes a device.
        batch_images: largest batch given to a worker.
        batch_wait_s: how long an incomplete batch waits for more images.
        timeout_s: longest time for one batch; a worker that takes longer is ended and started anew.
        start_timeout_s: longest time to load and warm up, downloads included.
        env: further environment variables of its workers.
    """

    scorer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    devices: tuple[str, ...] = ("cpu",)
    workers_per_device: int = 1
    batch_images: int = 64
    batch_wait_s: float = 0.003
    timeout_s: float = 60.0
    start_timeout_s: float = 900.0
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole server.

    Attributes:
        scorers: reward name -> its settings.
        limits: what one request may hold.
        max_queued: images times rewards that may wait; more are refused, not stored.
        deadline_s: longest time a request may take, whatever its X-Deadline-S says.
    """

    scorers: Mapping[str, ScorerSettings]
    limits: Limits = field(default_factory=Limits)
    max_queued: int = 4096
    deadline_s: float = 100.0

    def __post_init__(self) -> None:
        """Refuse what could never work: names, files and interpreters that are not there, a queue below one request."""
        if not self.scorers:
            raise SettingsError(f"no scorer is given; choose among {', '.join(sorted(SCORERS))}")
        for name, scorer in self.scorers.items():
            _check_scorer(f"scorers.{name}", name, scorer)
        _positive("deadline_s", self.deadline_s)
        for limit in fields(Limits):
            _positive(f"limits.{limit.name}", getattr(self.limits, limit.name))
        largest = self.limits.max_items * len(self.scorers)
        if self.max_queued < largest:
            raise SettingsError(
                f"max_queued={self.max_queued} cannot hold one request of {self.limits.max_items} images and "
                f"{len(self.scorers)} rewards; raise it to {largest} or lower limits.max_items"
            )


def token_from_environment() -> str | None:
    """The bearer token, or None; the white space that files of secrets end with is no part of it.

    Raises:
        SettingsError: no header can carry it. The message does not quote it.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise SettingsError(f"the token in {TOKEN_VARIABLE} holds characters that no HTTP header can carry; use ASCII")
    return token or None


def load_settings(path: Path) -> dict[str, Any]:
    """The keys of a server.yaml, types checked: those of ``Settings``, and ``host`` and ``port``.

    Raises:
        SettingsError: naming the file and the key.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    try:
        return _parse(content, path.parent)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _parse(content: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("scorers"), dict):
        raise SettingsError("expected a key `scorers` with one entry per reward, such as `geneval: {}`")
    known = {"host": str, "port": int, "max_queued": int, "deadline_s": float, "limits": dict, "scorers": dict}
    settings = {str(key): _typed(str(key), value, known) for key, value in content.items()}
    if not 0 <= settings.get("port", 0) <= 65535:
        raise SettingsError(f"port={settings['port']}; expected 0 (any free one) to 65535")
    if "limits" in settings:
        settings["limits"] = _dataclass(Limits, settings["limits"], "limits")
    settings["scorers"] = {
        str(name): _scorer(str(name), {} if entry is None else entry, folder)
        for name, entry in settings["scorers"].items()
    }
    return settings


def _scorer(name: str, entry: Any, folder: Path) -> ScorerSettings:
    if not isinstance(entry, dict):
        raise SettingsError(f"scorers.{name} is {entry!r}; expected keys such as `scorer`, `options` and `devices`")
    entry = {"scorer": name} | entry
    # Paths are meant relative to the file they stand in, wherever the server is started.
    file, colon, attribute = str(entry["scorer"]).partition(":")
    if file.endswith(".py"):
        entry["scorer"] = f"{os.path.abspath(folder / Path(file).expanduser())}{colon}{attribute}"
    if entry.get("python"):
        # Not resolved: a virtual environment's python is a link, and works by being called by that name.
        entry["python"] = os.path.abspath(folder / Path(str(entry["python"])).expanduser())
    settings: ScorerSettings = _dataclass(ScorerSettings, entry, f"scorers.{name}")
    return settings


def _dataclass(kind: type[Any], entry: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    values = {str(key): _typed(f"{where}.{key}", value, hints, str(key)) for key, value in entry.items()}
    missing = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING and f.name not in values]
    if missing:
        raise SettingsError(f"{where} lacks {', '.join(missing)}")
    return kind(**values)


def _typed(where: str, value: Any, known: Mapping[str, Any], key: str | None = None) -> Any:
    """``value`` as the type ``known`` gives for the key, or an error that says what it should be."""
    key = key or where
    if key not in known:
        close = difflib.get_close_matches(key, list(known), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise SettingsError(f"unknown key {where}; known: {', '.join(known)}.{hint}")
    kind = known[key]
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        if value is None:
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
    origin = get_origin(kind) or kind
    if origin is tuple and isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    if origin is float and type(value) is int:
        return float(value)
    if (issubclass(origin, Mapping) and isinstance(value, dict)) or type(value) is origin:
        return value
    names = {tuple: "a list of strings", float: "a number", int: "an integer", str: "a string"}
    raise SettingsError(f"{where} is {value!r}; expected {names.get(origin, 'a dictionary')}")


def _check_scorer(where: str, name: str, scorer: ScorerSettings) -> None:
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: a reward's name is letters, digits, _ and -, since a dot asks for a metric")
    try:
        check_target(scorer.scorer)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None
    if scorer.python and not os.access(scorer.python, os.X_OK):
        raise SettingsError(f"{where}.python={scorer.python} is no executable; give an environment's bin/python")
    if not scorer.devices or not all(_DEVICE.fullmatch(device) for device in scorer.devices):
        raise SettingsError(f"{where}.devices={list(scorer.devices)}; expected a list of cpu or cuda:N")
    for key in ("workers_per_device", "batch_images", "timeout_s", "start_timeout_s"):
        _positive(f"{where}.{key}", getattr(scorer, key))
    if not 0 <= scorer.batch_wait_s <= LONGEST_S:
        raise SettingsError(f"{where}.batch_wait_s={scorer.batch_wait_s}; expected seconds, 0 to {LONGEST_S:g}")
    for name, value in scorer.env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise SettingsError(f'{where}.env: {name}={value!r} is not text; put it into quotes: {name}: "{value}"')
    try:
        sendable = json.loads(json.dumps(dict(scorer.options), allow_nan=False)) == dict(scorer.options)
    except (TypeError, ValueError):
        sendable = False
    if not sendable:
        raise SettingsError(
            f"{where}.options={dict(scorer.options)} holds something else than text, numbers, lists and dictionaries; "
            "YAML reads a date or a bare number as such, so put it into quotes if it is a name"
        )


def _positive(where: str, value: float) -> None:
    if not 0 < value <= LONGEST_S and not isinstance(value, int):
        raise SettingsError(f"{where}={value}; expected seconds, above 0 and at most {LONGEST_S:g}")
    if not value > 0:
        raise SettingsError(f"{where}={value}; expected a number above 0")


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice, of which YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
            problem = f"the key {twice[0]!r} stands there twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)
