"""The import rules of the house: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RULES: dict[str, set[str]] = {
    "awm/types.py": set(),
    "awm/interfaces.py": {"awm.types"},
    "awm/registry.py": set(),
    "awm/flow": {"awm.flow"},
    "awm/advantages.py": set(),
    "awm/normalisers.py": set(),
    "awm/weightings.py": {"awm.normalisers"},
    "awm/temperature.py": {"awm.weightings"},
    "awm/samplers": {"awm.types", "awm.interfaces", "awm.flow", "awm.samplers"},
    "awm/objectives": {
        *("awm.types", "awm.interfaces", "awm.flow", "awm.samplers", "awm.objectives"),
        *("awm.weightings", "awm.temperature", "awm.reverse_matching"),
    },
    "awm/reverse_matching": {"awm.flow", "awm.reverse_matching"},
    "awm/lab": {
        *("awm.types", "awm.interfaces", "awm.registry", "awm.flow", "awm.samplers", "awm.objectives", "awm.lab"),
        *("awm.weightings", "awm.temperature", "awm.reverse_matching", "awm.provenance", "awm.report.style"),
        "awm.subcommands",
    },
    "awm/subcommands.py": {"awm.registry"},
    "awm/bench": {
        *("awm.bench", "awm.registry", "awm.subcommands", "awm.command_line", "awm.configuration", "awm.train"),
        *("awm.building.objects", "awm.planning.compute", "awm.planning.plan", "awm.data.prompts"),
        *("awm.models.flops", "awm.models.lora", "awm.models.weightless", "awm.training.metrics"),
        *("awm.held_out.records", "awm.provenance", "awm.quiet", "awm.report", "reward_server.process"),
        *("awm.planning.costs", "awm.validation"),
        # awm-bench throughput runs the trainer itself, and switches its savings off.
        *("awm.building", "awm.types", "awm.interfaces", "awm.data.grouping", "awm.models.sd3", "awm.training"),
        *("awm.objectives.noising", "awm.rewards.mixture", "awm.freed_memory", "awm.models.fused_gelu"),
    },
    "awm/models": {"awm.types", "awm.interfaces", "awm.models"},
    "awm/rewards": {"awm.types", "awm.interfaces", "awm.registry", "awm.rewards", "awm.images", "reward_server"},
    "awm/tiny": {"awm.tiny", "reward_server"},
    "awm/data": {"awm.types", "awm.registry", "awm.data"},
    "awm/report": {"awm.report", "awm.training.metrics"},
    "reward_server": {"reward_server"},
}
ONLY_IN = {
    "accelerate": {
        "awm/training/distributed.py",
        *(f"awm/training/engines/{name}.py" for name in ("choice", "fsdp2", "replicated", "zero")),
    },
    "ml_collections": {
        "awm/building/batch_sizes.py",
        "awm/building/objects.py",
        "awm/building/outputs.py",
        "awm/building/trainer.py",
        "awm/command_line.py",
        "awm/configuration.py",
        "awm/dry_run.py",
        "awm/evaluate.py",
        "awm/held_out/run.py",
        "awm/json_config.py",
        "awm/train.py",
        "awm/planning/compute.py",
        "awm/planning/memory.py",
        "awm/planning/plan.py",
        "awm/planning/proposal.py",
        "awm/validation/algorithms.py",
        "awm/validation/checks.py",
        "awm/validation/tables.py",
        "config/awm.py",
        "config/base.py",
        "config/reverse_matching.py",
        "config/rivals.py",
        "config/simpo.py",
    },
    "gymnasium": {f"awm/lab/control/{name}.py" for name in ("collector", "environments", "evaluation")},
    "torchvision": set(),
    "pickle": set(),
}


def sources(where: str) -> list[Path]:
    path = ROOT / where
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("where", RULES)
def test_modules_import_only_what_they_may(where: str):
    files = sources(where)
    assert files, f"{where} is gone; update the table"
    for file in files:
        for name in imports(file):
            if name.split(".")[0] in ("awm", "reward_server", "config", "dataset"):
                assert any(name == ok or name.startswith(ok + ".") for ok in RULES[where]), f"{file} imports {name}"


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_few_packages_have_one_home(package: str):
    found = {
        str(file.relative_to(ROOT))
        for where in ("awm", "reward_server", "config")
        for file in sources(where)
        if any(name.split(".")[0] == package for name in imports(file))
    }
    assert found <= ONLY_IN[package]
