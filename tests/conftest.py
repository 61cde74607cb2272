"""A random checkpoint of SD3's layout, and a run that takes seconds: four prompts, a reward computed in process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from awm.configuration import default_config

# A shell starts jobs in the background with SIGINT ignored, nohup does so with SIGHUP, and children would inherit that.
# With a handler in this process, it is the default in theirs.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_sd3 import build_tiny_sd3  # only now: tests that need no model do not wait for diffusers

    return build_tiny_sd3(tmp_path_factory.mktemp("checkpoints") / "tiny_sd3")


@pytest.fixture(scope="session")
def prompt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "train.txt").write_text(
        "".join(f"a photo of a {shape}\n" for shape in ("circle", "square", "star", "ring"))
    )
    (folder / "test.txt").write_text("a photo of a red circle\na photo of a blue square\na photo of a green star\n")
    return folder


@pytest.fixture
def make_config(checkpoint: Path, prompt_folder: Path, tmp_path: Path) -> Callable[..., ConfigDict]:
    def make(**changes: Any) -> ConfigDict:
        """Dots in keys are written as double underscores: train__beta=0."""
        config = default_config()
        config.run_name, config.logdir = "run", str(tmp_path / "logs")
        config.pretrained.model, config.resolution = str(checkpoint), 32
        config.dataset, config.prompt_fn = str(prompt_folder), "pickscore"
        config.mixed_precision, config.time_type = "no", "discrete_wo_init"
        config.num_epochs, config.save_freq, config.eval_freq = 2, 1, 2
        config.sample.num_prompts_per_epoch, config.sample.num_image_per_prompt = 3, 4
        config.sample.num_steps, config.sample.eval_num_steps, config.sample.noise_level = 6, 4, 0.4
        config.sample.train_batch_size, config.sample.test_batch_size = 2, 2
        config.train.batch_size, config.train.train_timesteps = 3, 2
        config.lora_rank, config.lora_alpha = 4, 8
        config.train.learning_rate = 1e-2
        with config.unlocked():
            config.reward_fn = ConfigDict({"jpeg_compressibility": 1.0})
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (config[section] if section else config)[name] = value
        return config

    return make
