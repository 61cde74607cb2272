"""What faster weights promise a run: compared before they are used, refused if wrong, and the same run when resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm.building import build_optimizer
from awm.building.objects import _takes_one_kernel
from awm.building.trainer import _check_engine
from awm.configuration import config_to_dict, default_config
from awm.planning.plan import make_plan
from awm.rewards.errors import RewardError
from awm.training import parity, trainer
from awm.training.guardrails import Limits, breaches
from awm.training.host_copy import HostCopy
from awm.training.metrics import read_metrics
from awm.training.parity import Parity, ParityError, compare
from awm.types import Rewards
from tests.training.rank_scenarios import train_all
from tests.training.ranks import run_ranks
from tests.training.test_trainer import build, run

Make = Callable[..., ConfigDict]
NAN = float("nan")


def timeless(path: Path) -> list[dict[str, Any]]:
    clocks = ("time/", "images_per_s", "memory/")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in read_metrics(path)]


def test_a_comparison_by_hand():
    found = compare(torch.tensor([1.0, 0.0, 1.0, NAN]), torch.tensor([0.0, 0.0, 1.0, 1.0]), latent_gap=0.1)
    # d = -1, 0, 0; rewards 1 0 1 0 0 1 have variance 1/4; squares 2/3 + 1/4 over 3 * 2.
    assert (found.pairs, found.latent_gap) == (3, 0.1)
    assert found.gap == pytest.approx(-1 / 3)
    assert found.spread == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(((2 / 3 + 1 / 4) / 6) ** 0.5)
    logged = found.metrics(0.2)
    assert logged["parity/reward_gap"] == pytest.approx(-2 / 3)
    assert logged["parity/standard_error"] == pytest.approx(2 * found.standard_error)
    assert (logged["parity/latent_gap"], logged["parity/exceeded"]) == (0.1, 0.0)


def binary(count: int, right: int, lost: int, won: int = 0) -> Parity:
    """``right`` of ``count`` images are right; fast weights lose some of them and win some of the others."""
    plain, fast = torch.zeros(count), torch.zeros(count)
    plain[:right] = 1
    fast[lost : right + won] = 1
    return compare(plain, fast, latent_gap=0.1)


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (binary(64, 32, 0), False),  # nothing changed
        (binary(64, 32, 1), False),  # one image, by chance
        (binary(4, 2, 1), False),
        (binary(4, 2, 2), False),  # half of four: too few to say
        (binary(64, 32, 9, 8), False),  # many, but as many the other way
        (binary(64, 32, 20), True),  # most are lost
        (binary(64, 32, 0, 20), True),  # or won: another model all the same
        (binary(64, 64, 64), True),  # all
        (compare(torch.arange(64.0), torch.arange(64.0) + 8, latent_gap=0.1), True),  # every image a little: no chance
        (compare(torch.arange(64.0), torch.arange(64.0) + 2, latent_gap=0.1), False),  # 0.1 standard deviations
    ],
)
def test_the_rule_refuses_what_is_large_and_no_chance(found: Parity, refused: bool):
    assert found.exceeds(0.2) is refused


def test_where_rewards_say_nothing_the_images_decide():
    same = torch.zeros(64)
    assert not compare(same, same, latent_gap=0.4).exceeds(0.2)
    assert compare(same, same, latent_gap=0.6).exceeds(0.2)
    assert compare(torch.arange(64.0), torch.arange(64.0), latent_gap=NAN).exceeds(0.2)
    with pytest.raises(RewardError, match="of 2 pairs of images, 1 got both scores"):
        compare(torch.tensor([1.0, NAN]), torch.tensor([1.0, 1.0]), latent_gap=0.0)


def brightness(images: torch.Tensor, text: Any, metadata: Any) -> Rewards:
    total = images.mean((1, 2, 3))
    return Rewards(total, {"brightness": total}, torch.isfinite(total))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight pairs, and the second comparison after one epoch."""
    monkeypatch.setattr(parity, "IMAGES", 8)
    monkeypatch.setattr(trainer, "AGAIN_AFTER", 1)


@pytest.mark.usefixtures("few")
def test_a_merged_run_compares_twice_and_resumes_bit_for_bit(make_config: Make, capsys: pytest.CaptureFixture[str]):
    whole = make_config(run_name="whole", sample__merge_lora=True)
    expected = run(whole)
    assert capsys.readouterr().out.count("with faster weights: reward +0.0000") == 1  # B = 0: exact
    part = make_config(run_name="part", num_epochs=1, sample__merge_lora=True)
    run(part)
    part.num_epochs, part.resume_from = 2, "auto"
    actual = run(part)
    a, b = expected.policy.state_dict(), actual.policy.state_dict()
    assert all(torch.equal(tensor, b[name][key]) for name, weights in a.items() for key, tensor in weights.items())
    lines = [timeless(each.outputs.run / "metrics.jsonl") for each in (expected, actual)]
    assert lines[0][-1] == lines[1][-1]
    assert "parity/latent_gap" not in lines[0][1]
    assert 0 < lines[0][2]["parity/latent_gap"] < 1e-3 and lines[0][2]["parity/exceeded"] == 0
    assert {"eval/jpeg_compressibility", "reward/mean"} <= set(lines[0][2])


@pytest.mark.usefixtures("few")
def test_a_wrong_copy_is_refused_before_anything_is_trained(make_config: Make):
    built = build(make_config(sample__merge_lora=True))
    before = built.policy.state_dict()
    copy = built.policy.rollout_copy
    copy.transformer.proj_out = torch.nn.Linear(32, 16)
    torch.nn.init.zeros_(copy.transformer.proj_out.weight)
    torch.nn.init.constant_(copy.transformer.proj_out.bias, -5.0)  # x_0 = x_1 + 5 instead of noise about 0
    built.policy.model.decode = lambda x_0: x_0[:, :3].sigmoid()
    built.rollout.reward = brightness
    with pytest.raises(ParityError, match=r"sample other images.*sample\.max_reward_gap=0\.2.*Nothing has been"):
        built.train()
    after = built.policy.state_dict()
    assert all(torch.equal(after[s][n], w) for s, weights in before.items() for n, w in weights.items())
    assert built.epoch == 0 and not (built.outputs.run / "metrics.jsonl").exists()


@pytest.mark.usefixtures("few")
def test_both_comparisons_see_the_same_prompts_and_noise(make_config: Make):
    built = build(make_config(sample__merge_lora=True))
    seen: list[tuple[tuple[str, ...], torch.Tensor]] = []

    def reward(images: torch.Tensor, text: Any, metadata: Any) -> Rewards:
        seen.append((tuple(text), images))
        return brightness(images, text, metadata)

    built.rollout.reward, built.rollout.workers = reward, 1
    found = built.parity(0, built.epoch_sampler())
    plain, fast = seen[:4], seen[4:]
    assert [text for text, _ in plain] == [text for text, _ in fast]
    assert len({prompt for text, _ in plain for prompt in text}) == 3  # all of an epoch
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, fast, strict=True))  # B = 0
    assert (found.pairs, found.gap, found.latent_gap) == (8, 0.0, 0.0)


def test_a_grown_gap_is_warned_about():
    limits = Limits(**default_config().guardrails.to_dict())
    assert breaches({"parity/exceeded": 0.0, "parity/reward_gap": -0.1}, limits) == {}
    found = breaches({"parity/exceeded": 1.0, "parity/reward_gap": -0.4}, limits)
    assert "-0.40 standard deviations" in found["parity/reward_gap"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample__merge_lora": True, "use_lora": False}, "merges the LoRA, but use_lora is False"),
        ({"sample__fp8": True}, "set sample.merge_lora=True with it"),
        ({"sample__fp8": True, "sample__merge_lora": True}, "mixed_precision='no'; set it to 'bf16'"),
        (
            {"sample__fp8": True, "sample__merge_lora": True, "mixed_precision": "bf16"},
            "needs a GPU of compute capability 8.9 or more .* has no GPU",
        ),
        (
            {
                **{"train__algorithm": "flow_grpo", "sample__sampler": "flow_sde", "sample__sde_frac": 0.5},
                **{"sample__merge_lora": True},
            },
            "'flow_grpo' compares the likelihood of the rollout's steps",
        ),
        ({"sample__max_reward_gap": 0.0}, "sample.max_reward_gap=0.0 is not valid"),
    ],
)
def test_refusals_come_before_the_model_is_loaded(make_config: Make, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build(make_config(pretrained__model="/nowhere", **changes))
    if "GPU" not in message:  # which machine it will be is not known to a plan
        with pytest.raises(ValueError, match=message):
            make_plan(make_config(**changes), 1)


def test_cut_weights_are_refused(make_config: Make):
    engine = SimpleNamespace(name="FSDP2", forwards_are_collective=True, cuts_optimizer_state=True)
    distributed: Any = SimpleNamespace(engine=engine, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"needs whole weights on every rank, and FSDP2 cuts them; use DDP"):
        _check_engine(make_config(sample__merge_lora=True), distributed)
    _check_engine(make_config(), distributed)


def test_one_kernel_for_adamw_where_it_changes_no_committed_result(make_config: Make):
    class Holder:
        def __init__(self, device: str) -> None:
            self.device = torch.device(device)

        def trainable_parameters(self) -> list[Any]:
            return [SimpleNamespace(device=self.device)] * 2

    takes = {
        (device, precision): _takes_one_kernel(make_config(mixed_precision=precision), Holder(device))  # type: ignore[arg-type]
        for device in ("cpu", "cuda")
        for precision in ("bf16", "fp16")
    }
    assert [key for key, fused in takes.items() if fused] == [("cuda", "bf16")]
    parameters: Any = SimpleNamespace(trainable_parameters=lambda: [torch.nn.Parameter(torch.zeros(2))])
    assert build_optimizer(make_config(), parameters).param_groups[0]["fused"] is None


def test_images_on_the_host_are_at_hand_at_once():
    images = torch.rand(2, 3, 4, 4)
    assert HostCopy(images).wait() is images


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_of_a_gpu_arrive_whole_in_locked_memory():
    images = torch.rand(8, 3, 512, 512, device="cuda")
    copy = HostCopy(images)
    assert copy.wait().is_pinned() and torch.equal(copy.wait(), images.cpu())


def test_two_ranks_compare_together_and_train_as_one_process(make_config: Make, tmp_path: Path):
    expected = run(make_config(run_name="one", num_epochs=1, eval_freq=0, sample__merge_lora=True))
    config = make_config(run_name="two", num_epochs=1, eval_freq=0, sample__merge_lora=True)
    (path := tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    found = run_ranks(2, train_all, [("ddp", str(path))])[str(path)]
    assert found["shown"] == "DistributedDataParallel"  # what is trained is in its place again
    for name, weight in expected.policy.state_dict()["current"].items():
        torch.testing.assert_close(found["weights"]["current"][name], weight, rtol=1e-3, atol=1e-5)
