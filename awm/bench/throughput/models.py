"""What is measured: a recipe on a model, with fewer images an epoch, so that every variant has its turn in minutes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from awm.command_line import parse

RECIPES = "config/awm.py"
NEVER = 10**9  # epochs


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model to measure.

    Attributes:
        recipe: whose settings an epoch has.
        words: what is smaller than there.
        points: sweep -> the values it visits unless others are given.
        weightless: whether it has to be given random weights.
    """

    recipe: str
    words: tuple[str, ...]
    points: dict[str, tuple[int, ...]]
    weightless: bool = False


MODELS: dict[str, BenchModel] = {
    # 64 images; two sampling batches, so that scoring can overlap; 32 images in a training forward, as in the recipe.
    "tiny": BenchModel(
        "quickstart",
        (
            "--config.sample.num_prompts_per_epoch=8",
            "--config.sample.train_batch_size=32",
            "--config.train.updates_per_inner_epoch=2",
        ),
        {
            "images_per_prompt": (4, 8, 16),
            "resolution": (32, 64, 128),
            "prompts": (4, 8, 16),
            "world_size": (1, 2, 4),
        },
    ),
    # 24 images: four sampling batches and eight training forwards as in the recipe, in some six seconds on an H200.
    "sd35m_random": BenchModel(
        "geneval_sd3_no_cfg_1node",
        ("--config.sample.num_prompts_per_epoch=2", "--config.sample.num_image_per_prompt=12"),
        {
            "images_per_prompt": (6, 12, 24),
            "resolution": (256, 512, 768),  # 18 rows of 1,024 pixels a side do not fit 141 GiB
            "prompts": (1, 2, 4),
            "world_size": (1,),
        },
        weightless=True,
    ),
}


def configuration(model: BenchModel, words: Sequence[str], folder: Path) -> Any:
    """The recipe with the model's and the given changes; nothing of it evaluates, saves or asks a server.

    Args:
        model: what is measured.
        words: overrides, ``--config.key=value``; later ones win.
        folder: where the run folder goes, and where the model is if it is ``weightless``.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    fixed = [
        f"--config={RECIPES}:{model.recipe}",
        "--config.reward_fn=stub=1",
        *([f"--config.pretrained.model={folder / 'checkpoint'}"] if model.weightless else []),
        *model.words,
    ]
    last = [
        f"--config.logdir={folder / 'logs'}",
        "--config.run_name=throughput",
        f"--config.num_epochs={NEVER}",
        f"--config.save_freq={NEVER}",
        "--config.eval_freq=0",
    ]
    return parse([*fixed, *words, *last], program="awm-bench throughput", purpose="")


@contextmanager
def prepared(model: BenchModel, text_encoders: str) -> Iterator[Path]:
    """A folder for the length of the benchmark, with the model's configs in it if it is ``weightless``."""
    with TemporaryDirectory(prefix="awm-throughput-") as name:
        folder = Path(name)
        if model.weightless:
            from awm.bench.throughput.medium import medium_configs, write_checkpoint

            write_checkpoint(folder / "checkpoint", medium_configs(text_encoders))
        yield folder


class Loading:
    """How the models of a benchmark come by their weights: from their checkpoint, or drawn at random."""

    def installed(self) -> AbstractContextManager[None]:
        """Is entered while a trainer is built."""
        return nullcontext()

    def shared_bytes(self, model: Any = None) -> int:
        """Memory that the trainers of a benchmark have in common; with ``model``, an SD3, what it uses of that."""
        return 0


def loading(model: BenchModel, config: Any) -> Loading:
    """How ``config``'s model is loaded."""
    if not model.weightless:
        return Loading()
    from awm.bench.throughput.random_weights import RandomWeights

    return RandomWeights(Path(config.pretrained.model), share=bool(config.use_lora))
