"""What the bandit experiment promises."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from awm.flow.rng import SampleNoise
from awm.lab import bandits
from awm.lab.bandits.landscape import BROAD, ESCAPE, LIMIT, SHARP
from awm.lab.bandits.learning import FINAL, Arm, History, Loop, learn
from awm.lab.bandits.policy import BanditPolicy, pretrained, rollout
from awm.lab.bandits.posterior import local_weight
from awm.lab.bandits.studies import STUDIES, WEIGHTINGS, arms
from awm.lab.bandits.summary import mean_and_error, summarise
from awm.weightings import Weighting, kl_from_uniform

SEEDS = range(6)
LOOP = Loop(BROAD, mean=0.0, std=0.3, updates=10, iterations=12)


@pytest.fixture(scope="module")
def initial() -> BanditPolicy:
    return pretrained(SEEDS, mean=0.0, std=0.3, num_steps=150)


@pytest.fixture(scope="module")
def linear(initial: BanditPolicy) -> History:
    return learn(initial, LOOP, Arm("Linear", Weighting("linear")), SEEDS)


@pytest.fixture(scope="module")
def negative(initial: BanditPolicy) -> History:
    return learn(initial, LOOP, Arm("Lin. Neg.", Weighting("linear", floor=-2.0)), SEEDS)


@pytest.mark.parametrize("landscape", [ESCAPE, BROAD, SHARP])
def test_the_best_arm_is_worth_one(landscape) -> None:
    reward = landscape(torch.linspace(-LIMIT, LIMIT, 3001))
    assert landscape.best == 1.0 and reward.max().item() == pytest.approx(1.0) and reward.min() >= 0


def test_a_pretrained_policy_samples_the_initial_gaussian(initial: BanditPolicy) -> None:
    action = rollout(initial, SampleNoise(1, "test", 0, SEEDS).randn((2000,)))
    assert action.mean().item() == pytest.approx(0.0, abs=0.05)
    assert action.std(1).mean().item() == pytest.approx(0.3, abs=0.05)


def test_regret_falls(linear: History) -> None:
    assert linear.regret.shape == (13, 6) and (linear.regret >= 0).all()
    assert (linear.regret[-1] < 0.7 * linear.regret[0]).sum() == 6


def test_a_seed_does_not_depend_on_who_runs_beside_it(initial: BanditPolicy, linear: History) -> None:
    loop = replace(LOOP, iterations=FINAL + 2)
    alone = learn(pretrained([3], mean=0.0, std=0.3, num_steps=150), loop, Arm("Linear", Weighting("linear")), [3])
    torch.testing.assert_close(alone.regret[:3, 0], linear.regret[:3, 3], atol=2e-3, rtol=0)
    again = learn(initial, loop, Arm("Linear", Weighting("linear")), SEEDS)
    assert torch.equal(again.regret[:3], linear.regret[:3])
    assert not torch.equal(linear.regret[:, 0], linear.regret[:, 1])


def test_only_negative_weights_make_case_two(linear: History, negative: History) -> None:
    assert (linear.case_two == 0).all()
    assert (negative.case_two > 0).any(0).all() and negative.case_two.max() < 0.5


def test_every_seed_gets_its_own_temperature() -> None:
    reward = torch.rand(3, 2, 32, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 4]).reshape(3, 1, 1)
    weight, temperature = Arm("Exp", Weighting("exp"), kl=0.5).weigh(reward)
    torch.testing.assert_close(kl_from_uniform(weight).mean(1), torch.full((3,), 0.5), atol=1e-5, rtol=0)
    assert temperature.shape == (3, 1, 1) and temperature[0] < temperature[1] < temperature[2]
    fixed, _ = Arm("Exp", Weighting("exp"), temperature=0.5).weigh(reward)
    torch.testing.assert_close(fixed[0], Weighting("exp")(reward[0], 0.5))


def test_local_weight_by_hand() -> None:
    x_0, weight = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, -1.0]])
    x_t, t = torch.tensor([[0.25, 0.25, 9.0]]), torch.tensor([[0.5, 0.001, 0.5]])
    # Half way between the two noised actions both are as likely; close to the data, or far away, the nearer one counts.
    torch.testing.assert_close(local_weight(x_t, t, x_0, weight), torch.tensor([[0.5, 2.0, -1.0]]))


def test_an_anchor_of_minus_the_floor_leaves_no_case_two(initial: BanditPolicy) -> None:
    loop = replace(LOOP, iterations=2, anchor=2.01)  # beyond the rounding of E[W | x_t]
    anchored = learn(initial, loop, Arm("Lin. Neg.", Weighting("linear", floor=-2.0)), SEEDS)
    assert (anchored.case_two == 0).all()


def test_a_run_that_diverged_is_counted_and_disturbs_nobody(initial: BanditPolicy, linear: History) -> None:
    broken = copy.deepcopy(initial)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter[0] = math.nan
    history = learn(broken, replace(LOOP, iterations=FINAL + 2), Arm("Linear", Weighting("linear")), SEEDS)
    assert history.regret[:, 0].isnan().all()
    torch.testing.assert_close(history.regret[:3, 1:], linear.regret[:3, 1:])
    row = summarise(STUDIES["escape"], history, history)
    assert row.diverged == 1 / 6 and math.isfinite(row.regret) and row.difference == 0


def test_mean_and_error_ignore_lost_runs() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 3.0, math.nan]))
    assert (mean, error) == (2.0, pytest.approx(1.0))
    assert mean_and_error(torch.tensor([5.0])) == (5.0, 0.0)


def test_the_command_writes_table_curves_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("escape", "sharp-temperature", "unstable")
    for name in chosen:
        study = STUDIES[name]
        shorter = replace(study, loop=replace(study.loop, iterations=6, updates=1), arms=study.arms[:2])
        monkeypatch.setitem(STUDIES, name, shorter)
    monkeypatch.setattr("awm.lab.bandits.pretrained", lambda *a, **k: pretrained(*a, **k, num_steps=5))
    assert bandits.main(["--seeds", "2", "--out", str(tmp_path), "--study", *chosen], "awm-lab bandits") == 0
    record = json.loads((tmp_path / "bandits.json").read_text())
    assert record["command"].startswith(f"awm-lab bandits --seeds 2 --out {tmp_path} --study escape sharp-temperature")
    assert tuple(record["results"]) == chosen
    escape = record["results"]["escape"]
    assert list(escape["table"]) == [arm.name for arm in STUDIES["escape"].arms]
    assert len(escape["curves"]["Square"]["regret"]) == 7
    assert record["settings"]["studies"]["escape"]["loop"]["group_size"] == 32
    assert (tmp_path / "bandits.png").stat().st_size > 10_000
    assert "Figure 2" in capsys.readouterr().out
    drawn = (tmp_path / "bandits.png").read_bytes()
    (tmp_path / "bandits.png").unlink()
    assert bandits.main(["--redraw", "--out", str(tmp_path)], "awm-lab bandits") == 0
    assert (tmp_path / "bandits.png").stat().st_size == pytest.approx(len(drawn), rel=0.01)


def test_arms_share_their_target() -> None:
    assert [arm.weighting for arm in arms("Exp", "Linear", kl=0.7)] == [WEIGHTINGS["Exp"], WEIGHTINGS["Linear"]]
    assert {arm.kl for arm in arms("Exp", "Linear", kl=0.7)} == {0.7}


@pytest.mark.slow
def test_orderings_that_reproduce() -> None:
    """With 64 seeds and common random numbers; see benchmarks/results/lab/bandits.json for what does not reproduce."""
    names = ("escape", "broad-temperature", "sharp-temperature")
    rows = {}
    for name, histories in bandits.run({name: STUDIES[name] for name in names}, range(64)):
        first = next(iter(histories.values()))
        rows[name] = {arm: summarise(STUDIES[name], history, first) for arm, history in histories.items()}
    escape, broad, sharp = (rows[name] for name in names)
    for arm in ("Square", "Exp"):
        assert escape[arm].difference < -2 * escape[arm].difference_se
        assert escape[arm].success > escape["Linear"].success
    assert all(row.success < 0.6 for row in escape.values())
    assert broad["Square"].difference < -2 * broad["Square"].difference_se
    assert sharp["Square"].difference < 0
