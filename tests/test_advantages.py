"""Advantages: hand-computed values, masks, and groups that teach nothing."""

import pytest
import torch

from awm.advantages import group_advantages, standardized_rewards, standardized_sum, zero_std_ratio

GROUP = torch.tensor([0, 0, 0, 7, 7, 7])
REWARD = torch.tensor([1.0, 0, 0, 1, 1, 0])
ALL = torch.ones(6, dtype=torch.bool)


def test_global_std_by_hand() -> None:
    expected = torch.tensor([1.33306672, -0.66653336, -0.66653336, 0.66653336, 0.66653336, -1.33306672])
    a = standardized_rewards(REWARD, GROUP, ALL, global_std=True)
    torch.testing.assert_close(a, expected.double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(group_advantages(REWARD, GROUP, ALL, global_std=True), expected / 5)


def test_group_std_by_hand() -> None:
    a = standardized_rewards(REWARD, GROUP, ALL, global_std=False)
    high, low = 1.41391363, -0.70695681
    expected = torch.tensor([high, low, low, -low, -low, -high], dtype=torch.float64)
    torch.testing.assert_close(a, expected, rtol=0, atol=5e-9)


def test_one_success_in_24() -> None:
    reward = torch.zeros(24)
    reward[3] = 1
    group, valid = torch.zeros(24, dtype=torch.int64), torch.ones(24, dtype=torch.bool)
    a = standardized_rewards(reward, group, valid, global_std=False)
    assert a[3].item() == pytest.approx(4.7934, abs=5e-5)
    assert a[0].item() == pytest.approx(-0.2084, abs=5e-5)
    effective = group_advantages(reward, group, valid, global_std=False)
    assert effective[3].item() == pytest.approx(0.9587, abs=5e-5)
    assert effective[0].item() == pytest.approx(-0.0417, abs=5e-5)
    clipped = group_advantages(reward, group, valid, global_std=False, adv_clip_max=2.0, advantage_max=3.0)
    assert clipped[3].item() == 3.0


def test_without_prompts_everything_is_one_group() -> None:
    a = standardized_rewards(REWARD, GROUP, ALL, global_std=False, per_prompt=False)
    torch.testing.assert_close(a, ((REWARD - 0.5) / (0.5 + 1e-4)).double())


def test_invalid_samples_count_nowhere() -> None:
    order = torch.tensor([4, 0, 3, 1, 5, 2])
    reward = torch.cat([REWARD, torch.tensor([torch.nan, 100.0])])[torch.cat([order, torch.tensor([6, 7])])]
    group = torch.cat([GROUP[order], torch.tensor([0, 7])])
    valid = torch.cat([ALL, torch.tensor([False, False])])
    for global_std in (True, False):
        expected = group_advantages(REWARD, GROUP, ALL, global_std=global_std)[order]
        got = group_advantages(reward, group, valid, global_std=global_std)
        torch.testing.assert_close(got, torch.cat([expected, torch.zeros(2)]), rtol=0, atol=0)


def test_equal_rewards_give_exact_zeros() -> None:
    reward = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.7, 0.1])
    a = group_advantages(reward, GROUP, ALL, global_std=False)
    assert (a[:3] == 0).all()
    assert (a[3:] != 0).all()
    assert a[3:].sum().item() == pytest.approx(0, abs=1e-7)


def test_no_valid_sample_at_all() -> None:
    a = group_advantages(torch.full((6,), torch.nan), GROUP, ~ALL, global_std=True)
    assert torch.equal(a, torch.zeros(6))
    assert zero_std_ratio(REWARD, GROUP, ~ALL) == 0


def test_a_valid_reward_must_be_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group_advantages(torch.tensor([1.0, torch.nan]), GROUP[:2], ALL[:2], global_std=True)


def test_zero_std_ratio_counts_groups_with_equal_rewards() -> None:
    reward = torch.tensor([0.5, 0.5, 9.0, 1, 1, 0])
    valid = torch.tensor([True, True, False, True, True, True])
    assert zero_std_ratio(reward, GROUP, valid) == 0.5
    assert zero_std_ratio(reward, GROUP, ALL) == 0


def test_standardized_sum_by_hand() -> None:
    valid = torch.tensor([True, True, True, False])
    parts = {
        "a": torch.tensor([0.0, 2.0, 4.0, 100.0]),  # mean 2, std sqrt(8/3)
        "b": torch.tensor([30.0, 30.0, 0.0, float("nan")]),  # mean 20, std sqrt(200)
        "constant": torch.tensor([5.0, 5.0, 5.0, 5.0]),
        "watched": torch.full((4,), float("nan")),
    }
    total = standardized_sum(parts, {"a": 1.0, "b": -0.5, "constant": 3.0, "watched": 0.0}, valid)
    expected = torch.tensor([-1.2247449 - 0.3535534, -0.3535534, 1.2247449 + 0.7071068], dtype=torch.float64)
    torch.testing.assert_close(total[:3], expected, rtol=0, atol=1e-6)
    assert total[3].isnan()


def test_standardized_rewards_do_not_depend_on_their_units() -> None:
    a, b, valid = torch.rand(24), torch.rand(24), torch.ones(24, dtype=torch.bool)
    weights = {"a": 1.0, "b": 0.3}
    there = standardized_sum({"a": a, "b": b}, weights, valid)
    torch.testing.assert_close(
        standardized_sum({"a": 26 * a + 3, "b": b / 100}, weights, valid), there, rtol=0, atol=1e-4
    )
