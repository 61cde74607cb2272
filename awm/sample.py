"""``awm-sample``: images from a model, with or without a LoRA, in one command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from awm.quiet import quiet_libraries
from awm.registry import nearest

SAMPLERS = ("ddim", "sa_solver", "flow_sde")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="awm-sample", description="Draw images with an SD3-layout model.")
    p.add_argument("--model", default="tiny", help='hub id, local folder, or "tiny" for the shipped model (default)')
    p.add_argument("--prompt", action="append", required=True, help="what to draw; repeat for several prompts")
    p.add_argument("--out", type=Path, required=True, help="PNG to write; several images become one labelled grid")
    p.add_argument("--lora", type=Path, help="LoRA folder, such as RUN/checkpoints/epoch_000012/lora_average")
    p.add_argument("--num-images", type=int, default=1, help="images per prompt (default 1)")
    p.add_argument("--steps", type=int, default=28, help="sampling steps (default 28)")
    p.add_argument("--guidance-scale", type=float, default=1.0, help="classifier-free guidance; 1 = none (default)")
    p.add_argument("--sampler", default="ddim", choices=SAMPLERS, help="default ddim")
    p.add_argument("--noise-level", type=float, default=0.0, help="tau of sa_solver, a of flow_sde (default 0)")
    p.add_argument("--shift", type=float, default=3.0, help="shift of the time grid (default 3, as SD3)")
    p.add_argument("--resolution", type=int, help="pixels a side (default: what the model was made for)")
    p.add_argument("--seed", type=int, default=0, help="noise of image j of a prompt is keyed by (seed, prompt, j)")
    p.add_argument("--dtype", default="", choices=["", "no", "fp16", "bf16"], help="default: no on CPU, bf16 on GPU")
    p.add_argument("--device", default="", help="default: cuda if there is one")
    return p


def main() -> None:
    """Entry point."""
    arguments = parser().parse_args()
    try:
        draw(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"awm-sample: {error}")
    print(arguments.out)


def draw(arguments: argparse.Namespace) -> None:
    """Sample what the command line asks for and write it."""
    if arguments.num_images < 1:
        raise ValueError(f"--num-images {arguments.num_images} leaves nothing to draw; give 1 or more.")
    if not arguments.out.parent.is_dir():
        raise ValueError(f"no folder {arguments.out.parent} to write {arguments.out.name} into; create it first.")
    if arguments.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(
            f"--out {arguments.out} must end in .png, .jpg or .webp.{nearest(arguments.out.suffix, ['.png'])}"
        )

    quiet_libraries()
    import torch

    from awm.building import DTYPES, make_sampler
    from awm.flow.rng import SampleNoise
    from awm.models.sd3 import SD3
    from awm.training.rollout import encode_distinct

    sampler = make_sampler(arguments.sampler, arguments.steps, arguments.shift, noise_level=arguments.noise_level)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[arguments.dtype or ("bf16" if device.startswith("cuda") else "no")]
    model = SD3.load(arguments.model, dtype=dtype, device=device)
    if arguments.lora:
        model.load_lora(arguments.lora)
    text = tuple(prompt for prompt in arguments.prompt for _ in range(arguments.num_images))
    copies = list(range(arguments.num_images)) * len(arguments.prompt)
    condition, rows = encode_distinct(model, text)
    condition = condition.take(rows)
    model.release_text_encoders()  # on a small GPU the autoencoder needs their memory
    noise = SampleNoise.for_evaluation(arguments.seed, text, copies, device)
    shape = model.latent_shape(arguments.resolution or model.default_resolution)
    with torch.no_grad():
        trajectory = sampler(
            lambda x_t, t: model.velocity(x_t, t, condition, arguments.guidance_scale),
            noise.randn(shape),
            lambda: noise.randn(shape),
        )
        images = model.decode(trajectory.x_0).cpu()
    columns = arguments.num_images if arguments.num_images > 1 else min(6, len(text))
    _write(images, text, columns, arguments.out)


def _write(images: object, text: tuple[str, ...], columns: int, out: Path) -> None:
    from PIL import Image
    from torch import Tensor

    from awm.images import quantise
    from awm.report.grid import sample_grid

    assert isinstance(images, Tensor)
    if len(images) == 1:
        Image.fromarray(quantise(images[0]).permute(1, 2, 0).contiguous().numpy()).save(out)
    else:
        sample_grid(images, list(text), None, columns=columns).save(out)


if __name__ == "__main__":
    main()
