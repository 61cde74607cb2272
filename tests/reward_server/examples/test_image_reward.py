"""The worked example of a reward in its own environment, with a stand-in for the package it is about."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from reward_server.images import encode_image
from reward_server.scorers.base import Item, Scores
from reward_server.scorers.table import build_scorer
from reward_server.settings import ScorerSettings, load_settings
from reward_server.worker.handle import RawItem, Worker

FAKES = Path(__file__).parent / "fake_packages"
EXAMPLE = Path(__file__).parents[3] / "reward_server" / "examples" / "image_reward"
TARGET = f"{EXAMPLE / 'scorer.py'}:ImageRewardScorer"
WEIGHTS = hashlib.sha256(b"weights").hexdigest()[:16]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, importable as ``ImageReward`` and gone afterwards."""
    monkeypatch.setattr(sys, "path", [str(FAKES), *sys.path])
    import ImageReward

    yield ImageReward
    del sys.modules["ImageReward"]


def item(prompt: str, red: int) -> Item:
    return Item(np.full((6, 10, 3), (red, 0, 0), dtype=np.uint8), prompt, {})


@pytest.mark.usefixtures("package")
def test_scores_by_hand_in_order_and_in_batches(tmp_path: Path) -> None:
    scorer: Any = build_scorer(TARGET, {"batch_images": 2, "download_root": str(tmp_path)})
    outcomes = scorer([item("four", 100), item("x", 250), item("", 7), item("y" * 99, 0), item("ab", 30)])
    assert all(isinstance(outcome, Scores) for outcome in outcomes)
    # number of characters, at most 35, plus red / 1000
    assert [outcome.score for outcome in outcomes] == pytest.approx([4.1, 1.25, 0.007, 35.0, 2.03])
    assert scorer.model.batches == [2, 2, 1]
    assert scorer([]) == []


def test_named_model_is_downloaded_and_fingerprinted(package: Any, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    scorer = build_scorer(TARGET, {"device": "cpu", "download_root": str(root)})
    assert package.loaded == {
        "name": "ImageReward-v1.0",
        "device": "cpu",
        "download_root": str(root),
        "med_config": None,
    }
    assert scorer.fingerprint() == {"package": "1.5", "model": "ImageReward-v1.0", "weights": WEIGHTS}


def test_weights_may_be_a_file(package: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.pt"
    file.write_bytes(b"other weights")
    scorer = build_scorer(TARGET, {"model": str(file), "med_config": "med.json", "download_root": str(tmp_path)})
    assert package.loaded["name"] == str(file) and package.loaded["med_config"] == "med.json"
    versions = scorer.fingerprint()
    assert versions["model"] == "mine.pt" and versions["weights"] == hashlib.sha256(b"other weights").hexdigest()[:16]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ImageReward-v2"}, "expected one of ImageReward-v1.0, or a file"),
        ({"batch_images": 0}, "at least 1"),
        ({"batch": 2}, "cannot be made with options"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_scorer(TARGET, options | {"download_root": str(tmp_path)})


def test_runs_in_a_worker_process_with_its_own_path(tmp_path: Path) -> None:
    settings = ScorerSettings(
        TARGET,
        options={"download_root": str(tmp_path)},
        python=sys.executable,
        env={"PYTHONPATH": str(FAKES)},
    )
    worker = Worker("image_reward", settings, "cpu", max_pixels=1 << 16)
    try:
        hello = worker.start()
        outcomes, _ = worker.score([RawItem(encode_image(item("four", 100).image), "four", {})])
    finally:
        worker.kill()
    assert hello.versions == {"package": "1.5", "model": "ImageReward-v1.0", "weights": WEIGHTS}
    assert outcomes == [Scores(pytest.approx(4.1), {})]


def test_settings_of_the_readme_are_valid(tmp_path: Path) -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    content = yaml.safe_load(text)["scorers"]["image_reward"]
    content["python"] = sys.executable
    content["scorer"] = str(EXAMPLE.parents[2] / content["scorer"])  # the README's server.yaml lies at the root
    file = tmp_path / "server.yaml"
    file.write_text(yaml.safe_dump({"scorers": {"image_reward": content}}))
    scorers = load_settings(file)["scorers"]
    assert scorers["image_reward"].scorer == TARGET


def test_setup_script_parses_and_asks_for_a_directory() -> None:
    done = subprocess.run(["bash", str(EXAMPLE / "setup.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: bash setup.sh DIRECTORY" in done.stderr
