"""Milliseconds per image of the scorers, called directly, and write benchmarks/results/scorers.json.

    python benchmarks/scorers.py                       all of them, on this machine
    python benchmarks/scorers.py pickscore clipscore   some

The networks have the published architectures and random weights, which take as long as trained ones; nothing is
downloaded. Needs 12 GB of memory and 6 GB of disk for PickScore's ViT-H. OCR engines: benchmarks/ocr_engines.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import ROOT, provenance
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from reward_server.scorers.base import Item, Scorer, Scores
from reward_server.scorers.clipscore import ClipScore
from reward_server.scorers.geneval.scorer import GenevalScorer
from reward_server.scorers.jpeg import Compressibility
from reward_server.scorers.pickscore import PickScore

STAR = {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}]}
CUP = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5, help="batches timed (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scorers.json")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = provenance("torch", "transformers", "numpy", "pillow")
    results |= {"device": device, "threads": torch.get_num_threads(), "scorers": {}}
    for name in options.names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            make, size, batch, metadata = CASES[name]
            results["scorers"][name] = measure(make(Path(folder)), size, batch, metadata, options.repeats)
        print(name, results["scorers"][name], flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(options.out)


def measure(scorer: Scorer, size: int, batch: int, metadata: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Median over batches of noise images, after one that does not count."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    items = [Item(image, f"a photo of a red star, number {i}", metadata) for i, image in enumerate(pixels)]
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        outcomes = scorer(items)
        times.append(1000 * (time.perf_counter() - started) / batch)
        assert all(isinstance(outcome, Scores) for outcome in outcomes), outcomes
    return {"pixels_a_side": size, "batch": batch, "ms_per_image": round(statistics.median(times[1:]), 1)}


def vit_l(folder: Path) -> Path:
    """CLIP ViT-L/14 of OpenAI."""
    return _clip(folder, text=(768, 12, 12), vision=(1024, 24, 16), projection=768)


def vit_h(folder: Path) -> Path:
    """CLIP ViT-H/14 of LAION, the network of PickScore and HPSv2.1."""
    return _clip(folder, text=(1024, 24, 16), vision=(1280, 32, 16), projection=1024)


def swin_s(folder: Path) -> Path:
    """Mask2Former with Swin-S, GenEval's detector."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        image_size=224, embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=stages
    )
    config = Mask2FormerConfig(backbone_config=swin, num_labels=80, num_queries=100)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "detector")
    return folder / "detector"


def _clip(folder: Path, text: tuple[int, int, int], vision: tuple[int, int, int], projection: int) -> Path:
    """A random CLIP, of (width, layers, heads) of each tower, with a tokenizer of single bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)

    def tower(sizes: tuple[int, int, int]) -> dict[str, int]:
        width, layers, heads = sizes
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": projection,
        }

    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**tower(text), **special, "pad_token_id": tokenizer.pad_token_id, "vocab_size": 49408},
        vision_config={**tower(vision), "image_size": 224, "patch_size": 14},
        projection_dim=projection,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    return folder / "clip"


CASES: dict[str, tuple[Callable[[Path], Scorer], int, int, dict[str, Any]]] = {
    "geneval, shapes": (lambda _: GenevalScorer(), 64, 64, STAR),
    "jpeg": (lambda _: Compressibility(), 512, 64, {}),
    "clipscore": (lambda folder: ClipScore(str(vit_l(folder)), processor=None), 512, 4, {}),
    "pickscore": (lambda folder: PickScore(str(vit_h(folder)), processor=None), 512, 4, {}),
    "geneval, hf": (
        lambda folder: GenevalScorer(detector="hf", model=str(swin_s(folder)), clip=str(vit_l(folder))),
        512,
        2,
        CUP,
    ),
}


if __name__ == "__main__":
    main()
