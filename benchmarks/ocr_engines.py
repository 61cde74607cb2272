"""Read rendered texts with the OCR engines and write accuracy and time to benchmarks/results/ocr_engines.json.

    python benchmarks/ocr_engines.py
    python benchmarks/ocr_engines.py --engine tesserocr --engine 'rapidocr {"threads": 2}'

Per engine and image size: the mean reward by the rule of reward_server/scorers/ocr/rule.py, the share of texts read in
full, and wall and CPU milliseconds per image. The texts are those of dataset/ocr, in five fonts, on plain, graded and
noisy backgrounds; they are rendered at 512 pixels and at the other sizes scaled down, as a small model would have to
draw them. Clean type says little about the lettering of a diffusion model; it tells a broken engine from a sound one.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from provenance import ROOT, provenance

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.ocr.rule import target_text
from reward_server.scorers.ocr.scorer import OcrScorer

PROMPTS = ROOT / "dataset/ocr/train.txt"
OUT = ROOT / "benchmarks/results/ocr_engines.json"
SIZES = (512, 128, 64)  # pixels a side
FONTS = (None, "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Oblique.ttf")
BACKGROUNDS = ("plain", "graded", "noisy")
PACKAGES = ("rapidocr", "onnxruntime", "opencv-python-headless", "tesserocr", "paddleocr", "paddlepaddle", "pillow")
MARGIN = 24  # pixels left free on each side of the 512


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", help="name, or name and options as JSON; may be repeated")
    parser.add_argument("--num-texts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    engines = arguments.engine or ["rapidocr", "tesserocr"]
    pictures = render_all(arguments.num_texts, arguments.seed)
    results: dict[str, Any] = provenance(*PACKAGES) | {
        "note": arguments.note,
        "texts": [item.metadata["text"] for item in pictures],
        "runs": [],
    }
    for engine in engines:
        name, _, options = engine.partition(" ")
        scorer = OcrScorer(name, **json.loads(options or "{}"))
        for size in SIZES:
            row = {"engine": engine, "size": size, **measure(scorer, [_resized(item, size) for item in pictures])}
            results["runs"].append(row)
            print(json.dumps(row))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


def measure(scorer: OcrScorer, items: Sequence[Item]) -> dict[str, Any]:
    """Mean reward, share read in full, and milliseconds per image; the first image is scored once before."""
    scorer(items[:1])
    wall, cpu = time.perf_counter(), time.process_time()
    outcomes = scorer(items)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scores = [outcome for outcome in outcomes if isinstance(outcome, Scores)]
    if len(scores) < len(items):
        raise RuntimeError(f"{len(items) - len(scores)} images without a score: {outcomes}")
    return {
        "mean_reward": round(sum(s.score for s in scores) / len(scores), 4),
        "contained": round(sum(s.metrics["contained"] for s in scores) / len(scores), 4),
        "wall_ms_per_image": round(1000 * wall / len(items), 1),
        "cpu_ms_per_image": round(1000 * cpu / len(items), 1),
    }


def render_all(count: int, seed: int) -> list[Item]:
    """``count`` texts of the prompt set, rendered at 512 pixels with fonts and backgrounds taking turns."""
    rng = random.Random(seed)
    prompts = rng.sample(PROMPTS.read_text(encoding="utf-8").splitlines(), count)
    items = []
    for number, prompt in enumerate(prompts):
        text = target_text(prompt, {})
        font, background = FONTS[number % len(FONTS)], BACKGROUNDS[number % len(BACKGROUNDS)]
        items.append(
            Item(render(text, font, background, np.random.default_rng([seed, number])), prompt, {"text": text})
        )
    return items


def render(text: str, font: str | None, background: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The text, one word a line, as large as it fits, on an image [512, 512, 3]."""
    side = 512
    dark = rng.integers(0, 90, size=3)
    light = rng.integers(165, 256, size=3)
    paper, ink = (light, dark) if rng.random() < 0.5 else (dark, light)
    pixels = np.broadcast_to(paper, (side, side, 3)).astype(np.float64)
    if background == "graded":
        pixels = pixels + np.linspace(-30, 30, side)[:, None, None]
    elif background == "noisy":
        pixels = pixels + rng.normal(0, 12, size=(side, side, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    lines = "\n".join(text.split())
    size = next(size for size in range(160, 8, -4) if _fits(draw, lines, _font(font, size), side - 2 * MARGIN))
    at = (side / 2, side / 2)
    draw.multiline_text(at, lines, fill=tuple(map(int, ink)), font=_font(font, size), anchor="mm", align="center")
    return np.asarray(image)


def _font(name: str | None, size: int) -> Any:
    if name is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def _fits(draw: ImageDraw.ImageDraw, text: str, font: Any, side: int) -> bool:
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    return right - left <= side and bottom - top <= side


def _resized(item: Item, size: int) -> Item:
    image = Image.fromarray(item.image)
    scaled = image if size == image.width else image.resize((size, size), Image.Resampling.LANCZOS)
    return Item(np.asarray(scaled), item.prompt, item.metadata)


if __name__ == "__main__":
    main()
