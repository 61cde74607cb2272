"""What an objective is given beside advantages: the same whatever the ranks, and one error on all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from awm.configuration import config_to_dict
from awm.dry_run import dry_run
from awm.planning.plan import make_plan
from awm.rewards.errors import RewardError
from awm.rewards.mixture import MixtureReward
from awm.training.credit import Credit
from awm.training.distributed import Distributed
from awm.training.epoch_rewards import EpochRewards
from awm.training.metrics import read_metrics
from awm.training.reward_gradient import RewardGradient
from awm.training.rollout import RolloutResult
from awm.training.settings import Advantages
from awm.types import Condition, Experience, GroupWeights, Needs, Prompts, Rewards, Trajectory
from tests.helpers import FakePolicy, TinyFlow
from tests.training.rank_scenarios import Brightness, train
from tests.training.ranks import run_ranks
from tests.training.test_engines import SAME_CUTS, SMOOTH, same_run
from tests.training.test_trainer import build, run, timeless

Make = Callable[..., ConfigDict]
RFM = {"train__algorithm": "rfm", "train__weighting": "Uniform", "train__beta": 0.0}
# Noised so much, the random network's score is short enough to be of use; see ``rfm_gradient``.
COMBINED = RFM | {"train__rfm_estimator": "combined", "train__rfm_score_time": 0.3}
GAUSSIAN = RFM | {"train__rfm_estimator": "combined", "train__rfm_score": "gaussian"}
FORMS = {
    "noise": RFM,
    "combined": COMBINED,
    "gradient": RFM | {"train__rfm_estimator": "gradient"},
    "gaussian": GAUSSIAN,
    "anchored": RFM | {"train__rfm_form": "anchored"},
}


class Wants:
    """An objective that needs everything and says what it was given."""

    needs = Needs(reward_gradient=True, group_mates=True)

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def weigh(self, reward: Tensor, group: Tensor, valid: Tensor) -> GroupWeights:
        self.asked.append((reward, group, valid))
        return GroupWeights(torch.where(valid, 2.0, 0.0), {"weight/max": 2.0}, slope=3.0)

    def prepare(self, policy: Any, experience: Experience, **key: Any) -> tuple[Experience, dict[str, float]]:
        self.key = key
        return experience, {"seen": float(len(experience))}

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("credit is assigned before any loss is computed")


def epoch_of(count: int = 4) -> tuple[RolloutResult, EpochRewards, Prompts]:
    x_0 = torch.randn(count, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    condition = Condition(torch.zeros(1, 1, 2), torch.zeros(1, 2))
    total, valid = torch.arange(float(count)), torch.ones(count, dtype=torch.bool)
    total[1], valid[1] = torch.nan, False
    rewards = Rewards(total, {"a": total}, valid)
    rollout = RolloutResult(Trajectory(x_0, (1.0, 0.0)), condition, torch.zeros(count).long(), rewards, {}, {})
    group = torch.arange(count) // 2
    return rollout, EpochRewards(rewards, group), Prompts(("",) * count, group, ({},) * count)


def credit_for(objective: Any, score: Any, most_invalid: float = 0.5) -> Credit:
    policy = FakePolicy(TinyFlow())
    advantages = Advantages(True, True, 5.0, 1.0, most_invalid)
    gradient = RewardGradient(policy.model, score, 2)
    return Credit(policy, objective, advantages, Distributed(), 7, gradient)


def test_an_objective_gets_what_it_needs() -> None:
    objective = Wants()
    rollout, rewards, prompts = epoch_of()
    experience, metrics = credit_for(objective, lambda images, text: images.sum((1, 2, 3)))(
        rollout, rewards, prompts, 5
    )
    asked = objective.asked[0]
    assert asked[0].dtype == torch.float64 and asked[1] is rewards.group and asked[2] is rewards.rewards.valid
    assert metrics == {"weight/max": 2.0, "seen": 4.0} and objective.key["seed"] == 7 and objective.key["epoch"] == 5
    assert experience.weight is not None and experience.weight.tolist() == [2, 0, 2, 2]
    assert experience.mates is not None and experience.mates.sample_index.tolist() == [0, 2, 3]
    s = rollout.trajectory.x_0[:, :3].sigmoid()
    expected = 3 * s * (1 - s) * torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1, 1)
    assert experience.weight_gradient is not None
    torch.testing.assert_close(experience.weight_gradient[:, :3], expected)
    half = experience.take(torch.tensor([2, 0]))
    assert half.weight is not None and half.weight_gradient is not None
    assert torch.equal(half.weight_gradient, experience.weight_gradient[[2, 0]]) and half.mates is experience.mates


def test_an_objective_without_needs_gets_advantages_only() -> None:
    rollout, rewards, prompts = epoch_of()
    credit = credit_for(SimpleNamespace(needs=Needs()), None)
    experience, metrics = credit(rollout, rewards, prompts, 0)
    assert metrics == {} and experience.weight is None is experience.mates is experience.trajectory
    assert experience.advantage[2] == -experience.advantage[3] != 0 == experience.advantage[1]


def test_too_many_missing_rewards_and_failing_gradients_are_reward_errors() -> None:
    rollout, rewards, prompts = epoch_of()
    with pytest.raises(RewardError, match="25% of the images of epoch 6"):
        credit_for(Wants(), None, most_invalid=0.2)(rollout, rewards, prompts, 5)

    def broken(images: Tensor, text: Any) -> Tensor:
        raise RuntimeError("out of paint")

    with pytest.raises(RewardError, match="could not be computed: out of paint"):
        credit_for(Wants(), broken)(rollout, rewards, prompts, 0)


def test_a_mixture_follows_the_gradients_of_the_rewards_that_have_a_weight() -> None:
    class Plain:
        source = "plain"

        def check(self) -> None: ...

    bright, dark = Brightness("bright"), Brightness("dark")
    mixture = MixtureReward({"bright": (bright, 2.0), "dark": (dark, -0.5), "watched": (Plain(), 0.0)})  # type: ignore[dict-item]
    assert mixture.without_gradient() == []
    images = torch.rand(3, 3, 2, 2, requires_grad=True)
    score = mixture.score(images, ["a"] * 3)
    torch.testing.assert_close(score, 1.5 * images.mean((1, 2, 3)))
    (gradient,) = torch.autograd.grad(score.sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(images, 1.5 / 12))
    assert MixtureReward({"bright": (bright, 1.0), "plain": (Plain(), 1.0)}).without_gradient() == ["plain"]  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("changes", "reward", "message"),
    [
        ({}, "jpeg_compressibility", "'jpeg_compressibility' in reward_fn has none.*rfm_estimator='noise'"),
        ({"reward_standardize": True}, "brightness", "reward_standardize=True divides"),
        ({"train__rfm_form": "anchored"}, "brightness", "'anchored' has no use for gradients"),
    ],
)
def test_mistakes_end_before_the_model_is_loaded(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reward: str, message: str
) -> None:
    config = make_config(**COMBINED | changes)
    with config.unlocked():
        config.reward_fn = ConfigDict({reward: 1.0})
    monkeypatch.setattr("awm.building.trainer.build_policy", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=message):
        build(config)


def bright(make_config: Make, **changes: Any) -> ConfigDict:
    config = make_config(**{"eval_freq": 0} | changes)
    with config.unlocked():
        config.reward_fn = ConfigDict({"brightness": 1.0})
    return config


@pytest.mark.parametrize(
    ("world_size", "engine", "prompts", "images", "changes"),
    [
        pytest.param(2, "ddp", 3, 4, GAUSSIAN, id="two", marks=pytest.mark.slow),
        pytest.param(3, "ddp", 2, 6, COMBINED, id="three"),
        pytest.param(2, "fsdp2", 3, 4, COMBINED, id="fsdp2"),
    ],
)
def test_a_run_with_group_mates_and_gradients_does_not_depend_on_the_ranks(
    make_config: Make, tmp_path: Path, world_size: int, engine: str, prompts: int, images: int, changes: dict[str, Any]
) -> None:
    """Of three groups over two ranks the second crosses the border, of two over three ranks both do."""
    sizes = {"sample__num_prompts_per_epoch": prompts, "sample__num_image_per_prompt": images}
    options = SAME_CUTS | SMOOTH | changes | sizes | {"num_epochs": 1}
    several, alone = (bright(make_config, run_name=name, **options) for name in ("several", "alone"))
    paths = []
    for config in (several, alone):
        paths.append(tmp_path / f"{config.run_name}.json")
        paths[-1].write_text(json.dumps(config_to_dict(config)))
    expected = run_ranks(1, train, "ddp", str(paths[1]))
    fisher = expected["metrics"][-1]["rfm/fisher"]
    assert changes is GAUSSIAN or 0 < fisher < 1 / 0.3**2  # short enough that the gradient has a say
    same_run(run_ranks(world_size, train, engine, str(paths[0])), expected)


def test_resuming_continues_as_if_never_stopped(make_config: Make) -> None:
    """All that an epoch needs is made in it: no running estimate is left out of a checkpoint."""
    ends = {}
    for name, parts in {"whole": [2], "parts": [1, 2]}.items():
        for last in parts:
            config = bright(make_config, run_name=name, num_epochs=last, resume_from="auto", **COMBINED)
            ends[name] = run(config).policy.state_dict()["current"]
    for name, weights in ends["whole"].items():
        assert torch.equal(weights, ends["parts"][name]), name
    lines = [timeless(read_metrics(Path(config.logdir) / name / "metrics.jsonl")) for name in ends]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("form", ["noise", "combined", pytest.param("anchored", marks=pytest.mark.slow)])
def test_the_reward_rises_on_the_tiny_problem(make_config: Make, form: str) -> None:
    """Brightness, by more than the spread of single images. (The gradient alone means nothing at these times.)"""
    options = {"sample__num_image_per_prompt": 8, "sample__train_batch_size": 24, "train__batch_size": 24}
    run(bright(make_config, num_epochs=13, save_freq=99, train__ema_beta=0.0, **options | FORMS[form]))
    lines = read_metrics(Path(make_config().logdir) / "run" / "metrics.jsonl")
    mean = torch.tensor([line["reward/mean"] for line in lines])
    assert mean[-4:].mean() - mean[:2].mean() > lines[0]["reward/std"]


def test_a_dry_run_counts_the_forwards_of_every_form(make_config: Make) -> None:
    """One for the score near the data in an epoch, and that of the policy that sampled once it has moved."""
    counted = {}
    for form, changes in FORMS.items():
        config = make_config(train__updates_per_inner_epoch=2, train__ema_beta=0.0, **changes)
        plan = make_plan(config, world_size=1)
        counted[form] = (plan.training.plain, plan.training.trained)
    # Two times a sample; half of the samples are in the second update.
    assert counted == {
        "noise": (1, 2), "combined": (2, 2), "gradient": (2, 2), "gaussian": (1, 2), "anchored": (1, 2)
    }  # fmt: skip


def test_a_dry_run_tells_what_the_rewards_gradient_costs(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {}
    for form in ("noise", "combined"):
        dry_run(make_config(**FORMS[form]), 1)
        lines[form] = [line.split() for line in capsys.readouterr().out.splitlines() if "per image" in line]
    (decoding, gradient), (alone,) = lines["combined"][:2], lines["noise"][:1]
    assert decoding[:5] == alone[:5] and gradient[:4] == ["gradient", "of", "the", "reward,"]
    assert len(lines["combined"]) == len(lines["noise"]) + 1
