"""What the README names exists: recipes, keys, files, commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

from awm.configuration import default_config, flatten
from config.awm import RECIPES, get_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_recipes_and_overrides_exist():
    named = set(re.findall(r"config/awm\.py:(\w+)", README))
    assert named and named <= set(RECIPES)
    keys = flatten(default_config().to_dict())
    for key in re.findall(r"--config\.([\w.]+)=", README):
        assert key in keys or key.startswith("reward_fn") or key == "section.key", key


def test_the_parameter_table_has_the_values_of_the_recipe_it_names():
    values = flatten(get_config("geneval_sd3_no_cfg_1node").to_dict()) | {"reward_fn": "geneval=1", "trackers": "none"}
    table = README.split("## Parameters")[1].split("## What a run leaves")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 15
    for row in rows:
        section = ""
        names, shown = re.findall(r"`([\w.]+)`", row.split("|")[1]), row.split("|")[2].split(",")
        for name, value in zip(names, shown, strict=True):
            # A name without a section belongs to that of the name before it.
            section = name.rpartition(".")[0] or section
            key = name if "." in name or not section else f"{section}.{name}"
            given = value.strip().strip('"')
            assert given == str(values[key]) or float(given) == values[key], key


def test_files_and_scripts_exist():
    for name in re.findall(
        r"(?:bash|`)\s*((?:train_scripts|awm|dataset|tests|reward_server|benchmarks)/[\w./]+)", README
    ):
        assert (ROOT / name).exists(), name


def test_console_scripts_are_installed_by_setup():
    setup = (ROOT / "setup.py").read_text()
    for command in set(re.findall(r"\bawm-(?:train|eval|sample|lab|bench|reward-server)\b", README)):
        assert f'"{command} = ' in setup


def test_the_table_of_algorithms_has_the_numbers_of_the_comparison():
    section = re.search(r"<!-- WHICH -->(.*)<!-- /WHICH -->", README, re.DOTALL)
    assert section
    found = json.loads((ROOT / "benchmarks/results/algorithms/algorithms.json").read_text())
    rows = {row["arm"]: row for row in found["rows"]}
    scores = re.findall(r"`(\w+)` (\.\d{3}) ± (\.\d{3})", section[1])
    assert len(scores) > 10
    for arm, mean, error in scores:
        score = rows[arm]["score"]
        assert abs(float(mean) - score["mean"]) < 6e-4 and abs(float(error) - score["standard_error"]) < 6e-4, arm
    for arm, diversity in re.findall(r"`(\w+)` ([01]\.\d{2})(?!\d)", section[1]):
        assert abs(float(diversity) - rows[arm]["guards"]["diversity"]) < 6e-3, arm
    for arm, share in re.findall(r"`(\w+)` (\d\.\d)(?!\d)", section[1]):
        assert abs(float(share) - rows[arm]["seconds"][0] / rows["awm"]["seconds"][0]) < 0.06, arm
    assert ("not stable" in section[1].replace("*", "")) is not found["stability"]["is_stable"]
