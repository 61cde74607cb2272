"""An evaluation from its configuration to its table: what is cheap is checked before the model is loaded."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from awm.building import build_model, build_reward, build_sampler
from awm.building.equal_servers import check_equal_servers
from awm.configuration import copy_config, default_config
from awm.data.prompts import load_prompts, read_prompts
from awm.drawing import Drawing
from awm.held_out.identity import FILE, claim, prompts_digest
from awm.held_out.items import batches, evaluation_items, spaced
from awm.held_out.records import PARTS, SCORES, PartFiles, Record, write_records
from awm.held_out.results import SUMMARY, TABLE, write_results
from awm.held_out.scoring import IMAGES, Scoring
from awm.held_out.together import on_all, on_main
from awm.interfaces import Reward
from awm.models.sd3 import SD3
from awm.models.weights import check_fit, find_transformer
from awm.training.distributed import Distributed
from awm.training.progress import progress_bar
from awm.training.stopping import StopRequest, StopRequestedError
from awm.validation import validate
from awm.weight_paths import Located, locate

BASE = "base"


class HeldOutRun:
    """One evaluation in one folder.

    Args:
        config: the configuration.
        arguments: of ``awm.evaluate.parser``.
        distributed: the ranks.
        stop: whether somebody wants it to end.

    Raises:
        ValueError: the configuration, the prompts or the weights are wrong, or the folder holds another evaluation.
        ElsewhereError: the main rank has said so.
    """

    def __init__(
        self, config: ConfigDict, arguments: argparse.Namespace, distributed: Distributed, stop: StopRequest
    ) -> None:
        self.distributed, self.stop, self.out = distributed, stop, Path(arguments.out)
        self.config = config = _settled(config, arguments)
        validate(config)
        prompts = (
            read_prompts(arguments.prompts, config.prompt_fn)
            if arguments.prompts
            else load_prompts(config.dataset, "test", config.prompt_fn)
        )
        options = config.evaluation
        self.items = evaluation_items(prompts, options.num_images_per_prompt, options.max_prompts)
        wanted = len(self.items) if arguments.num_saved_images is None else arguments.num_saved_images
        self.saved = frozenset(spaced(len(self.items), wanted))
        self.located = on_main(self.distributed, lambda: self._prepare(arguments.weights_from, arguments))
        self.passes = [(self.out, self.located)]
        if arguments.baseline and self.located is not None:
            self.passes.insert(0, (self.out / BASE, None))

    def __call__(self) -> str:
        """Score what is missing, on all ranks, and write the results.

        Returns:
            The tables.

        Raises:
            StopRequestedError: all ranks were asked to stop.
            RewardError, OSError: scoring or writing failed.
        """
        complete = on_main(self.distributed, lambda: [(folder / SCORES).exists() for folder, _ in self.passes])
        if not all(complete):
            self._score(complete)
        base = self.out / BASE if len(self.passes) > 1 else None
        return on_main(self.distributed, lambda: write_results(self.out, base, list(self.config.reward_fn.to_dict())))

    def _prepare(self, path: Path | None, arguments: argparse.Namespace) -> Located | None:
        pretrained = self.config.pretrained
        find_transformer(pretrained.transformer, pretrained.model, pretrained.revision)
        located = None if path is None else locate(path, arguments.weights)
        if located is not None:
            check_fit(located.weights, pretrained.model, pretrained.revision)
        elif arguments.baseline:
            raise ValueError("--baseline compares weights with the base model; say which with --weights-from PATH.")
        if arguments.restart:
            _clear(self.out)
        claim(self.out, self._identity(located))
        return located

    def _identity(self, located: Located | None) -> dict[str, Any]:
        config = self.config
        sample, pretrained = config.sample, config.pretrained
        return {
            "label": "base model" if located is None else located.label,
            "weights": None if located is None else located.digest,
            "pretrained": {key: pretrained[key] for key in ("model", "revision", "transformer", "max_sequence_length")},
            "use_lora": config.use_lora,
            "mixed_precision": config.mixed_precision,
            "resolution": config.resolution,
            "sampler": sample.eval_sampler,
            "num_steps": sample.eval_num_steps,
            "guidance_scale": sample.guidance_scale,
            "noise_level": sample.noise_level,
            "sde_frac": sample.sde_frac,
            "time_shift": config.time_shift,
            "seed": config.evaluation.seed,
            "rewards": sorted(config.reward_fn.to_dict()),
            "images": len(self.items),
            "saved_images": len(self.saved),
            "prompts": prompts_digest(self.items),
        }

    def _score(self, complete: Sequence[bool]) -> None:
        reward = build_reward(self.config, self.stop.requested)
        on_all(self.distributed, reward.check)
        allowed = self.config.reward_server.allow_changed_scorer
        check_equal_servers(reward, self.distributed, allow_changed_scorer=allowed)
        weights = None if self.located is None else self.located.weights
        full = not self.config.use_lora if weights is None else weights.kind == "transformer" and weights.is_float32
        model = build_model(self.config, self.distributed.device, full_precision=full)
        if self.config.train.compile:
            model.compile_blocks()
        for (folder, located), is_complete in zip(self.passes, complete, strict=True):
            if located is not None and not is_complete:
                model.apply(located.weights)
            if not is_complete:
                self._score_pass(folder, "base model" if located is None else located.label, model, reward)

    def _score_pass(self, folder: Path, label: str, model: SD3, reward: Reward) -> None:
        config, parts = self.config, PartFiles(folder)
        done, launch = on_main(self.distributed, lambda: (parts.read(), parts.next_launch()))
        todo = batches(self.items, config.sample.test_batch_size, done)
        on_main(self.distributed, lambda: (folder / IMAGES).mkdir(parents=True, exist_ok=True))
        if self.distributed.is_main:
            already = f", {len(done)} of them scored already" if done else ""
            print(f"{label}: {len(self.items)} images{already}", flush=True)
        writer = on_all(self.distributed, lambda: parts.writer(launch, self.distributed.rank))
        draw = Drawing(
            model,
            build_sampler(config, config.sample.eval_sampler, config.sample.eval_num_steps),
            resolution=config.resolution,
            guidance_scale=config.sample.guidance_scale,
            seed=config.evaluation.seed,
            device=self.distributed.device,
        )
        score = Scoring(
            draw=draw,
            reward=reward,
            distributed=self.distributed,
            stop=self.stop,
            folder=folder,
            saved=self.saved,
        )
        with progress_bar(label, sum(map(len, todo)), self.distributed.is_main) as advance:
            finished = score(todo, writer, advance)
        # Not read from the part files: on a network file system another node's may not be visible yet.
        new: list[Record] = self.distributed.gather_objects(writer.records)
        if not finished:
            raise StopRequestedError(
                f"stopped; {len(done) + len(new)} of {len(self.items)} images are scored. The same command continues.",
                self.stop.exit_code,
            )
        on_main(self.distributed, lambda: write_records(folder, [*done.values(), *new]))
        if self.distributed.is_main:
            parts.remove()


def _settled(config: ConfigDict, arguments: argparse.Namespace) -> ConfigDict:
    """A copy of the configuration, with the options of the command line that are keys of it."""
    config = copy_config(config)
    if arguments.num_images_per_prompt is not None:
        config.evaluation.num_images_per_prompt = arguments.num_images_per_prompt
    if arguments.prompts is not None:
        config.dataset = str(arguments.prompts.parent)
    if config.sample.test_batch_size == 0:  # only a training finds out what fits
        config.sample.test_batch_size = config.sample.train_batch_size or default_config().sample.test_batch_size
    # Here nothing is only watched: a score that was asked for is delivered, or the evaluation fails.
    with config.unlocked():
        config.reward_fn = ConfigDict(dict.fromkeys(config.reward_fn.to_dict(), 1.0), allow_dotted_keys=True)
    return config


def _clear(out: Path) -> None:
    """Remove an evaluation, and nothing else."""
    if not (out / FILE).exists():
        return
    for folder in (out / BASE, out):
        for name in (PARTS, IMAGES):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (SCORES, SUMMARY, TABLE):
            (folder / name).unlink(missing_ok=True)
    (out / FILE).unlink()
