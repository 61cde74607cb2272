"""What a comparison was asked for, kept in its folder so that it can be continued, also on another machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reward_server.process import write_atomically

NAME = "settings.json"
FREE = ("seconds", "seeds", "second_seeds")
"""What may change while a folder is used: how results are read, and which seeds there are."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One comparison.

    Attributes:
        images: each run's budget, training images.
        seconds: of training at which scores are compared, too; None: those of the shortest run.
        evaluations: on the held-out prompts, evenly spread over a run, beside the one before it.
        prompts: held-out prompts, evenly spaced over the test file; two images of each.
        tuning_images: budget of the runs that choose an arm's setting; None: half of images, in whole epochs.
        tuning_seed: of the runs that choose an arm's setting.
        seeds: of the runs that are reported.
        second_seeds: of as many more, which show whether the ranking holds; reported, too.
        precision: mixed_precision of every run, that of the machine the folder was begun on.
        overrides: words of awm-train's command line for every arm.
    """

    images: int = 2560
    seconds: float | None = None
    evaluations: int = 5
    prompts: int = 120
    tuning_images: int | None = None
    tuning_seed: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    second_seeds: tuple[int, ...] = (3, 4, 5)
    precision: str = "no"
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("images", "evaluations", "prompts", "tuning_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} is not valid; it must be at least 1.")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"--seconds {self.seconds:g} is not valid; it must be more than 0.")
        if not self.seeds:
            raise ValueError("--seeds is empty; give at least one, better three.")
        reported = self.reported
        twice = sorted({seed for seed in reported if reported.count(seed) > 1})
        if twice:
            raise ValueError(f"seed {twice[0]} is there twice in --seeds and --second-seeds; give each once.")
        if self.tuning_seed in reported:
            raise ValueError(
                f"--tuning-seed {self.tuning_seed} is also a reported seed: a setting must not be chosen on a run that "
                "is reported. Give another."
            )

    @property
    def reported(self) -> tuple[int, ...]:
        """The seeds of both sets."""
        return (*self.seeds, *self.second_seeds)


def open_settings(folder: Path, given: Mapping[str, Any], precision: Callable[[], str]) -> Settings:
    """The settings of ``folder``; nothing is written, as they may still turn out to be impossible.

    Args:
        folder: of the comparison.
        given: what the user asked for by name; the rest is as it was, or the default.
        precision: gives mixed_precision, for a new folder.

    Raises:
        ValueError: the folder is of a comparison with other settings.
    """
    path = folder / NAME
    known = _read(path) if path.exists() else {"precision": precision()}
    for name, value in given.items():
        if name in known and name not in FREE and known[name] != value:
            raise ValueError(
                f"{folder} holds a comparison with --{name.replace('_', '-')} {_shown(known[name])}, not "
                f"{_shown(value)}: their runs cannot be compared. Leave it out, or give another --out."
            )
    return Settings(**(known | dict(given)))


def keep_settings(folder: Path, settings: Settings) -> None:
    """Write them into ``folder``, for the next call."""
    write_atomically(folder / NAME, json.dumps(asdict(settings), indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        names = {field.name for field in fields(Settings)}
        return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in names}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); give another --out, or put it back from git.") from error


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else f"{value}"
