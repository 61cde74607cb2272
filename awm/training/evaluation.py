"""Held-out evaluation: fixed noise per prompt and image, every image exactly once, on any number of ranks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from awm.data.prompts import PromptSet
from awm.flow.rng import SampleNoise
from awm.training.distributed import Distributed
from awm.training.rollout import Progress, Rollout
from awm.types import Prompts


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One evaluated image: what goes into ``scores.jsonl``, and its pixels if they are to be saved."""

    index: int
    prompt: str
    tag: str
    scores: dict[str, float | None]
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
        seed: keys the noise together with prompt number and image number.
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
        self.rollout, self.prompts, self.distributed, self.seed = rollout, prompts, distributed, seed
        self.images_per_prompt = images_per_prompt
        self.chosen = _spaced(len(prompts), max_prompts or len(prompts))
        self.saved = set(_spaced(len(self), num_saved_images))
        self.occurrence = _occurrences(prompts.text)

    def __len__(self) -> int:
        return len(self.chosen) * self.images_per_prompt

    def __call__(self, progress: Progress) -> list[ScoredImage]:
        """All scored images in order, on every rank."""
        per_rank = -(-len(self) // self.distributed.world_size)
        first = min(self.distributed.rank * per_rank, len(self))
        mine = range(first, min(first + per_rank, len(self)))
        rounds = -(-per_rank // self.rollout.batch_size)
        scored: list[ScoredImage] = []
        if mine:
            scored = self._score(mine, progress, rounds)
        else:
            self.rollout.idle(progress, rounds)
        return self.distributed.gather_objects(scored)

    def _score(self, items: range, progress: Progress, rounds: int) -> list[ScoredImage]:
        number = [self.chosen[i // self.images_per_prompt] for i in items]
        copy = [
            self.occurrence[n] * self.images_per_prompt + i % self.images_per_prompt
            for n, i in zip(number, items, strict=True)
        ]
        prompts = Prompts(
            text=tuple(self.prompts.text[n] for n in number),
            group=torch.tensor(number),
            metadata=tuple(self.prompts.metadata[n] for n in number),
        )

        def noise_for(rows: slice) -> SampleNoise:
            return SampleNoise.for_evaluation(self.seed, prompts.text[rows], copy[rows], self.distributed.device)

        keep = [row for row, i in enumerate(items) if i in self.saved]
        result = self.rollout(prompts, noise_for, progress, keep, rounds)
        parts = {name: values.tolist() for name, values in result.rewards.parts.items()}
        return [
            ScoredImage(
                index=i,
                prompt=prompts.text[row],
                tag=str(prompts.metadata[row].get("tag", "")),
                scores={name: _number(values[row]) for name, values in parts.items()},
                image=result.images.get(row),
            )
            for row, i in enumerate(items)
        ]


def summarise(scored: list[ScoredImage], prefix: str = "eval/") -> dict[str, float]:
    """Mean of every score, over all images and per tag: ``eval/<reward>`` and ``eval/<reward>/<tag>``.

    Images a reward could not score are left out of its means.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for item in scored:
        for name, score in item.scores.items():
            if score is not None:
                values[prefix + name].append(score)
                if item.tag:
                    values[f"{prefix}{name}/{item.tag}"].append(score)
    return {name: sum(v) / len(v) for name, v in values.items()}


def write_scores(folder: Path, scored: list[ScoredImage]) -> None:
    """Write ``scores.jsonl`` and the saved images below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in scored:
        name = None
        if item.image is not None:
            name = f"{item.index:05d}.png"
            Image.fromarray(item.image.permute(1, 2, 0).contiguous().numpy()).save(folder / name)
        lines.append(json.dumps(_record(item, name)))
    (folder / "scores.jsonl").write_text("\n".join(lines) + "\n")


def _record(item: ScoredImage, image: str | None) -> Mapping[str, Any]:
    return {"index": item.index, "prompt": item.prompt, "tag": item.tag, "scores": item.scores, "image": image}


def _spaced(total: int, count: int) -> list[int]:
    """``count`` evenly spaced numbers below ``total`` (all of them if there are fewer)."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def _occurrences(text: tuple[str, ...]) -> list[int]:
    """How often each string came before: 0 for new ones. Keeps a repeated prompt from repeating its images."""
    seen: dict[str, int] = defaultdict(int)
    counts = []
    for prompt in text:
        counts.append(seen[prompt])
        seen[prompt] += 1
    return counts


def _number(value: float) -> float | None:
    return None if value != value else value
