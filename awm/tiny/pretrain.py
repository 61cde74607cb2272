"""Build the tiny SD3 from nothing, on a CPU: draw scenes, train the autoencoder, encode, train the flow, export.

    python -m awm.tiny.pretrain --work runs/pretrain_tiny --export runs/pretrain_tiny/tiny_sd3

Every stage continues where a killed run stopped. The model sees the training side of the prompt split only;
the held-out prompts are sampled for the probe in the log, which decides nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from numpy.typing import NDArray
from tqdm import tqdm

from awm.tiny import log, probe
from awm.tiny.architecture import build_clip, build_t5, build_transformer
from awm.tiny.autoencoder import encode, set_latent_statistics, train_autoencoder
from awm.tiny.export import export
from awm.tiny.flow import FlowData, FlowModel, FlowRecipe, train_flow
from awm.tiny.pool import draw_many
from awm.tiny.prompts import TASKS, pretrain_records, test_records
from awm.tiny.text import TextEncoders
from awm.tiny.tokenizers import Tokenizers, build_tokenizers

AUTOENCODER_SPREAD = 1.0
FLOW_SPREAD = 0.3


def cached_images(work: Path, *, num_images: int, seed: int) -> NDArray[np.uint8]:
    """Stage 1: the first scenes of the pool, rendered once."""
    path = work / "images.npy"
    if not path.exists():
        np.save(path, draw_many(seed, range(num_images), AUTOENCODER_SPREAD, "dataset")[0])
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return images


def cached_latents(
    work: Path, vae: AutoencoderKL, *, num_scenes: int, seed: int, chunk: int = 1000
) -> tuple[torch.Tensor, list[str]]:
    """Stage 3: normalised latents [N, 4, 16, 16] float16 and captions; a restart continues with the next chunk."""
    folder = work / "latents"
    folder.mkdir(exist_ok=True)
    latents, captions = [], []
    for start in tqdm(range(0, num_scenes, chunk), desc="latents"):
        path = folder / f"{start:07d}.pt"
        if not path.exists():
            images, words = draw_many(seed, range(start, min(start + chunk, num_scenes)), FLOW_SPREAD)
            log.save_checkpoint(path, {"latents": encode(vae, images).half(), "captions": words})
        part = torch.load(path, weights_only=True)
        latents.append(part["latents"])
        captions += part["captions"]
    raw = torch.cat(latents).float()
    set_latent_statistics(vae, raw)
    return (raw - vae.config.shift_factor).mul(vae.config.scaling_factor).half(), captions


def flow_data(latents: torch.Tensor, captions: list[str], tokenizers: Tokenizers) -> FlowData:
    """Number the distinct captions and tokenize each once; the empty caption comes last."""
    distinct = list(dict.fromkeys(captions))
    number = {caption: i for i, caption in enumerate(distinct)}
    return FlowData(latents, torch.tensor([number[c] for c in captions]), tokenizers.ids([*distinct, ""]))


def build_flow_model(tokenizers: Tokenizers, seed: int) -> FlowModel:
    """A freshly initialised transformer and its text encoders."""
    torch.manual_seed(seed)
    clip_1 = build_clip(tokenizers.clip_1, "quick_gelu")
    clip_2 = build_clip(tokenizers.clip_2, "gelu")
    model = FlowModel(build_transformer(), TextEncoders(clip_1, clip_2, build_t5(tokenizers.t5)))
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: FlowModel) -> None:
    """Modulation starts constant (as DiT's adaLN-zero, but with half-open gates); CLIP embeddings start audible."""
    for name, parameter in model.named_parameters():
        if "token_embedding" in name or "position_embedding" in name:
            parameter.mul_(10)
        if ("norm1" in name and ".linear." in name) or "proj_out" in name:
            parameter.zero_()
    _open_gates(model.transformer)


def _open_gates(transformer: SD3Transformer2DModel) -> None:
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            bias = norm.linear.bias.view(-1, transformer.inner_dim)
            if len(bias) > 2:  # shift, scale, gate, ... in threes; the last block's context has no gate
                bias[2::3] = 0.5


class Reporter:
    """What happens every few minutes of the flow stage: probe, image grid, curves, export."""

    def __init__(self, work: Path, folder: Path, vae: AutoencoderKL, tokenizers: Tokenizers, per_task: int) -> None:
        self.work, self.folder, self.vae, self.tokenizers = work, folder, vae, tokenizers
        self.records = probe.pick(test_records(), per_task)
        self.ids = tokenizers.ids([r["prompt"] for r in self.records])

    def __call__(self, model: FlowModel, step: int) -> None:
        """Measure, draw and export the given weights."""
        model.eval()
        export(self.folder, model, self.vae, self.tokenizers)
        images = probe.sample(model, self.vae, self.ids, seed=10_000)
        table = probe.score(images, self.records)
        strict = {task: round(row["strict"], 4) for task, row in table.items()}
        if step not in (r["step"] for r in log.read(self.work / "probe.jsonl")):
            log.append(self.work / "probe.jsonl", {"step": step, **strict})
        tqdm.write(f"step {step} strict {strict}")
        columns = len(self.records) // len(TASKS)
        log.grid(images, columns).save(self.work / "samples.png")
        self.plot()

    def plot(self) -> None:
        """Loss and probe against the step."""
        losses = [(r["step"], r["loss"]) for r in log.read(self.work / "flow.jsonl") if r["step"] > 200]
        probes = log.read(self.work / "probe.jsonl")
        accuracy = {task: [(r["step"], r[task]) for r in probes] for task in (*TASKS, "overall")}
        title = f"strict accuracy on held-out prompts, {len(self.records)} images"
        log.plot(self.work / "loss_curve.png", {"flow loss (mean of 50 steps)": {"train": losses}, title: accuracy})


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain_tiny"))
    parser.add_argument("--export", type=Path, default=None, help="default: WORK/tiny_sd3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-images", type=int, default=12_000, help="scenes the autoencoder learns from")
    parser.add_argument("--autoencoder-steps", type=int, default=1_700)
    parser.add_argument("--num-scenes", type=int, default=16_000, help="scenes the flow learns from")
    parser.add_argument("--flow-steps", type=int, default=3_200)
    parser.add_argument(
        "--stop-at", type=int, default=2_000, help="end the schedule here: leaves RL something to teach"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--report-every", type=int, default=500)
    parser.add_argument("--probe-per-task", type=int, default=20)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)

    images = cached_images(args.work, num_images=args.num_images, seed=args.seed)
    vae = train_autoencoder(
        args.work, images, num_steps=args.autoencoder_steps, batch=16, learning_rate=2e-3, seed=args.seed
    )
    latents, captions = cached_latents(args.work, vae, num_scenes=args.num_scenes, seed=args.seed)
    tokenizers = build_tokenizers([r["prompt"] for r in pretrain_records()])
    model = build_flow_model(tokenizers, args.seed)
    folder = args.export or args.work / "tiny_sd3"
    report = Reporter(args.work, folder, vae, tokenizers, args.probe_per_task)
    stop_at = min(args.stop_at, args.flow_steps)
    recipe = FlowRecipe(num_steps=args.flow_steps, stop_at=stop_at, batch=args.batch, seed=args.seed)
    data = flow_data(latents, captions, tokenizers)
    train_flow(args.work, model, data, recipe, every=args.report_every, report=report)


if __name__ == "__main__":
    main()
