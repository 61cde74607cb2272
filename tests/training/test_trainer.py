"""What a run promises: its files, its numbers, and that it can be stopped and continued."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.building import build_trainer
from awm.rewards.errors import RewardError
from awm.rewards.remote import RemoteReward
from awm.training.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from awm.training.distributed import Distributed
from awm.training.metrics import read_metrics
from awm.training.stopping import StopRequest, StopRequestedError
from awm.training.trainer import Trainer
from awm.training.update import NonFiniteLossError
from awm.types import Rewards

Make = Callable[..., ConfigDict]
METRIC_KEYS = {
    *("epoch", "step", "reward/mean", "reward/std", "reward/jpeg_compressibility", "reward/zero_std_ratio"),
    *("reward/invalid_fraction", "loss/policy", "loss/kl_reference", "loss/kl_anchor", "grad_norm", "lr"),
    *("velocity_norm_ratio", "time/rollout_s", "time/reward_wait_s", "time/train_s", "time/epoch_s", "images_per_s"),
}


def build(config: ConfigDict) -> Trainer:
    distributed = Distributed(config.mixed_precision)
    return build_trainer(config, distributed, StopRequest(distributed))


def run(config: ConfigDict) -> Trainer:
    trainer = build(config)
    trainer.train()
    trainer.outputs.finish()
    return trainer


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what a clock or the machine decides."""
    clocks = ("time/", "images_per_s", "memory/")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in metrics]


def test_a_run_leaves_everything_the_configuration_page_lists(make_config: Make):
    config = make_config()
    run(config)
    folder = Path(config.logdir) / "run"
    metrics = read_metrics(folder / "metrics.jsonl")
    assert [line["epoch"] for line in metrics] == [0, 1, 2]
    assert set(metrics[1]) >= METRIC_KEYS
    assert "eval/jpeg_compressibility" in metrics[0]
    assert "eval/jpeg_compressibility" not in metrics[1]
    assert "eval/jpeg_compressibility" in metrics[2]
    assert metrics[1]["velocity_norm_ratio"] == pytest.approx(1.0)
    assert json.loads((folder / "config.json").read_text())["train"]["train_timesteps"] == 2
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["epoch_000001.png", "epoch_000002.png"]
    assert (folder / "report.html").stat().st_size > 10_000
    checkpoint = folder / "checkpoints" / "epoch_000002"
    assert {p.name for p in checkpoint.iterdir()} >= {"lora", "lora_average", "state.pt", "config.json"}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(make_config: Make):
    losses = []
    for number, seed in enumerate((1, 1, 2)):
        config = make_config(run_name=f"run{number}", seed=seed)
        run(config)
        losses.append(timeless(read_metrics(Path(config.logdir) / config.run_name / "metrics.jsonl")))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_sampling_and_training_batch_sizes_do_not_change_the_result(make_config: Make):
    states = []
    for name, changes in {
        "small": {},
        "large": {"sample__train_batch_size": 5, "train__batch_size": 7},
    }.items():
        config = make_config(run_name=name, eval_freq=0, **changes)
        states.append(run(config).policy.state_dict()["current"])
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__beta": 0.0},
        {"train__ema_beta": 0.0},
        {"train__beta": 0.0, "train__ema_beta": 0.0},
        {"train__off_policy": True},
        {"train__num_inner_epochs": 2, "train__updates_per_inner_epoch": 2},
        {"train__num_inner_epochs": 2, "train__old_policy": "current"},
        {"sample__guidance_scale": 3.0, "train__cfg": True},
        {"use_lora": False, "train__learning_rate": 1e-4},
        {"sample__sampler": "ddim"},
        {"sample__sampler": "flow_sde", "sample__noise_level": 0.7, "sample__sde_frac": 0.5},
        {"mixed_precision": "bf16"},
        {"time_type": "logit_normal", "train__weighting": "Uniform", "train__loss_type": "sum_first"},
        {"train__ema": False, "per_prompt_stat_tracking": False, "lora_type": "all"},
        {"train__gradient_checkpointing": True},
        {"reward_standardize": True},
    ],
    ids=lambda changes: ",".join(f"{k.split('__')[-1]}={v}" for k, v in changes.items()),
)
def test_every_option_trains(make_config: Make, changes: dict[str, Any]):
    config = make_config(num_epochs=2, eval_freq=0, **changes)
    trainer = build(config)
    before = [p.detach().clone() for p in trainer.policy.trainable_parameters()]
    trainer.train()
    trainer.outputs.finish()
    after = trainer.policy.trainable_parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    metrics = read_metrics(Path(config.logdir) / "run" / "metrics.jsonl")
    assert metrics[-1]["step"] == 2 * trainer.geometry.updates_per_epoch
    assert ("loss/kl_reference" in metrics[-1]) == (config.train.beta > 0)
    assert ("loss/kl_anchor" in metrics[-1]) == (config.train.ema_beta > 0)


def test_resuming_continues_as_if_never_stopped(make_config: Make):
    whole = make_config(run_name="whole", num_epochs=4)
    expected = run(whole).policy.state_dict()
    part = make_config(run_name="part", num_epochs=2)
    run(part)
    part.num_epochs, part.resume_from = 4, "auto"
    actual = run(part).policy.state_dict()
    for weights in expected:
        for name, tensor in expected[weights].items():
            assert torch.equal(tensor, actual[weights][name]), f"{weights} {name}"
    lines = [timeless(read_metrics(Path(c.logdir) / c.run_name / "metrics.jsonl")) for c in (whole, part)]
    assert lines[0] == lines[1]


def test_resume_refuses_another_configuration_and_names_the_difference(make_config: Make):
    run(make_config(num_epochs=1))
    with pytest.raises(CheckpointError, match=r"train.beta: 0.001 there, 0.5 now.*lora_path="):
        build(make_config(num_epochs=2, resume_from="auto", train__beta=0.5))


def test_a_run_folder_in_use_is_not_overwritten(make_config: Make):
    run(make_config(num_epochs=1))
    with pytest.raises(ValueError, match=r"already holds a run.*resume_from=auto"):
        build(make_config(num_epochs=1))


def test_a_checkpoint_by_its_path_continues_its_run_or_branches_off_but_never_mixes_two(make_config: Make):
    config = make_config(num_epochs=2, eval_freq=0)
    checkpoints = list_checkpoints(run(config).outputs.run / "checkpoints")
    older = make_config(num_epochs=3, eval_freq=0, resume_from=str(checkpoints[0]))
    with pytest.raises(ValueError, match=r"epoch_000001 is not its newest checkpoint.*another --config.run_name"):
        build(older)
    older.run_name = "branch"
    assert run(older).epoch == 3
    with pytest.raises(ValueError, match="branch already holds a run"):
        build(make_config(run_name="branch", num_epochs=3, eval_freq=0, resume_from=str(checkpoints[1])))
    newest = make_config(num_epochs=3, eval_freq=0, resume_from=str(checkpoints[1]))
    assert run(newest).epoch == 3


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(
    make_config: Make, capsys: pytest.CaptureFixture[str]
):
    config = make_config(num_epochs=3)
    run(config)
    newest = list_checkpoints(Path(config.logdir) / "run" / "checkpoints")[-1]
    (newest / "state.pt").write_bytes(b"torn")
    config.num_epochs, config.resume_from = 4, "auto"
    assert build(config).epoch == 2
    assert "is damaged: state.pt" in capsys.readouterr().out


def test_only_the_newest_checkpoints_are_kept(make_config: Make):
    config = make_config(num_epochs=4, num_checkpoint_limit=2, eval_freq=0)
    run(config)
    names = [p.name for p in list_checkpoints(Path(config.logdir) / "run" / "checkpoints")]
    assert names == ["epoch_000003", "epoch_000004"]


def test_a_failing_save_is_one_clear_error_and_keeps_the_earlier_checkpoint(make_config: Make):
    import resource

    trainer = run(make_config(num_epochs=1))
    folder = trainer.outputs.run / "checkpoints"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as a full disk: writes fail half way
    try:
        with pytest.raises(CheckpointError, match=r"could not save .*epoch_000002.*is still .*epoch_000001.*auto"):
            trainer.outputs.save(2, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in folder.iterdir()] == ["epoch_000001"]
    load_checkpoint(folder / "epoch_000001")


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """The run that the interrupted ones must equal, made by the first test that asks for it."""
    return {}


# Two batches and a last word in each evaluation; in each epoch six and a last word, two micro-batches in each of two
# optimizer steps, and one after it.
@pytest.mark.parametrize(
    ("questions", "epoch"),
    [(1, 0), (8, 0), (10, 0), (12, 0), (14, 1), (22, 1), (25, 1), (28, 2), (29, 2)],
    ids=["eval", "sample", "step 1", "step 2", "end", "2: step 1", "2: step 2", "2: eval", "2: end"],
)
def test_a_stop_request_saves_and_the_run_goes_on_from_there(
    make_config: Make, undisturbed: dict[str, Any], questions: int, epoch: int
):
    changes = {"num_epochs": 3, "save_freq": 100, "train__updates_per_inner_epoch": 2}
    config = make_config(**changes)
    trainer = build(config)
    answers = iter([False] * questions + [True] * 100)
    trainer.outputs.stop.agreed = lambda: next(answers)  # type: ignore[method-assign]
    with pytest.raises(StopRequestedError, match="resume_from=auto"):
        trainer.train()
    trainer.outputs.finish()
    config.resume_from = "auto"
    resumed = build(config)
    assert resumed.epoch == trainer.epoch == epoch
    resumed.train()
    resumed.outputs.finish()
    if not undisturbed:
        whole = run(make_config(run_name="whole", **changes))
        undisturbed["weights"] = whole.policy.state_dict()
        undisturbed["metrics"] = timeless(read_metrics(whole.outputs.run / "metrics.jsonl"))
    actual = resumed.policy.state_dict()
    for name, weights in undisturbed["weights"].items():
        assert all(torch.equal(tensor, actual[name][key]) for key, tensor in weights.items()), name
    assert timeless(read_metrics(resumed.outputs.run / "metrics.jsonl")) == undisturbed["metrics"]


def test_a_stop_request_is_heard_while_the_reward_server_is_missing(make_config: Make):
    trainer = build(make_config(num_epochs=1, eval_freq=0))
    stop = trainer.outputs.stop.requested
    trainer.rollout.reward = RemoteReward(["http://127.0.0.1:9"], "geneval", stop=stop)
    threading.Timer(0.5, stop.set).start()
    started = time.monotonic()
    with pytest.raises(StopRequestedError):
        trainer.train()
    assert time.monotonic() - started < 60  # the client would wait for the server for seven minutes
    trainer.outputs.finish()


def test_a_reward_that_fails_for_good_ends_the_run_with_everything_saved(make_config: Make):
    config = make_config(num_epochs=2, save_freq=100)
    trainer = build(config)
    reward = trainer.rollout.reward
    calls = itertools.count(1)

    def failing(images: Any, text: Any, metadata: Any) -> Rewards:
        if next(calls) > 6:  # the batches of the first epoch
            raise RewardError("geneval", "http://x", "is gone")
        return reward(images, text, metadata)

    trainer.rollout.reward = failing  # type: ignore[assignment]
    with pytest.raises(RewardError, match="is gone"):
        trainer.train()
    trainer.outputs.finish()
    config.resume_from = "auto"
    resumed = run(config)
    whole = make_config(run_name="whole", num_epochs=2, save_freq=100)
    run(whole)
    lines = [timeless(read_metrics(Path(c.logdir) / c.run_name / "metrics.jsonl")) for c in (config, whole)]
    assert resumed.step == 2 and lines[0] == lines[1]


class Nowhere:
    """A reward that fails for some images."""

    def __init__(self, invalid: int) -> None:
        self.invalid = invalid
        self.seen = 0

    def check(self) -> None: ...

    def __call__(self, images: Any, text: Any, metadata: Any) -> Rewards:
        total = images.mean((1, 2, 3)).clone()
        for row in range(len(total)):
            if self.seen < self.invalid:
                total[row] = torch.nan
            self.seen += 1
        return Rewards(total, {"brightness": total}, torch.isfinite(total))


def test_images_without_a_score_leave_the_batch(make_config: Make):
    trainer = build(make_config(num_epochs=1, eval_freq=0, reward_server__max_invalid_fraction=0.5))
    trainer.rollout.reward, trainer.rollout.workers = Nowhere(invalid=3), 1
    trainer.train()
    trainer.outputs.finish()
    metrics = read_metrics(trainer.outputs.run / "metrics.jsonl")[-1]
    assert metrics["reward/invalid_fraction"] == pytest.approx(3 / 12)
    assert metrics["grad_norm"] > 0


def test_an_update_without_any_valid_sample_is_no_step(make_config: Make):
    trainer = build(make_config(num_epochs=1, eval_freq=0, reward_server__max_invalid_fraction=1.0))
    before = trainer.policy.state_dict()
    trainer.rollout.reward = Nowhere(invalid=12)
    trainer.train()
    trainer.outputs.finish()
    assert trainer.step == 0
    after = trainer.policy.state_dict()
    assert all(torch.equal(after[s][n], w) for s, weights in before.items() for n, w in weights.items())


def test_too_many_missing_scores_stop_the_run_before_training(make_config: Make):
    trainer = build(make_config(num_epochs=1, eval_freq=0))
    trainer.rollout.reward, trainer.rollout.workers = Nowhere(invalid=3), 1
    with pytest.raises(RewardError, match=r"25% of the images of epoch 1 have no valid score.*max_invalid_fraction"):
        trainer.train()


def test_a_non_finite_loss_stops_before_the_step(make_config: Make):
    trainer = build(make_config(num_epochs=1, eval_freq=0))
    before = [p.detach().clone() for p in trainer.policy.trainable_parameters()]
    velocity = trainer.policy.model.velocity
    trainer.policy.model.velocity = lambda *a: velocity(*a) * (torch.nan if torch.is_grad_enabled() else 1)  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=r"loss on rank 0 in epoch 1, optimizer step 1 of 1.*abandoned"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(trainer.policy.trainable_parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "/nowhere"}, "no train prompts in /nowhere"),
        ({"sample__num_prompts_per_epoch": 9}, r"9 prompts per epoch, but .* has only 4"),
        ({"resolution": 33}, "33"),
        ({"pretrained__model": "/nowhere"}, "/nowhere"),
        ({"resume_from": "/nowhere/epoch_000001"}, "is not a checkpoint folder"),
        ({"sample__num_steps": 2, "train__train_timesteps": 6}, "train_timesteps=6 does not fit"),
    ],
)
def test_bad_input_is_refused_before_training(make_config: Make, changes: dict[str, Any], message: str):
    with pytest.raises((ValueError, CheckpointError), match=message):
        build(make_config(**changes))
