"""``awm-sample``: images from a model, alone or beside those of the base model, in one command."""

from __future__ import annotations

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from awm.configuration import config_from_json
from awm.quiet import quiet_libraries
from awm.registry import nearest
from awm.validation import SAMPLERS
from awm.weight_paths import EXPLANATION, run_config

if TYPE_CHECKING:
    from awm.sampling import BaseModel

GRIDS = (".png", ".jpg", ".jpeg", ".webp")
EPILOG = f"""\
--weights-from takes
{EXPLANATION}

--out x.png is the image, or a labelled grid of several (images are scaled down to fit). --out DIR/ gets one PNG per
image in full size, and index.jsonl with the prompt of each; with --compare also those of the base model, *_base.png.

Image j of a prompt starts from noise keyed by (seed, prompt, j): the same image as awm-eval makes with the same
model, sampler, steps, guidance, resolution and precision, whatever else is drawn with it.

examples:
  awm-sample --prompt "a photo of a red circle and a blue square" --num-images 6 --out x.png
  awm-sample --weights-from logs/my_run --prompts dataset/shapes/test.jsonl --out pictures/
  awm-sample --weights-from logs/my_run --compare --prompt "a photo of two stars" --num-images 4 --out pair.png
  awm-sample --model stabilityai/stable-diffusion-3.5-medium --weights-from some/lora --sampler flow_sde \\
    --noise-level 0.7 --sde-frac 1 --steps 40 --guidance-scale 4.5 --prompt "a cat" --out cat.png
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="awm-sample",
        description="Draw images with an SD3-layout model.",
        epilog=EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=118, max_help_position=30),
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to draw; repeat for several prompts")
    add("--prompts", type=Path, metavar="FILE", help='one prompt a line, as text or as JSON with "prompt"')
    add("--out", required=True, metavar="PATH", help="x.png, .jpg or .webp, or a folder; see below")
    add(
        "--model",
        metavar="NAME",
        help='hub id, local folder or "tiny"; default: that of the run the weights are from, or else "tiny"',
    )
    add("--weights-from", "--lora", type=Path, metavar="PATH", help="weights on top of it, see below")
    add("--weights", choices=["average", "current"], help="weight set of a checkpoint (default: average)")
    add("--compare", action="store_true", help="draw every image with the base model, too, from the same noise")
    add("--num-images", type=int, metavar="N", default=1, help="images per prompt (default 1)")
    add("--batch-size", type=int, metavar="N", default=4, help="images drawn at a time (default 4)")
    add("--sampler", default="ddim", choices=list(SAMPLERS), help="default ddim")
    add("--steps", type=int, metavar="N", default=28, help="sampling steps (default 28)")
    add("--guidance-scale", type=float, metavar="X", default=1.0, help="classifier-free guidance; 1 = none (default)")
    add("--noise-level", type=float, metavar="X", default=0.0, help="tau of sa_solver, a of flow_sde (default 0)")
    add(
        "--sde-frac",
        type=float,
        metavar="X",
        default=1.0,
        help="flow_sde: fraction of the steps that are stochastic (default 1)",
    )
    add("--shift", type=float, metavar="X", default=3.0, help="shift of the time grid (default 3, as SD3)")
    add(
        "--resolution", type=int, metavar="N", help="pixels a side (default: the run's, or what the model was made for)"
    )
    add("--seed", type=int, metavar="N", default=0, help="keys the noise (default 0)")
    add("--dtype", choices=["no", "fp16", "bf16"], help="default: no on CPU, bf16 on GPU")
    add("--device", metavar="NAME", help="default: cuda if there is one")
    return p


def main() -> None:
    """Entry point."""
    arguments = parser().parse_args()
    try:
        draw(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"awm-sample: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(arguments.out)


def draw(arguments: argparse.Namespace) -> None:
    """Sample what the command line asks for and write it.

    Raises:
        ValueError: the command line, the prompts or the weights are wrong.
    """
    _check(arguments)
    quiet_libraries()
    from awm.data.prompts import PromptSet, read_prompts
    from awm.held_out.items import evaluation_items
    from awm.picture_files import open_pictures
    from awm.sampling import draw_items

    listed = read_prompts(arguments.prompts, "pickscore") if arguments.prompts else PromptSet((), ())
    text = (*arguments.prompt, *listed.text)
    items = evaluation_items(PromptSet(text, ({},) * len(text)), arguments.num_images)
    compared = arguments.weights_from.resolve().name if arguments.compare else ""
    pictures = open_pictures(Path(arguments.out), items, compared=compared, per_prompt=arguments.num_images)
    for batch, images, is_base in draw_items(arguments, _base(arguments), items):
        pictures.add(batch, images, is_base=is_base)
    pictures.close()


def _base(arguments: argparse.Namespace) -> BaseModel:
    """``--model``, or what the run began with that the weights belong to."""
    from awm.sampling import BaseModel

    file = run_config(arguments.weights_from) if arguments.weights_from else None
    if arguments.model or file is None:
        return BaseModel(arguments.model or "tiny", resolution=arguments.resolution)
    config = config_from_json(str(file))
    pretrained = config.pretrained
    return BaseModel(
        model=pretrained.model,
        revision=pretrained.revision,
        transformer=pretrained.transformer,
        resolution=arguments.resolution or config.resolution,
    )


def _check(arguments: argparse.Namespace) -> None:
    out, is_folder = Path(arguments.out), arguments.out.endswith(("/", os.sep))
    for name in ("num_images", "batch_size", "steps"):
        if (value := getattr(arguments, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} leaves nothing to draw; give 1 or more.")
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed} is negative; give 0 or more.")
    if not math.isfinite(arguments.guidance_scale):
        raise ValueError(f"--guidance-scale {arguments.guidance_scale} is no number to scale by; 1 means no guidance.")
    if not (arguments.prompt or arguments.prompts):
        raise ValueError("nothing to draw; give --prompt TEXT, as often as you like, or --prompts FILE.")
    if arguments.prompts is not None and not arguments.prompts.is_file():
        raise ValueError(f"--prompts {arguments.prompts} is no file; give a .txt or .jsonl file of prompts.")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"no folder {out.parent} to write {out.name} into; create it first.")
    if is_folder:
        out.mkdir(exist_ok=True)
    if out.suffix and not out.is_dir() and out.suffix.lower() not in GRIDS:
        hint = nearest(out.suffix, list(GRIDS))
        raise ValueError(f"--out {out} must end in .png, .jpg or .webp, or be a folder.{hint}")
    if arguments.compare and arguments.weights_from is None:
        raise ValueError("--compare draws with and without weights; say which with --weights-from PATH.")
    if arguments.weights is not None and arguments.weights_from is None:
        raise ValueError(f"--weights {arguments.weights} needs --weights-from RUN or a checkpoint of it.")


if __name__ == "__main__":
    main()
