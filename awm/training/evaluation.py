"""Held-out evaluation: fixed noise per prompt and image, every image exactly once, on any number of ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from awm.data.prompts import PromptSet
from awm.flow.rng import SampleNoise
from awm.held_out.items import Item, evaluation_items, spaced
from awm.held_out.records import Record, write_records
from awm.images import save_png
from awm.training.distributed import Distributed
from awm.training.rollout import Progress, Rollout
from awm.types import Prompts, Rewards


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One evaluated image: what goes into ``scores.jsonl``, and its pixels if they are to be saved."""

    record: Record
    image: Tensor | None  # uint8 [3, H, W]


class Evaluation:
    """Samples and scores the evaluation prompts.

    Args:
        rollout: how images are made and scored; its own sampler, steps and weight set.
        prompts: the split.
        distributed: the ranks.
        images_per_prompt: images per prompt, each with its own fixed noise.
        max_prompts: evaluate that many evenly spaced prompts; 0 takes all.
        num_saved_images: evenly spaced images kept as files.
        seed: keys the noise together with the prompt's text and the number of the image among those of that text.
    """

    def __init__(
        self,
        *,
        rollout: Rollout,
        prompts: PromptSet,
        distributed: Distributed,
        images_per_prompt: int,
        max_prompts: int,
        num_saved_images: int,
        seed: int,
    ) -> None:
        self.rollout, self.distributed, self.seed = rollout, distributed, seed
        self.items = evaluation_items(prompts, images_per_prompt, max_prompts)
        self.saved = set(spaced(len(self), num_saved_images))

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, progress: Progress) -> list[ScoredImage]:
        """All scored images in order, on every rank."""
        per_rank = -(-len(self) // self.distributed.world_size)
        first = min(self.distributed.rank * per_rank, len(self))
        mine = self.items[first : first + per_rank]
        rounds = -(-per_rank // self.rollout.batch_size)
        scored: list[ScoredImage] = []
        if mine:
            scored = self._score(mine, progress, rounds)
        else:
            self.rollout.idle(progress, rounds)
        return self.distributed.gather_objects(scored)

    def _score(self, items: Sequence[Item], progress: Progress, rounds: int) -> list[ScoredImage]:
        prompts = Prompts(
            text=tuple(item.prompt for item in items),
            group=torch.tensor([item.prompt_index for item in items]),
            metadata=tuple(item.metadata for item in items),
        )
        copies = [item.copy for item in items]

        def noise_for(rows: slice) -> SampleNoise:
            return SampleNoise.for_evaluation(self.seed, prompts.text[rows], copies[rows], self.distributed.device)

        keep = [row for row, item in enumerate(items) if item.index in self.saved]
        result = self.rollout(prompts, noise_for, progress, keep, rounds)
        records = to_records(items, result.rewards)
        return [ScoredImage(record, result.images.get(row)) for row, record in enumerate(records)]


def to_records(items: Sequence[Item], rewards: Rewards) -> list[Record]:
    """What goes into ``scores.jsonl`` about ``items``, whose images have these rewards."""
    parts = {name: values.tolist() for name, values in rewards.parts.items()}
    rows = [{name: _number(values[row]) for name, values in parts.items()} for row in range(len(items))]
    reasons = rewards.errors or ("",) * len(items)
    return [
        Record(
            index=item.index,
            prompt=item.prompt,
            tag=item.tag,
            copy=item.copy,
            scores=scores,
            error=reason or ("a score was no finite number" if None in scores.values() else ""),
        )
        for item, scores, reason in zip(items, rows, reasons, strict=True)
    ]


def summarise(scored: list[ScoredImage], prefix: str = "eval/") -> dict[str, float]:
    """Mean of every score, over all images and per tag: ``eval/<reward>`` and ``eval/<reward>/<tag>``.

    Images a reward could not score are left out of its means.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for item in (each.record for each in scored):
        for name, score in item.scores.items():
            if score is not None:
                values[prefix + name].append(score)
                if item.tag:
                    values[f"{prefix}{name}/{item.tag}"].append(score)
    return {name: sum(v) / len(v) for name, v in values.items()}


def write_scores(folder: Path, scored: list[ScoredImage]) -> None:
    """Write ``scores.jsonl`` and the saved images below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder, [_with_file(folder, item) for item in scored])


def _with_file(folder: Path, item: ScoredImage) -> Record:
    if item.image is None:
        return item.record
    name = f"{item.record.index:05d}.png"
    save_png(item.image, folder / name)
    return replace(item.record, image=name)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
