"""The benchmark as a whole: which trainers are built, how they take turns, and what is written of them."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from awm.bench.throughput import sweep
from awm.bench.throughput.case import Case
from awm.bench.throughput.ceiling import known_peak, measure_ceiling
from awm.bench.throughput.models import MODELS, configuration, loading
from awm.bench.throughput.operations import phase_operations
from awm.bench.throughput.profiling import profile_epoch
from awm.bench.throughput.rounds import Outcome, run_rounds
from awm.bench.throughput.statistics import measured, ratios
from awm.bench.throughput.variants import DEFAULT, Variant, check_names, refusal, resolve
from awm.building.objects import DTYPES, build_weightless, set_tf32
from awm.configuration import config_to_dict, flatten
from awm.provenance import provenance
from awm.training.distributed import Distributed
from awm.validation import validate
from reward_server.process import write_atomically

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "torchao", "triton", "numpy")


class Benchmark:
    """One call of ``awm-bench throughput``.

    Args:
        options: of the command line.
        folder: for what the trainers write.
        command: to type to get the result again.
        begun: ``time.monotonic()`` when it began.

    Attributes:
        is_main: whether this rank writes.

    Raises:
        ValueError: the configuration, or a variant's name, is not valid.
    """

    def __init__(self, options: argparse.Namespace, folder: Path, command: str, begun: float) -> None:
        self.options, self.folder, self.command, self.begun = options, folder, command, begun
        self.names = check_names(options.variants)
        self.model = MODELS[options.model]
        self.config = self._configured(())
        self.distributed = Distributed(self.config.mixed_precision)
        self.device, self.dtype = self.distributed.device, DTYPES[self.config.mixed_precision]
        self.is_main, self.world_size = self.distributed.is_main, self.distributed.world_size
        self.loading = loading(self.model, self.config)
        self.result = self._header()

    def variants(self) -> dict[str, Any]:
        """Measure the variants against each other."""
        rows: dict[str, Any] = {}
        cases: dict[str, Case] = {}
        operations: dict[str, dict[str, float]] = {}
        for name in self.names:
            variant = resolve(name, self.config, self.device.type)
            rows[name] = {"meaning": variant.meaning, "status": "skipped", "reason": ""}
            why = refusal(variant, self.config, self.device.type, by_name=name in self.options.variants)
            why = why or self._prepare(name, variant, cases, operations)
            rows[name]["reason"] = why
            if why and name == DEFAULT:
                raise ValueError(why)
        self.result["variants"] = rows

        def fill(outcomes: Mapping[str, Outcome]) -> None:
            for name, outcome in outcomes.items():
                rows[name] |= self._row(cases[name], outcome, operations[name], outcomes[DEFAULT])
            self._write()

        outcomes = self._measure(cases, fill)
        if self.options.profile:
            self.result["profiles"] = self._profiles(cases, outcomes)
        self._write()
        return self.result

    def sweep(self) -> dict[str, Any]:
        """Measure the default at several sizes of one thing."""
        kind = self.options.sweep
        values = self.options.points or self.model.points[kind]
        cases, operations = {}, {}
        for value in values:
            name = f"{kind}={value}"
            config = self._configured(sweep.words_for(kind, value))
            cases[name], operations[name] = self._case(config, Variant("")), phase_operations(config, self.world_size)
        outcomes = self._measure(cases)
        rows: dict[str, Any] = {}
        points = []
        for value, (name, outcome) in zip(values, outcomes.items(), strict=True):
            rows[name] = {"meaning": f"the default with {name}"} | self._row(
                cases[name], outcome, operations[name], None
            )
            if rows[name]["status"] == "measured":
                images, row = self._images(cases[name].config), rows[name]
                seconds = row["seconds"]["epoch"]["median"]
                points.append(sweep.Point(value, images, sum(operations[name].values()), seconds))
        self.result["variants"] = rows
        if points:
            self.result["sweep"] = {"of": kind, "points": sweep.against_linear(kind, points)}
        self._write()
        return self.result

    def close(self) -> None:
        """Leave the process group."""
        self.distributed.close()

    def _configured(self, words: tuple[str, ...]) -> Any:
        config = configuration(self.model, [*self.options.words, *words], self.folder)
        validate(config)
        return config

    def _case(self, config: Any, variant: Variant) -> Case:
        options = self.options
        return Case(
            config,
            variant.switches,
            loading=self.loading,
            reward_ms=options.reward_ms,
            tied_share=options.tied,
        )

    def _prepare(
        self, name: str, variant: Variant, cases: dict[str, Case], operations: dict[str, dict[str, float]]
    ) -> str:
        """Put the variant among those to measure; or why not, if the configuration refuses its options."""
        try:
            config = self._configured(variant.words)
            operations[name] = phase_operations(config, self.world_size)
        except ValueError as error:
            return f"the configuration refuses it: {error}"
        cases[name] = self._case(config, variant)
        return ""

    def _measure(
        self, cases: Mapping[str, Case], after_round: Callable[[Mapping[str, Outcome]], None] = lambda outcomes: None
    ) -> dict[str, Outcome]:
        set_tf32(self.config.allow_tf32)  # as the trainer will
        self.ceiling = measure_ceiling(self.device, self.dtype)
        self.result["ceiling"] = {
            "operations_per_s": self.ceiling.operations_per_s,
            "operations_per_processor_s": self.ceiling.operations_per_processor_s or None,
            "of": f"{self.ceiling.dtype} product of {self.ceiling.size} rows, the best of several sizes",
        }
        self._say(f"a matrix product reaches {self.ceiling.operations_per_s / 1e12:.3g} TFLOP/s")
        return run_rounds(
            cases,
            rounds=self.options.epochs,
            warmup=self.options.warmup,
            go_on=self._time_left,
            say=self._say,
            after_round=after_round,
            alone=self.world_size == 1,
        )

    def _row(
        self, case: Case, outcome: Outcome, operations: Mapping[str, float], default: Outcome | None
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"warmup_s": outcome.warmup_s, "epochs": len(outcome.epochs), "operations": operations}
        row |= {name: value for name, value in (("warnings", case.warnings), ("parity", case.parity)) if value}
        if outcome.skipped:
            row |= {"status": "skipped", "reason": outcome.skipped}
        if outcome.error:
            row |= {"status": "failed", "reason": outcome.error}
        if outcome.epochs:
            row["status"] = "failed" if outcome.error else "measured"
            if case.parity.get("parity/exceeded"):
                row["reason"] = "awm-train would refuse it: its images score otherwise, see parity"
            row |= measured(outcome.epochs, operations, self.ceiling, self.peak, self.world_size)
            if default is not None and default.epochs:
                row["ratio_to_default"] = ratios(outcome, default, by_processor=self.device.type == "cpu")
        return row

    def _profiles(self, cases: Mapping[str, Case], outcomes: Mapping[str, Outcome]) -> list[str]:
        folder = self.options.out.with_suffix("")
        wanted = dict.fromkeys([DEFAULT, *self.options.variants])
        written: list[str] = []
        for name in wanted:
            if name in outcomes and outcomes[name].epochs and not outcomes[name].error:
                part = name if self.world_size == 1 else f"{name}_rank{self.distributed.rank}"
                written += [str(path) for path in profile_epoch(cases[name], folder, part)]
        return written

    def _images(self, config: Any) -> int:
        return int(config.sample.num_prompts_per_epoch * config.sample.num_image_per_prompt)

    @property
    def peak(self) -> float | None:
        """What the maker says of the device."""
        return known_peak(self.result["device"]["name"], self.dtype)

    def _header(self) -> dict[str, Any]:
        options, config = self.options, self.config
        recipe = flatten(config_to_dict(configuration(self.model, ["--config.run_name=x"], self.folder)))
        changed = {k: v for k, v in flatten(config_to_dict(config)).items() if recipe[k] != v}
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "processor"
        origin = provenance(self.command, PACKAGES)
        result = {
            "benchmark": "throughput",
            "model": {"name": options.model, **self._parameters()},
            "device": {"type": self.device.type, "name": name, "threads": torch.get_num_threads()},
            "world_size": self.world_size,
            "recipe": self.model.recipe,
            "smaller_than_the_recipe": list(self.model.words),
            "changed": changed,
            "images_per_epoch": self._images(config),
            "resolution": config.resolution,
            "mixed_precision": config.mixed_precision,
            "warmup_epochs": options.warmup,
            "reward": {"ms_per_image": options.reward_ms, "share_of_tied_prompts": options.tied},
            **origin,
        }
        peak = known_peak(name, self.dtype)
        result["device"]["stated_operations_per_s"] = peak
        if self.device.type == "cuda":
            result["versions"] |= {"cuda": torch.version.cuda}
        return result

    def _parameters(self) -> dict[str, Any]:
        parts = build_weightless(self.config)

        def count(*modules: Any) -> int:
            return sum(parameter.numel() for module in modules for parameter in module.parameters())

        encoders = self.options.text_encoders
        return {
            "parameters": {
                "transformer": count(parts.transformer),
                "autoencoder": count(parts.autoencoder),
                "text_encoders": count(*parts.text_encoders),
            },
            "text_encoders": "T5 with 2 of its 24 layers" if encoders == "small" else "all layers",
            "weights": "random" if self.model.weightless else "shipped",
        }

    def _time_left(self) -> bool:
        """Whether another round may begin; the main rank's clock counts."""
        left = time.monotonic() - self.begun < 60 * self.options.minutes
        return bool(self.distributed.broadcast_object(left))

    def _say(self, text: str) -> None:
        if self.is_main:
            print(f"[{time.monotonic() - self.begun:5.0f} s] {text}", flush=True)

    def _write(self) -> None:
        self.result["took_s"] = time.monotonic() - self.begun
        if self.is_main:
            write_atomically(self.options.out, json.dumps(rounded(self.result), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Floats with five digits: more is noise, and makes files unreadable."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def print_table(result: Mapping[str, Any]) -> None:
    """A line for each variant, and the sweep if there was one."""
    print(
        f"\n{'':22} {'images/s':>9} {'ratio':>6} {'spread':>13} {'rollout':>8} {'train':>7} {'GiB':>6}  of the ceiling"
    )
    for name, row in result["variants"].items():
        if "images_per_s" not in row:
            print(f"{name:22} {row['status']}: {row['reason']}")
            continue
        ratio = row.get("ratio_to_default", {}).get("epoch", {"median": 1.0, "min": 1.0, "max": 1.0})
        seconds, share = row["seconds"], row["mfu_of_ceiling"]
        print(
            f"{name:22} {row['images_per_s']['median']:>9.3g} {ratio['median']:>6.2f} "
            f"{ratio['min']:>6.2f}-{ratio['max']:<6.2f} {seconds['rollout']['median']:>7.2f}s "
            f"{seconds['train']['median']:>6.2f}s {max(row['peak_memory_gib'].values()):>6.2f}  "
            f"rollout {share['rollout']:.0%}, train {share['train']:.0%}, epoch {share['epoch']:.0%}"
        )
    if "sweep" in result:
        print("\n" + "\n".join(sweep.table(result["sweep"]["of"], result["sweep"]["points"])))
