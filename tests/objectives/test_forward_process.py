"""What is shared by objectives on the forward process: KL terms at some of the times, and forwards that are spared."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.flow.rng import SampleNoise
from awm.objectives.awm import AWM
from awm.objectives.crd import CRD
from awm.objectives.dgpo import DGPO
from awm.objectives.nft import DiffusionNFT
from awm.objectives.noising import NoisedBatch, random_times
from awm.objectives.rfm import RFM
from awm.objectives.simpo import SiMPO
from awm.objectives.v_grpo import VGRPO
from awm.types import GroupMates, LossOutput
from tests.helpers import FakePolicy, TinyFlow, make_experience, on_forward_process

KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0}
DOUBLE = torch.float64
KL: dict[str, Any] = {"beta": 0.3, "ema_beta": 0.7, "kl_ema_weight": "ELBO", "train_timesteps": 4}


def make_policy(*moved: str, dtype: torch.dtype = DOUBLE) -> FakePolicy:
    """A policy whose sets ``moved`` differ from the current weights, each in its own way."""
    policy = FakePolicy(TinyFlow(dtype=dtype))
    for number, name in enumerate(moved, start=1):
        policy.sets[name]["weight"] += number * torch.tensor([0.2, -0.1, 0.3], dtype=dtype)
    return policy


def gradient(policy: FakePolicy, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss.mean(), policy.model.weight)[0]


class TestKLTimesteps:
    batch = make_experience(dtype=DOUBLE)

    def awm(self, policy: FakePolicy, *, on_policy: bool = True, **options: Any) -> LossOutput:
        awm = on_forward_process(AWM, **(KL | options))
        out: LossOutput = awm(policy, self.batch, **KEY, on_policy=on_policy)
        return out

    def test_only_the_forwards_of_the_kl_terms_shrink(self) -> None:
        policy = make_policy()
        self.awm(policy, kl_timesteps=3)
        assert policy.used == ["reference", "anchor"]
        assert policy.model.calls == [(15, False), (15, False), (20, True)]

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_loss_and_gradient_are_right_on_average_over_all_subsets(
        self, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exactly so: a sample's subsets are equally likely, which the next test checks."""
        policy = make_policy("reference", "anchor")
        whole = self.awm(policy)
        subsets = list(itertools.combinations(range(4), count))
        losses, gradients = [], []
        for subset in subsets:
            times = torch.tensor(subset)[:, None].expand(-1, len(self.batch))
            monkeypatch.setattr("awm.objectives.forward_process.random_times", lambda *_, times=times: times)
            out = self.awm(policy, kl_timesteps=count)
            losses.append(out.loss.detach())
            gradients.append(gradient(policy, out.loss))
            assert torch.equal(out.metrics["loss/policy"], whole.metrics["loss/policy"])
        torch.testing.assert_close(torch.stack(losses).mean(0), whole.loss.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(torch.stack(gradients).mean(0), gradient(policy, whole.loss), rtol=1e-12, atol=1e-14)
        assert torch.stack(losses).std(0).min() > 1e-4  # and no subset is all there is

    def test_subsets_are_equally_likely_and_without_repetition(self) -> None:
        times = random_times(SampleNoise(0, "test", 0, range(6000)), 4, 2)
        assert (
            times.shape == (2, 6000) and (times[0] != times[1]).all() and set(times.unique().tolist()) == {0, 1, 2, 3}
        )
        _, counts = times.sort(dim=0).values.unique(dim=1, return_counts=True)
        assert len(counts) == 6
        # Chi-square with 5 degrees of freedom: 20.5 is exceeded once in a thousand seeds.
        assert ((counts - 1000).square() / 1000).sum() < 20.5

    def test_they_are_the_sample_s_own_and_new_in_every_pass(self) -> None:
        forward = on_forward_process(AWM, kl_timesteps=2, **KL).forward
        times = forward.noised(self.batch, **KEY).kl_times
        assert times is not None and times.shape == (2, 5)
        part = forward.noised(self.batch.take(torch.tensor([3, 0])), **KEY).kl_times
        assert part is not None and torch.equal(part, times[:, [3, 0]])
        many = replace(make_experience(batch=40), sample_index=torch.arange(40))
        first = forward.noised(many, **KEY).kl_times
        assert first is not None and torch.equal(first, forward.noised(many, **KEY).kl_times)
        for other in ({"seed": 1}, {"epoch": 4}, {"inner_epoch": 1}):
            assert not torch.equal(first, forward.noised(many, **(KEY | other)).kl_times)

    def test_the_noise_is_that_without_them(self) -> None:
        all_times, some = (
            on_forward_process(AWM, **KL, kl_timesteps=count).forward.noised(self.batch, **KEY) for count in (None, 2)
        )
        assert torch.equal(all_times.x_t, some.x_t) and torch.equal(all_times.t, some.t)

    @pytest.mark.parametrize("options", [{"kl_timesteps": 4}, {"kl_timesteps": 2, "beta": 0.0, "ema_beta": 0.0}])
    def test_all_times_or_no_kl_change_nothing(self, options: dict[str, Any]) -> None:
        policy = make_policy("reference", "anchor")
        out, plain = self.awm(policy, **options), self.awm(policy, **(options | {"kl_timesteps": None}))
        assert torch.equal(out.loss, plain.loss)
        assert torch.equal(gradient(policy, out.loss), gradient(policy, plain.loss))

    def test_ratios_to_the_anchor_are_at_all_times(self) -> None:
        policy = make_policy("reference", "anchor")
        out, whole = (self.awm(policy, off_policy=True, kl_timesteps=count) for count in (1, None))
        for name in ("loss/policy", "ratio/mean", "loss/kl_anchor"):
            assert torch.equal(out.metrics[name], whole.metrics[name])
        assert not torch.equal(out.metrics["loss/kl_reference"], whole.metrics["loss/kl_reference"])
        assert policy.model.calls[:3] == [(5, False), (20, False), (20, True)]

    def test_an_objective_s_own_velocities_are_at_all_times(self) -> None:
        policy = make_policy("reference", "anchor")
        runs = [
            on_forward_process(DiffusionNFT, **KL, kl_timesteps=k)(policy, self.batch, **KEY, on_policy=True)
            for k in (1, None)
        ]
        assert torch.equal(runs[0].metrics["loss/policy"], runs[1].metrics["loss/policy"])
        assert policy.model.calls[:3] == [(5, False), (20, False), (20, True)]
        policy.model.calls.clear()
        dgpo = on_forward_process(DGPO, **KL, kl_timesteps=1, group_noise=True)
        dgpo.prepare_step(policy, [self.batch], **KEY, on_policy=True, gather=lambda values: values)
        assert policy.model.calls == [(20, False), (20, False)]

    def test_times_that_start_from_the_score_s_level_keep_them(self) -> None:
        policy = make_policy(dtype=torch.float32)
        rfm = on_forward_process(RFM, **KL, kl_timesteps=1, rfm_estimator="combined")
        batch = make_experience()
        weight = rfm.weigh(torch.arange(5.0), batch.group, batch.valid).value
        mates = GroupMates(batch.x_0, batch.group, batch.sample_index, weight)
        batch = replace(batch, weight=weight, mates=mates, weight_gradient=torch.zeros_like(batch.x_0))
        batch, _ = rfm.prepare(policy, batch, seed=0, epoch=3, gather=lambda values: values)
        policy.model.calls.clear()
        rfm(policy, batch, **KEY, on_policy=True)
        assert policy.model.calls == [(5, False), (5, False), (20, True)]

    @pytest.mark.parametrize("count", [0, 5])
    def test_more_than_there_are_is_refused(self, count: int) -> None:
        with pytest.raises(ValueError, match=rf"train.kl_timesteps={count} is how many .*train_timesteps=4 .* 1 to 4"):
            on_forward_process(AWM, **KL, kl_timesteps=count)

    def test_chosen_times_have_their_states_and_conditions(self) -> None:
        noised: NoisedBatch = on_forward_process(AWM, **KL).forward.noised(self.batch, **KEY)
        times = torch.tensor([[3, 0, 1, 2, 2], [1, 2, 3, 0, 1]])
        part = noised.at(times)
        for row, sample in itertools.product(range(2), range(5)):
            time = int(times[row, sample])
            for name in ("x_t", "t", "target"):
                assert torch.equal(getattr(part, name)[row, sample], getattr(noised, name)[time, sample])
            packed, whole = part.condition, noised.condition
            assert torch.equal(packed.embeds[row * 5 + sample], whole.embeds[time * 5 + sample])
            assert torch.equal(packed.pooled[row * 5 + sample], whole.pooled[time * 5 + sample])


class TestForwardsThatAreSpared:
    """While the policy knows that a set equals current, nothing but the number of forwards may differ."""

    batch = replace(make_experience(), weight=torch.linspace(0.2, 1.8, 5))

    @pytest.mark.parametrize(
        ("kind", "options", "equal", "used"),
        [
            (AWM, KL, {"anchor"}, ["reference", "rollout"]),
            (AWM, KL, {"anchor", "rollout"}, ["reference"]),
            (AWM, KL, {"rollout"}, ["reference", "anchor"]),
            (AWM, KL | {"kl_timesteps": 2}, {"anchor"}, ["reference", "rollout"]),
            (AWM, KL | {"off_policy": True}, {"anchor"}, ["reference"]),
            (
                VGRPO,
                KL | {"group_noise": True, "clip_range": 0.1, "vgrpo_kl": 0.5},
                {"rollout"},
                ["reference", "anchor"],
            ),
            (DiffusionNFT, KL, {"anchor"}, ["reference"]),
            (SiMPO, KL, {"anchor", "rollout"}, ["reference"]),
        ],
    )
    def test_loss_and_gradient_are_the_same_bits(
        self, kind: Any, options: dict[str, Any], equal: set[str], used: list[str]
    ) -> None:
        objective, policy = on_forward_process(kind, **options), make_policy("reference", dtype=torch.float32)
        results = []
        for known in (set(), equal):
            policy.equal = set(known)
            policy.used.clear()
            out = objective(policy, self.batch, **KEY, on_policy=False)
            results.append((out, gradient(policy, out.loss)))
        (out, slope), (spared, spared_slope) = results
        assert policy.used == used
        assert torch.equal(out.loss, spared.loss) and torch.equal(slope, spared_slope)
        assert out.metrics.keys() == spared.metrics.keys()
        if "kl_timesteps" not in options:
            assert all(torch.equal(value, spared.metrics[name]) for name, value in out.metrics.items())

    def test_what_is_reused_has_no_gradient(self) -> None:
        policy = make_policy()
        policy.equal = {"anchor"}
        forward = on_forward_process(AWM, **KL).forward
        v = forward.velocities(policy, forward.noised(make_experience(dtype=DOUBLE), **KEY))
        assert v.anchor is not None and not v.anchor.requires_grad and v.current.requires_grad

    def test_a_set_that_is_not_asked_for_is_not_there(self) -> None:
        policy = make_policy()
        policy.equal = {"anchor", "rollout"}
        forward = on_forward_process(AWM).forward
        v = forward.velocities(policy, forward.noised(make_experience(dtype=DOUBLE), **KEY))
        assert v.anchor is None and v.rollout is None and v.reference is None

    def test_the_reference_is_never_taken_for_current(self) -> None:
        policy = make_policy()
        policy.equal = {"reference", "average"}
        on_forward_process(AWM, **KL)(policy, make_experience(dtype=DOUBLE), **KEY, on_policy=True)
        assert policy.used == ["reference", "anchor"]

    @pytest.mark.parametrize(("equal", "used"), [(set(), ["anchor", "current"]), ({"anchor"}, ["current"])])
    def test_two_that_are_compared_without_gradient_share_a_forward(self, equal: set[str], used: list[str]) -> None:
        policy, batch = make_policy(), make_experience(dtype=DOUBLE)
        policy.equal = equal
        crd = on_forward_process(CRD, group_noise=True)
        terms = crd.prepare_step(policy, [batch], **KEY, on_policy=True, gather=lambda values: values)
        assert policy.used == used
        policy.equal = set()
        plain = crd.prepare_step(policy, [batch], **KEY, on_policy=True, gather=lambda values: values)
        assert torch.equal(terms[0], plain[0])
