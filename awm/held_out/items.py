"""Which images an evaluation consists of: prompt by prompt, each image with a number that keys its noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from awm.data.prompts import PromptSet


@dataclass(frozen=True, slots=True)
class Item:
    """One image to make and score.

    Attributes:
        index: its place in the evaluation.
        prompt: the text.
        metadata: what the reward needs beside the text.
        copy: 0 for the text's first image, 1 for its second, ...; with the seed and the text it keys the noise.
        prompt_index: place of the prompt in its file, counted without blank lines.
    """

    index: int
    prompt: str
    metadata: Mapping[str, Any]
    copy: int
    prompt_index: int

    @property
    def tag(self) -> str:
        """The task it belongs to; empty if the prompt file names none."""
        return str(self.metadata.get("tag", ""))


def evaluation_items(prompts: PromptSet, images_per_prompt: int, max_prompts: int = 0) -> list[Item]:
    """All images of an evaluation, in order.

    A text that stands in the file twice gets other images the second time.

    Args:
        prompts: the split.
        images_per_prompt: images per line of the file.
        max_prompts: take that many evenly spaced prompts; 0 takes all.
    """
    occurrence = _occurrences(prompts.text)
    chosen = spaced(len(prompts), max_prompts or len(prompts))
    places = [(number, image) for number in chosen for image in range(images_per_prompt)]
    return [
        Item(
            index=index,
            prompt=prompts.text[number],
            metadata=prompts.metadata[number],
            copy=occurrence[number] * images_per_prompt + image,
            prompt_index=number,
        )
        for index, (number, image) in enumerate(places)
    ]


def batches(items: Sequence[Item], batch_size: int, done: Collection[int] = ()) -> list[list[Item]]:
    """The items that are not done, in batches whose borders do not depend on what is done.

    So an image meets the same neighbours however many ranks there are and however often the evaluation was
    interrupted, and its bits stay the same, for matrix products round differently in batches of other sizes.
    """
    groups: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        if item.index not in done:
            groups[item.index // batch_size].append(item)
    return list(groups.values())


def spaced(total: int, count: int) -> list[int]:
    """``count`` evenly spaced numbers below ``total`` (all of them if there are fewer)."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def _occurrences(text: Sequence[str]) -> list[int]:
    """How often each string came before: 0 for new ones. Keeps a repeated prompt from repeating its images."""
    seen: dict[str, int] = defaultdict(int)
    counts = []
    for prompt in text:
        counts.append(seen[prompt])
        seen[prompt] += 1
    return counts
