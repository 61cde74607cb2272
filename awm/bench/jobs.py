"""Which runs a comparison consists of, and which of them come next: a function of the results so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from awm.bench.arms import Arm, Setting
from awm.bench.settings import Settings

Stage = Literal["tune", "final"]
Record = Mapping[str, Any]
"""What a run left; see ``awm.bench.harvest``."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the trainer.

    Attributes:
        arm: its name in the table.
        setting: its name in the arm's grid.
        seed: of the run.
        stage: "tune" evaluates nothing, so that no held-out score can choose a setting.
        words: of awm-train's command line: recipe and overrides of the arm and the setting.
    """

    arm: str
    setting: str
    seed: int
    stage: Stage
    words: tuple[str, ...]

    @property
    def label(self) -> str:
        """For errors."""
        return f"arm {self.arm}, setting {self.setting}"

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm}-{self.setting}-seed{self.seed}"


def tuning_jobs(arm: str, row: Arm, settings: Settings) -> list[Job]:
    """One run for each point of the grid; none if there is nothing to choose."""
    if len(row.grid) < 2:
        return []
    return [_job(arm, row, setting, settings.tuning_seed, "tune") for setting in row.grid]


def final_jobs(arm: str, row: Arm, best: Setting, settings: Settings) -> list[Job]:
    """One run for each reported seed."""
    return [_job(arm, row, best, seed, "final") for seed in settings.reported]


def all_jobs(arms: Mapping[str, Arm], settings: Settings) -> dict[str, Job]:
    """By name, whatever a comparison may consist of: final runs of every setting included."""
    jobs = [job for arm, row in arms.items() for job in tuning_jobs(arm, row, settings)]
    jobs += [j for arm, row in arms.items() for setting in row.grid for j in final_jobs(arm, row, setting, settings)]
    return {job.name: job for job in jobs}


def _job(arm: str, row: Arm, setting: Setting, seed: int, stage: Stage) -> Job:
    return Job(arm, setting.name, seed, stage, row.words(setting))


def tuning_score(record: Record) -> float:
    """Mean training reward over the second half of a run's epochs: late, and of enough images to be steady.

    NaN if one of them has none.
    """
    rewards: Sequence[float | None] = record["training_reward"]
    late = [math.nan if reward is None else reward for reward in rewards[len(rewards) // 2 :]]
    return sum(late) / len(late)


def best_setting(arm: str, row: Arm, settings: Settings, records: Mapping[str, Record]) -> Setting | None:
    """The point of the grid with the highest tuning score; None while some are untried or broken, or if all diverged.

    A run that diverged is a result, and loses; one that broke for another reason says nothing about its point. Of
    equal ones the first.
    """
    if len(row.grid) == 1:
        return row.grid[0]
    found: list[tuple[float, Setting]] = []
    for job, setting in zip(tuning_jobs(arm, row, settings), row.grid, strict=True):
        record = records.get(job.name)
        if record is None or record["status"] == "broken":
            return None
        if record["status"] == "finished" and math.isfinite(tuning_score(record)):
            found.append((tuning_score(record), setting))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def jobs_to_run(
    arms: Mapping[str, Arm], settings: Settings, records: Mapping[str, Record], stages: Sequence[Stage]
) -> list[Job]:
    """The runs without a record that could start now, in order; more may follow once these are over."""
    jobs: list[Job] = []
    if "tune" in stages:
        jobs += [job for arm, row in arms.items() for job in tuning_jobs(arm, row, settings)]
    if "final" in stages:
        for arm, row in arms.items():
            best = best_setting(arm, row, settings, records)
            jobs += final_jobs(arm, row, best, settings) if best else []
    return [job for job in jobs if job.name not in records]


def num_jobs_left(
    arms: Mapping[str, Arm], settings: Settings, records: Mapping[str, Record], stages: Sequence[Stage]
) -> int:
    """All runs that are still to come, also those whose setting is not chosen yet."""
    left = len(jobs_to_run(arms, settings, records, stages))
    if "final" in stages:
        for arm, row in arms.items():
            tried = all(job.name in records for job in tuning_jobs(arm, row, settings))
            if not tried and ("tune" in stages):
                left += len(settings.reported)
    return left


def trainer_arguments(job: Job, settings: Settings, *, logdir: str, epochs: int) -> list[str]:
    """Words of awm-train's command line, but for the address of the reward server.

    Later words win: what the comparison holds fixed stands after what an arm may choose.
    """
    evaluations = settings.evaluations if job.stage == "final" else 0
    return [
        *job.words,
        *settings.overrides,
        f"--config.run_name={job.name}",
        f"--config.logdir={logdir}",
        f"--config.seed={job.seed}",
        f"--config.num_epochs={epochs}",
        f"--config.eval_freq={epochs // evaluations if evaluations else 0}",
        "--config.num_checkpoint_limit=1",
        "--config.resume_from=auto",
        f"--config.mixed_precision={settings.precision}",
        f"--config.reward_fn={','.join(REWARDS)}",
        f"--config.evaluation.max_prompts={settings.prompts}",
        f"--config.evaluation.num_images_per_prompt={IMAGES_PER_PROMPT}",
        f"--config.evaluation.num_saved_images={settings.prompts * IMAGES_PER_PROMPT}",
    ]


IMAGES_PER_PROMPT = 2  # of an evaluation: enough for a distance between images of a prompt
SCORE = "geneval.strict"  # what is trained on, and compared on held-out prompts
SECOND = "jpeg_compressibility"  # what is not trained on
REWARDS = (f"{SCORE}=1", f"{SECOND}=0")
