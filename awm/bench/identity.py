"""What a run is made with: records and run folders of another configuration are never mixed in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from awm.bench.arms import BASE, EVERY, RECIPES
from awm.bench.jobs import Job, trainer_arguments
from awm.bench.settings import Settings
from awm.command_line import parse
from awm.configuration import config_to_dict, default_config, flatten

# Of a single run, or of the place it is made at; epochs and evaluations follow from the budget.
OWN = ("run_name", "logdir", "seed", "resume_from", "num_epochs", "eval_freq", "reward_server.urls")


def digest(job: Job, settings: Settings) -> str:
    """A number for the resolved configuration of a job and its budget, equal for all seeds.

    Keys at their defaults do not count: those that a later version adds leave results valid. What code makes of a
    configuration is not seen either; each record has its commit.

    Raises:
        ValueError: the configuration is not valid; the message names arm and setting.
    """
    final = job.stage == "final"
    budget = {
        "images": settings.images if final else settings.tuning_images or f"half of {settings.images}",
        "evaluations": settings.evaluations if final else 0,
    }
    default = flatten(config_to_dict(default_config()))
    values = _configuration(job.words, settings, job.label)
    changed = {key: value for key, value in values.items() if key not in default or value != default[key]}
    text = json.dumps([changed, budget], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(job: Job, settings: Settings) -> dict[str, Any]:
    """Keys of its configuration whose values are not the quickstart's as every arm has it, for people."""
    base = _configuration((f"--config={RECIPES}:{BASE}", *EVERY), settings, BASE)
    return {key: v for key, v in _configuration(job.words, settings, job.label).items() if v != base[key]}


def resolved(words: tuple[str, ...], settings: Settings, label: str) -> Any:
    """The configuration that the trainer will find, but for ``OWN``.

    Raises:
        ValueError: it is not valid.
    """
    job = Job("", "", 0, "final", words)
    arguments = trainer_arguments(job, settings, logdir="logs", epochs=settings.evaluations)
    try:
        return parse(arguments, program="awm-bench", purpose="")
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


@cache
def _configuration(words: tuple[str, ...], settings: Settings, label: str) -> Mapping[str, Any]:
    values = flatten(config_to_dict(resolved(words, settings, label)))
    return {key: value for key, value in values.items() if key not in OWN}
