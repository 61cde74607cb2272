"""Measure how fast the trainer is: images per second, seconds by phase, and shares of what the device can do.

The real trainer runs warm epochs on the tiny model, or on Stable Diffusion 3.5 Medium's sizes with random weights that
are drawn on the device, nothing downloaded. Its rewards are a stub. Variants go without one of its savings each, or
take one of its options; they take turns, an epoch at a time, so that their ratios hold on a busy machine, too.

  awm-bench throughput                                             tiny model, every variant; minutes on two cores
  awm-bench throughput --model sd35m_random --device cuda          everything on a GPU; 7.5 minutes and a round
  awm-bench throughput --variants as_commonly_written --profile    two variants, and traces of both
  awm-bench throughput --sweep resolution                          cost as work grows; also images_per_prompt,
                                                                   prompts, world_size
  torchrun --nproc_per_node 8 -m awm.bench throughput --model sd35m_random --device cuda       on eight GPUs

Run it in the repository. Variants: default, the recipe as it is; without a saving: text_per_image, float32_base,
forward_per_time, old_forward, float32_vae, library_attention, library_norm, library_gelu, library_adapters,
memory_returned, unmerged_lora, rewards_at_end; without all of them: as_commonly_written; with an option: merge_lora,
skip_zero_advantage, kl_timesteps, options (these three), compile, merge_lora_compile, fp8. What cannot be measured here
is left out, and the file says why, as what the recipe has already (the tiny one merge_lora, that of sd35m_random not);
on a CPU the compiled ones are, too, unless they are named, for compiling takes minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from awm.bench.throughput.models import MODELS, RECIPES, configuration, prepared
from awm.bench.throughput.options import check_writable, parse_options
from awm.freed_memory import keep_freed_memory
from awm.quiet import quiet_libraries


def main(argv: Sequence[str], program: str) -> int:
    """Measure, print a table and write the file.

    Returns:
        0, or 1 if a variant failed that was to be measured.

    Raises:
        ValueError: the command line or the configuration is not valid, or there is no such device.
    """
    begun = time.monotonic()
    options = parse_options(argv, program, __doc__)
    if not Path(RECIPES).is_file():
        raise ValueError(f"there is no {RECIPES} here; run {program} in the folder of the repository.")
    if options.device == "cpu":  # before torch looks for devices
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with prepared(MODELS[options.model], options.text_encoders) as folder:
        configuration(MODELS[options.model], options.words, folder)  # typing mistakes are answered at once
        check_writable(options.out)
        quiet_libraries()
        return _run(options, folder, shlex.join([*program.split(), *argv]), begun)


def _run(options: argparse.Namespace, folder: Path, command: str, begun: float) -> int:
    # Imported late: --help and mistakes in the command line are answered before torch is loaded.
    import torch

    from awm.bench.throughput.benchmark import Benchmark, print_table
    from awm.bench.throughput.ranks import sweep_world_sizes

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but torch sees no CUDA device; use --device cpu, or install torch with CUDA.")
    if options.sweep == "world_size":
        sweep_world_sizes(options, folder, command)
        return 0
    if options.device == "cpu":
        keep_freed_memory()
    benchmark = Benchmark(options, folder, command, begun)
    try:
        result = benchmark.sweep() if options.sweep else benchmark.variants()
    finally:
        benchmark.close()
    if benchmark.is_main:
        print_table(result)
        print(options.out)
    broken = [name for name, row in result["variants"].items() if row["status"] == "failed"]
    if broken and benchmark.is_main:
        print(f"failed: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0
