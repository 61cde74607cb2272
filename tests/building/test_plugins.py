"""Adding a plug-in is one class and one table row: the README's objective trains, a new sampler samples."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from awm import validation
from awm.building import build_objective, build_optimizer, build_sampler, make_sampler
from awm.flow.path import batch_time
from awm.training.metrics import read_metrics
from awm.types import Trajectory
from tests.training.test_trainer import build

SECTION = (Path(__file__).parents[2] / "README.md").read_text().split("## Make it yours")[1].split("\n## ")[0]
Make = Callable[..., ConfigDict]


class Midpoint:
    """Second order in the time itself; as a newcomer would write it."""

    def __init__(self, *, grid: tuple[float, ...]) -> None:
        self.grid = grid

    def __call__(self, velocity: Any, x_1: Tensor, randn: Any, *, keep_states: bool = False) -> Trajectory:
        x = x_1
        for t, s in pairwise(self.grid):
            middle = x + (s - t) / 2 * velocity(x, batch_time(t, x))
            x = x + (s - t) * velocity(middle, batch_time((s + t) / 2, x))
        return Trajectory(x, self.grid)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's objective, pasted into a file, as ``fine_tuning``, and the sampler above as ``midpoint``."""
    (block,) = re.findall(r"```python\n(.*?class FineTuning.*?)```", SECTION, flags=re.DOTALL)
    (tmp_path / "newcomer.py").write_text(textwrap.dedent(block))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "newcomer", raising=False)
    for registry in (validation.OBJECTIVES, validation.SAMPLERS):
        monkeypatch.setattr(registry, "table", dict(registry.table))
    validation.OBJECTIVES.add("fine_tuning", "newcomer:FineTuning")
    validation.SAMPLERS.add("midpoint", f"{__name__}:Midpoint")


def test_a_new_objective_and_a_new_sampler_train(plugins: None, make_config: Make) -> None:
    config = make_config(eval_freq=0, save_freq=2, train__algorithm="fine_tuning", sample__sampler="midpoint")
    config.sample.eval_sampler = "midpoint"
    trainer = build(config)
    before = [p.detach().clone() for p in trainer.policy.trainable_parameters()]
    trainer.train()
    trainer.outputs.finish()
    assert type(trainer.update.objective).__module__ == "newcomer" and trainer.step == 2
    assert not all(torch.equal(a, b) for a, b in zip(trainer.policy.trainable_parameters(), before, strict=True))
    lines = read_metrics(trainer.outputs.run / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert line["velocity_mse"] > line["loss/policy"] > 0  # images that do not beat their group cost nothing
        assert line["grad_norm"] > 0 and "ratio/mean" not in line  # nobody else's loss


def test_plug_ins_get_the_settings_their_constructors_name(plugins: None, make_config: Make) -> None:
    config = make_config(train__algorithm="fine_tuning", train__train_timesteps=3, time_type="discrete")
    objective: Any = build_objective(config)
    assert objective.forward.noise.num_times == 3 and objective.forward.noise.kind == "discrete"
    objective = build_objective(make_config(train__beta=0.25, train__ema_beta=0.0))
    assert (objective.forward.beta, objective.forward.ema_beta) == (0.25, 0.0)
    sampler: Any = build_sampler(make_config(sample__noise_level=0.7, sample__sde_frac=0.5), "flow_sde", 4)
    assert [step.std > 0 for step in sampler.steps] == [True, True, False, False]


def test_only_a_solver_that_asks_for_it_gets_a_grid_with_edited_ends() -> None:
    starts = {name: make_sampler(name, 6, 3.0).grid[0] for name in validation.SAMPLERS}  # type: ignore[attr-defined]
    assert starts.pop("sa_solver") == 0.999
    assert set(starts.values()) == {1.0}


def test_guidance_reaches_the_objective_only_if_it_is_trained(make_config: Make) -> None:
    for cfg, expected in ((False, 1.0), (True, 4.5)):
        objective: Any = build_objective(make_config(sample__guidance_scale=4.5, train__cfg=cfg))
        assert objective.forward.guidance_scale == expected


def test_the_optimizer_is_adamw_with_the_given_numbers(make_config: Make) -> None:
    policy: Any = SimpleNamespace(trainable_parameters=lambda: [torch.nn.Parameter(torch.zeros(2))])
    config = make_config(train__adam_beta1=0.8, train__adam_weight_decay=0.5)
    group = build_optimizer(config, policy).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (1e-2, (0.8, 0.999), 0.5, 1e-8)
