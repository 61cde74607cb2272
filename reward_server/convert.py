"""``awm-reward-server convert-...``: checkpoints of other libraries to folders that transformers loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

OPEN_CLIP_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def mask2former(arguments: Sequence[str]) -> None:
    """Mmdet's Mask2Former, whose training run GenEval's published numbers come from."""
    parser = _parser(
        "convert-mask2former",
        "Write an mmdet checkpoint of Mask2Former (Swin, COCO instances; 2.x or 3.x) as a transformers folder, for "
        "`--option geneval.detector=hf --option geneval.model=DST`. mmdet itself is not needed.",
    )
    options = parser.parse_args(arguments)
    from reward_server.scorers.geneval.conversion import convert_mask2former

    try:
        convert_mask2former(options.source, options.destination)
    except (OSError, ValueError) as error:
        sys.exit(f"{options.source} was not converted: {error}")
    print(f"wrote {options.destination}")


def open_clip(arguments: Sequence[str]) -> None:
    """open_clip's CLIP, such as HPSv2.1's."""
    parser = _parser(
        "convert-open-clip",
        "Write an open_clip checkpoint, such as HPS_v2.1_compressed.pt, as a transformers CLIPModel folder. open_clip "
        "itself is not needed.",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="ID",
        default=OPEN_CLIP_TOKENIZER,
        help="folder or Hugging Face id whose tokenizer is stored with the model (default: %(default)s)",
    )
    parser.add_argument(
        "--activation",
        choices=("gelu", "quick_gelu"),
        default="gelu",
        help="quick_gelu for OpenAI's own weights (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    from reward_server.scorers.clip_conversion import convert_open_clip

    try:
        convert_open_clip(
            options.source, options.destination, tokenizer=options.tokenizer, activation=options.activation
        )
    except (OSError, ValueError) as error:
        sys.exit(f"{options.source} was not converted: {error}")
    print(f"wrote {options.destination}")


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"awm-reward-server {command}", description=description)
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint file")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write")
    return parser
