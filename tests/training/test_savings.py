"""Work that the trainer leaves out: what it changes nothing about, what it does, and that ranks stay together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.data.grouping import epoch_prompt_indices
from awm.training.metrics import read_metrics
from awm.training.trainer import Trainer
from awm.validation import OBJECTIVES, validate
from tests.training.rank_scenarios import train, train_all
from tests.training.ranks import run_ranks
from tests.training.test_engines import same_end, same_run, write  # noqa: F401  # the fixture
from tests.training.test_trainer import build

Make = Callable[..., ConfigDict]
ABLE = {"awm", "v_grpo", "flow_grpo", "flow_grpo_fast", "mix_grpo", "cps", "ddpo", "grpo_guard"}
# One image a batch: the same arithmetic whatever is left out between.
ONE = {"train__batch_size": 1, "eval_freq": 0}
NO_KL = {"train__beta": 0.0, "train__ema_beta": 0.0}


def seed_with(*places: int) -> int:
    """A seed whose epochs have the first prompt, the circle, at these places of four, of which three are used."""
    for seed in range(10_000):
        orders = [epoch_prompt_indices(seed, epoch, 4, 4) for epoch in range(len(places))]
        if [order.index(0) for order in orders] == list(places):
            return seed
    raise AssertionError(places)


def tied(make_config: Make, name: str, places: tuple[int, ...], **changes: Any) -> Trainer:
    """A run of as many epochs as there are places; only the circle's images differ in what they are worth."""
    config = make_config(run_name=name, seed=seed_with(*places), num_epochs=len(places), **(ONE | changes))
    with config.unlocked():
        config.reward_fn = ConfigDict({"tied_brightness": 1.0})
    return build(config)


def lines(trainer: Trainer) -> list[dict[str, Any]]:
    trainer.train()
    trainer.outputs.finish()
    return read_metrics(trainer.outputs.run / "metrics.jsonl")


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [tensor for part in trainer.policy.state_dict().values() for tensor in part.values()]


def rows_with_gradient(trainer: Trainer) -> list[int]:
    seen, velocity = [], trainer.policy.model.velocity

    def counting(x_t: torch.Tensor, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(len(x_t))
        return velocity(x_t, *args)

    trainer.policy.model.velocity = counting  # type: ignore[method-assign]
    return seen


def test_without_kl_terms_skipping_is_exact_down_to_the_last_bit(make_config: Make) -> None:
    """Two updates an epoch; in the second epoch nobody learns, and Adam's momentum still moves the weights."""
    options = NO_KL | {"train__updates_per_inner_epoch": 2}
    plain, skipping = (
        tied(make_config, f"skip_{skip}", (1, 3, 0), **options, train__skip_zero_advantage=skip)
        for skip in (False, True)
    )
    rows = rows_with_gradient(skipping)
    (first, second, third), skipped = lines(plain), lines(skipping)
    # 2 times each: 4 circles, then one image for nothing in each update, then 4 circles.
    assert rows == [2] * 4 + [2] * 2 + [2] * 4
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(skipping), strict=True))
    assert [line["skipped_fraction"] for line in skipped] == pytest.approx([2 / 3, 1.0, 2 / 3])
    assert skipped[1]["step"] == 4 and skipped[1]["grad_norm"] == 0 and skipped[1]["loss"] == 0
    for line, expected in zip(skipped, (first, second, third), strict=True):
        for name in ("loss", "loss/policy", "grad_norm"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    assert "skipped_fraction" not in first


def test_metrics_are_means_over_what_was_run(make_config: Make) -> None:
    skipping = tied(make_config, "metrics", (0, 3), train__skip_zero_advantage=True, train__beta=0.1)
    first, second = lines(skipping)
    assert first["ratio/mean"] == pytest.approx(1.0) and first["velocity_norm_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert first["velocity_mse"] > 0.3
    assert "velocity_mse" not in second and second["velocity_norm_ratio"] > 0  # of the probe
    assert second["loss"] == 0 and second["skipped_fraction"] == 1


def test_kl_terms_of_skipped_images_are_dropped_and_no_others(make_config: Make) -> None:
    """The anchor's, which is not zero in the epoch's second update."""
    options = {"train__beta": 0.0, "train__ema_beta": 1.0, "train__updates_per_inner_epoch": 2}
    found = {}
    for skip in (False, True):
        trainer = tied(make_config, f"kl_{skip}", (0,), **options, train__skip_zero_advantage=skip)
        found[skip] = lines(trainer)[0]
    assert found[True]["loss/policy"] == pytest.approx(found[False]["loss/policy"], rel=1e-3)
    assert 0 < found[True]["loss"] - found[True]["loss/policy"] < found[False]["loss"] - found[False]["loss/policy"]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_only_losses_without_a_word_on_skipped_images_may_skip_them(name: str, make_config: Make) -> None:
    from config.awm import get_config

    recipe = {"awm": "quickstart", "simpo": "quickstart_simpo_linear", "rfm": "quickstart_rfm"}
    config = get_config(recipe.get(name, f"quickstart_{name}"))
    config.train.skip_zero_advantage = True
    if name in ABLE:
        validate(config)
    else:
        with pytest.raises(ValueError, match=rf"train.algorithm='{name}' they teach, too; .*one of awm, flow_grpo"):
            validate(config)


def test_the_anchor_s_forward_is_spared_while_it_equals_the_weights(make_config: Make) -> None:
    """With kl_ema_decay=0 it does so at the start of every epoch: only second updates run it."""
    options = {"num_epochs": 3, "eval_freq": 0, "train__kl_ema_decay_type": "constant", "train__kl_ema_decay": 0.0}
    results = []
    for number, knows in enumerate((True, False)):
        trainer = build(make_config(run_name=f"run{number}", train__updates_per_inner_epoch=2, **options))
        policy, used = trainer.policy, []
        if not knows:
            policy.equals_current = lambda name: False  # type: ignore[method-assign]
        using = policy.using

        def recording(name: Any, using: Any = using, used: list[Any] = used) -> Any:
            used.append(name)
            return using(name)

        policy.using = recording  # type: ignore[method-assign]
        metrics = lines(trainer)
        results.append((used.count("anchor"), metrics, weights(trainer)))
    (spared, metrics, tensors), (made, expected, expected_tensors) = results
    assert (spared, made) == (3 * 2, 3 * 4)  # 12 images, 3 a micro-batch
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected_tensors, strict=True))
    for line, other in zip(metrics, expected, strict=True):
        assert line["loss/kl_anchor"] == other["loss/kl_anchor"] and line["loss"] == other["loss"]


def test_an_abandoned_epoch_leaves_no_set_that_is_taken_for_current(make_config: Make) -> None:
    trainer = build(make_config(num_epochs=1, eval_freq=0, train__updates_per_inner_epoch=2))
    undo = trainer.update.undo
    undo.remember()
    with torch.no_grad():
        for parameter in trainer.policy.trainable_parameters():
            parameter += 1.0
    trainer.policy.update_anchor(0.0)
    assert trainer.policy.equals_current("anchor")
    undo.go_back()
    assert not trainer.policy.equals_current("anchor")


class TestRanks:
    """Two ranks, the circle's group on the first one only: the second has nobody to train, in the second epoch both."""

    @pytest.fixture
    def files(self, write: Callable[..., str]) -> Callable[..., str]:  # noqa: F811
        def files(name: str, **changes: Any) -> str:
            places = (0, 3, 1)
            options = {"seed": seed_with(*places), "num_epochs": 3, "eval_freq": 0, "train__beta": 0.1}
            path = Path(write(name, **(options | {"train__skip_zero_advantage": True} | changes)))
            config = json.loads(path.read_text())
            config["reward_fn"] = {"tied_brightness": 1.0}
            path.write_text(json.dumps(config))
            return str(path)

        return files

    def test_several_ranks_are_one(self, files: Callable[..., str]) -> None:
        alone = run_ranks(1, train, "ddp", files("alone"))
        assert [line["skipped_fraction"] for line in alone["metrics"]] == pytest.approx([2 / 3, 1.0, 2 / 3])
        assert [line["step"] for line in alone["metrics"]] == [2, 4, 6]
        runs = [("ddp", files("ddp")), ("fsdp2", files("fsdp2")), ("ddp", files("threes", train__batch_size=3))]
        several = run_ranks(2, train_all, runs)
        for _, file in runs:
            same_end(several[file], alone)
            for line, expected in zip(several[file]["metrics"], alone["metrics"], strict=True):
                for name in ("loss", "loss/policy", "skipped_fraction", "grad_norm", "velocity_norm_ratio"):
                    assert line[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name

    def test_kl_times_belong_to_samples_not_to_ranks(self, write: Callable[..., str]) -> None:  # noqa: F811
        options = {"train__kl_timesteps": 1, "train__beta": 0.1, "num_epochs": 1, "eval_freq": 0}
        alone = run_ranks(1, train, "ddp", write("alone", **options))
        same_run(run_ranks(2, train, "fsdp2", write("sharded", **options)), alone)
