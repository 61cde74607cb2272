"""What the merged copy promises: the adapted network's velocities, from weights that follow it and little memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awm.interfaces import WeightSet
from awm.models.float8 import Float8Linear, quantise_rows
from awm.models.lora import LoraType, count_lora
from awm.models.policy import Policy
from awm.models.rollout_copy import RolloutCopy, merged_weight
from awm.models.sd3 import SD3
from tests.models.test_policy import with_different_sets

Make = Callable[..., Policy]
SETS: list[WeightSet] = ["current", "anchor", "reference", "average", "rollout"]


@pytest.fixture
def make_policy(checkpoint: Path) -> Make:
    def make(dtype: torch.dtype = torch.float32, lora_type: LoraType = "attn", fp8: bool = False) -> Policy:
        """Five weight sets that all differ."""
        model = SD3.load(str(checkpoint), dtype=dtype)
        policy = Policy(model, lora_type=lora_type, lora_rank=4, lora_alpha=12, merge_lora=True, fp8=fp8)
        return with_different_sets(policy)

    return make


def velocity(policy: Policy, guidance_scale: float = 1.0) -> Tensor:
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = policy.model.encode(["a photo of a red circle", "a photo of a star"])
    device = policy.model.device
    return policy.model.velocity(x_t.to(device), torch.tensor([0.3, 0.8], device=device), condition, guidance_scale)


@torch.no_grad()
def both(policy: Policy, name: WeightSet, guidance_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    with policy.using(name):
        plain = velocity(policy, guidance_scale)
    with policy.sampling(name):
        fast = velocity(policy, guidance_scale)
    return plain, fast


@pytest.mark.parametrize("lora_type", ["attn", "ffn", "all"])
def test_every_set_samples_as_it_would_unmerged(make_policy: Make, lora_type: LoraType) -> None:
    policy, seen = make_policy(lora_type=lora_type), list[Tensor]()
    for name in SETS:
        plain, fast = both(policy, name)
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
        seen.append(fast)
    for i, a in enumerate(seen):
        assert not any(torch.allclose(a, b, rtol=0, atol=1e-3) for b in seen[:i])
    torch.testing.assert_close(*both(policy, "current", 4.5), rtol=0, atol=1e-4)


def test_the_copy_follows_training_steps_and_loaded_states(make_policy: Make) -> None:
    policy = make_policy()
    before, state = both(policy, "current")[1], policy.state_dict()
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=0.05)
    for _ in range(2):
        velocity(policy).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    plain, fast = both(policy, "current")
    assert not torch.allclose(fast, before, rtol=0, atol=1e-3)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    policy.load_state_dict(state)
    assert torch.equal(both(policy, "current")[1], before)


@torch.no_grad()
def test_a_block_samples_with_the_weights_of_its_start_and_leaves_no_trace(make_policy: Make) -> None:
    policy = make_policy()
    trained, expected = policy.model.transformer, velocity(policy)
    weights = [parameter.clone() for parameter in policy.trainable_parameters()]
    with pytest.raises(KeyError), policy.sampling("anchor"):
        first = velocity(policy)
        for weight in policy._sets["anchor"]:
            weight += 1
        assert torch.equal(velocity(policy), first)
        raise KeyError
    assert policy.model.transformer is trained
    assert torch.equal(velocity(policy), expected)
    assert all(torch.equal(a, b) for a, b in zip(policy.trainable_parameters(), weights, strict=True))
    assert not torch.equal(both(policy, "anchor")[1], first)


def test_only_adapted_weights_have_memory_of_their_own(make_policy: Make) -> None:
    policy = make_policy()
    copy, trained = policy.rollout_copy, policy.model.transformer
    assert copy is not None
    assert count_lora(copy.transformer) == 0 and not hasattr(copy.transformer, "peft_config")
    assert count_lora(trained) == 19
    theirs = {name.replace(".base_layer", ""): tensor for name, tensor in trained.named_parameters()}
    own = 0
    for name, tensor in copy.transformer.named_parameters():
        assert not tensor.requires_grad
        if tensor.data_ptr() != theirs[name].data_ptr():
            assert name.startswith("transformer_blocks.") and ".attn" in name and name.endswith(".weight")
            own += tensor.numel() * tensor.element_size()
    assert own == copy.own_bytes() > 0
    for name, buffer in copy.transformer.named_buffers():
        assert buffer.data_ptr() == trained.get_buffer(name).data_ptr()


def test_the_copy_is_no_part_of_the_state_and_gets_no_gradient(make_policy: Make, tmp_path: Path) -> None:
    policy = make_policy()
    names = set(policy.state_dict()["current"])
    assert names and all(".lora_" in name for name in names)
    with policy.sampling("current"):
        assert not velocity(policy).requires_grad
    assert velocity(policy).requires_grad
    policy.export(tmp_path, policy.state_dict()["current"])


def test_weights_are_merged_in_float32_and_then_rounded_once(make_policy: Make) -> None:
    policy = make_policy(torch.bfloat16)
    assert policy.rollout_copy is not None
    with policy.sampling("current"):
        pass
    layer = policy.model.transformer.transformer_blocks[0].attn.to_q
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    exact = layer.base_layer.weight.float() + 3.0 * up @ down
    merged = policy.rollout_copy.transformer.transformer_blocks[0].attn.to_q.weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, exact.bfloat16())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(merged_weight(layer), exact.detach(), rtol=1e-6, atol=1e-7)


def test_half_precision_needs_autocast_for_the_adapters_only(make_policy: Make) -> None:
    policy, seen = make_policy(torch.bfloat16), list[bool]()

    def note(*_: object) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))

    assert policy.rollout_copy is not None
    hooks = [t.register_forward_pre_hook(note) for t in (policy.model.transformer, policy.rollout_copy.transformer)]
    plain, fast = both(policy, "current")
    assert seen == [True, False]
    assert (fast - plain).norm() < 0.02 * plain.norm()
    for hook in hooks:
        hook.remove()


def test_a_bare_checkpoint_needs_no_autocast_until_it_is_trained(checkpoint: Path) -> None:
    model, seen = SD3.load(str(checkpoint), dtype=torch.bfloat16), list[bool]()
    model.transformer.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        model.velocity(x_t, t, model.encode(["a star"]))
        Policy(model, lora_rank=4)
        model.velocity(x_t, t, model.encode(["a star"]))
    assert seen == [False, True]


def test_merging_needs_adapters(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="needs adapters to merge"):
        Policy(SD3.load(str(checkpoint), dtype=torch.float32), use_lora=False, merge_lora=True)


def test_eight_bits_are_close_and_use_a_byte_a_weight(make_policy: Make) -> None:
    policy = make_policy(torch.bfloat16, fp8=True)
    assert policy.rollout_copy is not None
    kinds = {name for name, part in policy.rollout_copy.transformer.named_modules() if isinstance(part, Float8Linear)}
    # Projections and feed-forwards of both blocks, adapted or not; neither modulation nor what is outside of blocks.
    assert len(kinds) == 25 and not any("norm" in name for name in kinds)
    for name in SETS:
        plain, fast = both(policy, name)
        assert 0 < (fast - plain).norm() < 0.05 * plain.norm()
    layers = [policy.rollout_copy.transformer.get_submodule(name) for name in kinds]
    assert policy.rollout_copy.own_bytes() == sum(part.weight.numel() + 4 * part.scale.numel() for part in layers)


def test_the_eight_bit_product_is_that_of_the_rounded_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 48, dtype=torch.bfloat16)
    torch.nn.init.uniform_(linear.weight, -1 / 8, 1 / 8, generator=generator)
    x = torch.randn(3, 5, 64, generator=generator).bfloat16() * torch.logspace(-3, 3, 15).reshape(3, 5, 1).bfloat16()
    layer = Float8Linear(linear)
    values, scale = quantise_rows(x.reshape(15, 64))
    w_values, w_scale = quantise_rows(linear.weight)
    emulated = (values.float() * scale) @ (w_values.float() * w_scale).t() + linear.bias.float()
    y = layer(x)
    assert y.shape == (3, 5, 48) and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.reshape(15, 48).float(), emulated, rtol=0.01, atol=1e-3)
    exact = x.reshape(15, 64).float() @ linear.weight.float().t() + linear.bias.float()
    error = (y.reshape(15, 48).float() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 0.06  # of each row, whatever its size: scales are a row's own


def test_rows_keep_their_largest_value_and_zeros_stay_zero() -> None:
    a = torch.tensor([[0.0, 0.0], [1e-6, -2e-6], [3e4, 1.0]])
    values, scale = quantise_rows(a)
    back = values.float() * scale
    assert torch.equal(back[0], torch.zeros(2))
    torch.testing.assert_close(back.abs().amax(1), a.abs().amax(1), rtol=1e-6, atol=0)


def test_sizes_the_kernels_do_not_take_stay_as_they_are() -> None:
    assert Float8Linear.fits(torch.nn.Linear(32, 48))
    assert not Float8Linear.fits(torch.nn.Linear(24, 48))
    assert not Float8Linear.fits(torch.nn.Linear(32, 40))


def test_a_copy_can_be_counted_without_weights(make_policy: Make) -> None:
    policy = make_policy()
    bytes_ = RolloutCopy(policy.model.transformer.to("meta")).own_bytes()
    assert policy.rollout_copy is not None and bytes_ == policy.rollout_copy.own_bytes()
