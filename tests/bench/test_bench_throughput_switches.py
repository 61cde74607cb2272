"""Each variant of ``awm-bench throughput`` really switches, and the exact ones compute the same numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GELU
from diffusers.models.normalization import RMSNorm
from ml_collections import ConfigDict
from peft.tuners.lora import Linear as LoraLinear

from awm.bench.throughput.case import Case
from awm.bench.throughput.patching import replaced
from awm.bench.throughput.stub import StubReward
from awm.bench.throughput.switches import MakeSwitch
from awm.bench.throughput.variants import APART, COMMON, DEFAULT, TABLE, WITHOUT, check_names, refusal, resolve
from awm.models import fused_gelu
from awm.models.adapted_linear import AdaptedLinear
from awm.models.fused_gelu import FusedGelu
from awm.models.rms_norm import RmsNormInPieces
from awm.models.short_attention import ShortAttention

Make = Callable[..., ConfigDict]
IMAGES, PROMPTS, TIMES, MICRO = 12, 3, 2, 3
needs_fused_gelu = pytest.mark.skipif(not fused_gelu.is_available(), reason="needs a processor with bfloat16 products")
EXACT = [name for name, variant in WITHOUT.items() if variant.exact] + [COMMON]


@pytest.fixture
def make_case(make_config: Make) -> Callable[..., Case]:
    def make(switches: Sequence[MakeSwitch], **changes: Any) -> Case:
        case = Case(make_config(eval_freq=0, save_freq=100, num_epochs=100, **changes), switches, tied_share=0.34)
        case.build()
        return case

    return make


@pytest.fixture
def both(make_case: Callable[..., Case]) -> Callable[..., tuple[Case, Case]]:
    """The default and a variant."""

    def make(name: str, **changes: Any) -> tuple[Case, Case]:
        plain = make_case((), **changes)
        return plain, make_case(resolve(name, plain.config, "cpu").switches, **changes)

    return make


class Recording:
    """Part of a trainer; keeps what it returns."""

    def __init__(self, part: Any) -> None:
        self.part, self.results = part, []

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.results.append(self.part(*args, **named))
        return self.results[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


def two_epochs(case: Case) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Rewards of all images, and metrics without times."""
    case.trainer.rollout = Recording(case.trainer.rollout)
    found = [case.epoch().metrics for _ in range(2)]
    rewards = torch.cat([result.rewards.total for result in case.trainer.rollout.results])
    return rewards, [{k: v for k, v in m.items() if not k.startswith(("time/", "images_per_s"))} for m in found]


@pytest.mark.parametrize("name", EXACT)
def test_two_epochs_give_the_same_rewards_and_metrics(name: str, both: Callable[..., tuple[Case, Case]]):
    # Two updates an epoch: the second one is off policy, and the second epoch's images come from moved weights.
    (rewards, metrics), (its_rewards, its_metrics) = map(
        two_epochs, both(name, train__updates_per_inner_epoch=2, train__old_policy="current", train__learning_rate=1e-4)
    )
    assert rewards.unique().numel() > IMAGES  # they do differ from image to image, but for the tied ones
    torch.testing.assert_close(its_rewards, rewards, rtol=1e-5, atol=1e-5)
    for mine, its in zip(metrics, its_metrics, strict=True):
        assert its == pytest.approx(mine, rel=1e-5, abs=1e-5)


def velocities(case: Case) -> list[tuple[int, bool]]:
    """(rows, with gradient) of every transformer forward of an epoch's updates."""
    seen: list[tuple[int, bool]] = []
    transformer = case.trainer.policy.model.transformer

    def note(module: Any, args: Any, named: Any) -> None:
        seen.append((len(named["hidden_states"]), torch.is_grad_enabled()))

    update = case.trainer.update

    def watched(*args: Any) -> Any:
        hook = transformer.register_forward_pre_hook(note, with_kwargs=True)
        try:
            return update(*args)
        finally:
            hook.remove()

    case.trainer.update = watched
    case.epoch()
    case.trainer.update = update
    return seen


def test_the_text_of_every_image_is_encoded(both: Callable[..., tuple[Case, Case]]):
    encoded = []
    for case in both("text_per_image"):
        model, lengths = case.trainer.policy.model, []
        encode = model.encode
        model.encode = lambda text, encode=encode, lengths=lengths: lengths.append(len(text)) or encode(text)
        case.epoch()
        encoded.append(sum(lengths))
    assert encoded == [PROMPTS, IMAGES]


def test_frozen_weights_are_float32_below_float32_adapters(both: Callable[..., tuple[Case, Case]]):
    kinds = []
    for case in both("float32_base", mixed_precision="bf16"):
        named = dict(case.trainer.policy.model.transformer.named_parameters())
        kinds.append({n.rpartition(".")[2] if "lora" not in n else "lora": p.dtype for n, p in named.items()})
        case.epoch()
    assert {kinds[0]["weight"], kinds[1]["weight"]} == {torch.bfloat16, torch.float32}
    assert kinds[0]["weight"] == torch.bfloat16 and kinds[0]["lora"] == kinds[1]["lora"] == torch.float32


def test_each_training_time_has_a_forward(both: Callable[..., tuple[Case, Case]]):
    packed, single = (velocities(case) for case in both("forward_per_time", train__beta=0.0, train__ema_beta=0.0))
    updates = [rows for rows, with_gradient in packed if with_gradient]
    assert updates == [MICRO * TIMES] * (IMAGES // MICRO)
    assert [rows for rows, with_gradient in single if with_gradient] == [MICRO] * (TIMES * IMAGES // MICRO)


def test_the_old_policy_has_a_forward_in_every_micro_batch(both: Callable[..., tuple[Case, Case]]):
    plain, more = (velocities(case) for case in both("old_forward", train__beta=0.0, train__ema_beta=0.0))
    assert [row for row in more if row[1]] == [row for row in plain if row[1]]
    assert len(more) - len(plain) == IMAGES // MICRO
    assert more.count((MICRO * TIMES, False)) - plain.count((MICRO * TIMES, False)) == IMAGES // MICRO


def test_images_are_decoded_in_float32_channels_first(both: Callable[..., tuple[Case, Case]]):
    seen = []
    for case in both("float32_vae", mixed_precision="bf16"):
        autoencoder = case.trainer.policy.model._pipeline.vae
        weight = autoencoder.decoder.conv_in.weight

        def note(module: Any, args: Any) -> None:
            seen.append((args[0].dtype, args[0].is_contiguous()))

        autoencoder.decoder.register_forward_pre_hook(note)
        case.epoch()
        seen[-1] += (weight.dtype, weight.is_contiguous())
    assert seen[IMAGES // 2 - 1] == (torch.bfloat16, False, torch.bfloat16, False)
    assert seen[-1] == (torch.float32, True, torch.float32, True)


def test_attention_is_the_library_s(both: Callable[..., tuple[Case, Case]]):
    kinds = []
    for case in both("library_attention", mixed_precision="bf16"):
        processors = case.trainer.policy.model.transformer.attn_processors.values()
        kinds.append({isinstance(processor, ShortAttention) for processor in processors})
        case.epoch()
    assert kinds == [{True}, {False}]


@pytest.mark.parametrize(
    ("name", "library_s", "ours"),
    [
        ("library_norm", RMSNorm, RmsNormInPieces),
        pytest.param("library_gelu", GELU, FusedGelu, marks=needs_fused_gelu),
        ("library_adapters", LoraLinear, AdaptedLinear),
    ],
)
def test_layers_are_the_library_s(name: str, library_s: type, ours: type, both: Callable[..., tuple[Case, Case]]):
    kinds = []
    for case in both(name, mixed_precision="bf16"):
        layers = [part for part in case.trainer.policy.model.transformer.modules() if isinstance(part, library_s)]
        kinds.append({type(layer) for layer in layers})
        case.epoch()
    assert kinds == [{ours}, {library_s}]


def test_nothing_is_scored_before_the_last_image_is_there(
    both: Callable[..., tuple[Case, Case]], monkeypatch: pytest.MonkeyPatch
):
    orders, call = [], StubReward.__call__
    for case in both("rewards_at_end"):
        order: list[str] = []
        model = case.trainer.policy.model
        decode = model._pipeline.vae.decode

        def decoded(*args: Any, order: list[str] = order, decode: Any = decode, **named: Any) -> Any:
            time.sleep(0.05)  # a score in the background would be there by now
            order.append("decode")
            return decode(*args, **named)

        monkeypatch.setattr(model._pipeline.vae, "decode", decoded)
        with replaced(StubReward, "__call__", lambda *a, o=order: o.append("score") or call(*a)):
            case.epoch()
        orders.append(order)
    early, late = orders
    assert early.index("score") < early.count("decode") and early != sorted(early)
    assert late == ["decode"] * (IMAGES // 2) + ["score"] * (IMAGES // 2)


def test_waiting_for_all_images_does_not_wait_in_the_parity_check(
    both: Callable[..., tuple[Case, Case]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("awm.training.parity.IMAGES", IMAGES // 2)  # fewer than an epoch's
    _, late = both("rewards_at_end", sample__merge_lora=True)
    assert late.parity and late.epoch().metrics["images_per_s"] > 0


def test_all_savings_are_switched_off_at_once(both: Callable[..., tuple[Case, Case]]):
    options = {"mixed_precision": "bf16", "sample__merge_lora": True, "train__beta": 0.0, "train__ema_beta": 0.0}
    plain, common = both(COMMON, **options)
    assert {type(switch).__name__ for switch in common._switches} == {
        *("TextPerImage", "Float32Base", "ForwardPerTime", "OldForward", "Float32Autoencoder"),
        *("LibraryAttention", "LibraryNorm", "LibraryAdapters", "FreedMemory", "RewardsAtTheEnd"),
        *(["LibraryGelu"] if fused_gelu.is_available() else []),
    }
    # A forward with gradient and one without for each time of each micro-batch.
    rows = velocities(common)
    assert rows.count((MICRO, True)) == rows.count((MICRO, False)) == TIMES * IMAGES // MICRO == len(rows) // 2
    assert common.trainer.policy.model._pipeline.vae.decoder.conv_in.weight.dtype == torch.float32
    plain.epoch()  # what was replaced for the other one is in its place again


def test_what_was_replaced_is_put_back_after_an_error(make_case: Callable[..., Case], make_config: Make):
    from awm.objectives.noising import NoisedBatch
    from awm.training import rollout

    before = NoisedBatch.velocity, rollout.encode_distinct
    case = make_case(resolve(COMMON, make_config(), "cpu").switches)
    case.trainer.update = None
    with pytest.raises(TypeError):
        case.epoch()
    assert (NoisedBatch.velocity, rollout.encode_distinct) == before


def test_refusals_say_why(make_config: Make, tmp_path: Path):
    config = make_config(mixed_precision="no")
    assert "float32 already" in refusal(TABLE["float32_base"], config, "cpu")
    for name in ("library_attention", "library_norm", "library_gelu", "library_adapters"):
        assert "in float32 the default is the library's" in refusal(TABLE[name], config, "cpu")
        assert "only on a CPU" in refusal(TABLE[name], make_config(mixed_precision="bf16"), "cuda")
    assert "CUDA" in refusal(TABLE["fp8"], config, "cpu")
    assert "train.algorithm=awm, not nft" in refusal(TABLE["old_forward"], make_config(train__algorithm="nft"), "cpu")
    assert "has train.compile=True already" in refusal(TABLE["compile"], make_config(train__compile=True), "cpu")
    assert "compiling takes minutes on a CPU" in refusal(TABLE["compile"], config, "cpu", by_name=False)
    assert refusal(TABLE["compile"], config, "cpu") == refusal(TABLE["compile"], config, "cuda", by_name=False) == ""
    unknown = type(TABLE[DEFAULT])("", words=("--config.train.no_such_key=1",))
    assert "no train.no_such_key" in refusal(unknown, config, "cpu")
    for name in ("text_per_image", "forward_per_time", "rewards_at_end", "float32_vae", "merge_lora"):
        assert refusal(TABLE[name], config, "cpu") == ""


@needs_fused_gelu
def test_layers_that_the_default_has_not_are_not_measured(make_config: Make):
    def why(name: str, **changes: Any) -> str:
        return refusal(TABLE[name], make_config(**{"mixed_precision": "bf16"} | changes), "cpu")

    for name in ("library_norm", "library_gelu", "library_adapters"):
        assert why(name) == ""
        assert "full fine-tuning" in why(name, use_lora=False)
        assert "compiled blocks take the library's" in why(name, train__compile=True)
        assert ("only in bfloat16" in why(name, mixed_precision="fp16")) == (name == "library_gelu")
    assert why("library_attention", use_lora=False) == why("library_attention", train__compile=True) == ""
    assert "only merged rollouts" in why("library_gelu", lora_type="ffn")
    assert why("library_gelu", lora_type="ffn", sample__merge_lora=True) == ""


def test_adapters_stay_apart_where_the_default_merges_them(make_config: Make):
    merged, apart = make_config(sample__merge_lora=True), make_config()
    assert "has sample.merge_lora=False already" in refusal(TABLE["unmerged_lora"], apart, "cpu")
    assert "has sample.merge_lora=True already" in refusal(TABLE["merge_lora"], merged, "cpu")
    assert refusal(TABLE["unmerged_lora"], merged, "cpu") == refusal(TABLE["merge_lora"], apart, "cpu") == ""
    assert resolve(COMMON, merged, "cpu").words == TABLE["unmerged_lora"].words == (APART,)
    assert resolve(COMMON, apart, "cpu").words == ()
    # One of an option's settings may be there already; all of them leave nothing to measure.
    assert refusal(TABLE["options"], merged, "cpu") == ""
    everything = make_config(sample__merge_lora=True, train__skip_zero_advantage=True, train__kl_timesteps=2)
    assert "sample.merge_lora=True and train.skip_zero_advantage=True and" in refusal(
        TABLE["options"], everything, "cpu"
    )


def test_names_are_checked_and_the_default_always_runs():
    assert check_names([]) == tuple(TABLE) and check_names(["compile", "compile"]) == (DEFAULT, "compile")
    with pytest.raises(ValueError, match="unknown variant 'compil'; known: default"):
        check_names(["compil"])
