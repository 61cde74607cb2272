"""Where awm-sample puts its images: one file with a grid, or a folder with a file for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from awm.held_out.items import Item
from awm.images import save_png
from awm.report.grid import sample_grid

COLUMNS = 6  # of a grid with one image per prompt


class Pictures(Protocol):
    """Takes images as they are drawn."""

    def add(self, batch: Sequence[Item], images: Tensor, *, is_base: bool) -> None:
        """More images, uint8 [B, 3, H, W]."""

    def close(self) -> None:
        """All images are there."""


def open_pictures(out: Path, items: Sequence[Item], *, compared: str, per_prompt: int) -> Pictures:
    """A folder if ``out`` is one or has no file's ending, else a file.

    Args:
        out: where the user wants the images.
        items: all that will be drawn.
        compared: what to call the weights, if each image is drawn by the base model, too; else "".
        per_prompt: images per prompt, a row of the grid.
    """
    if out.is_dir() or not out.suffix:
        return Folder(out, items, compare=bool(compared))
    return Sheet(out, items, compared=compared, per_prompt=per_prompt)


class Folder:
    """One PNG for each image, and ``index.jsonl``, a line per image."""

    def __init__(self, out: Path, items: Sequence[Item], *, compare: bool) -> None:
        out.mkdir(exist_ok=True)
        self._out, self._items, self._compare = out, items, compare

    def add(self, batch: Sequence[Item], images: Tensor, *, is_base: bool) -> None:
        """Write them."""
        for item, image in zip(batch, images, strict=True):
            save_png(image, self._out / self._name(item, is_base=self._compare and is_base))

    def close(self) -> None:
        """Write the index."""
        lines = []
        for item in self._items:
            record = {"image": self._name(item, is_base=False), "prompt": item.prompt, "copy": item.copy}
            if self._compare:
                record["base"] = self._name(item, is_base=True)
            lines.append(json.dumps(record))
        (self._out / "index.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _name(self, item: Item, *, is_base: bool) -> str:
        return f"{item.index:05d}_base.png" if is_base else f"{item.index:05d}.png"


class Sheet:
    """One file: the image itself if there is only one, else a grid with captions."""

    def __init__(self, out: Path, items: Sequence[Item], *, compared: str, per_prompt: int) -> None:
        self._out, self._items, self._compared, self._per_prompt = out, items, compared, per_prompt
        self._images: dict[tuple[bool, int], Tensor] = {}

    def add(self, batch: Sequence[Item], images: Tensor, *, is_base: bool) -> None:
        """Keep them."""
        for item, image in zip(batch, images, strict=True):
            self._images[bool(self._compared) and is_base, item.index] = image

    def close(self) -> None:
        """Write the file. Compared images stand in pairs, those of a prompt in a row."""
        if len(self._images) == 1:
            (image,) = self._images.values()
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(self._out)
            return
        cells = [(is_base, item) for item in self._items for is_base in ((True, False) if self._compared else (False,))]
        images = torch.stack([self._images[is_base, item.index] for is_base, item in cells])
        pair = 2 if self._compared else 1
        per_row = self._per_prompt if self._per_prompt > 1 else COLUMNS // pair
        grid = sample_grid(
            images.permute(0, 2, 3, 1).contiguous(),
            [item.prompt for _, item in cells],
            None,
            columns=pair * per_row,
            titles=["base model" if is_base else self._compared for is_base, _ in cells] if self._compared else None,
        )
        grid.save(self._out)
