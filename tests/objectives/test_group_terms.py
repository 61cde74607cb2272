"""What an optimizer step's images have in common, wherever they are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.objectives.group_terms import StepGroups
from awm.objectives.terms import require_positive
from awm.types import Experience
from tests.objectives.coupled import DOUBLE, make_groups

GROUP = torch.tensor([7, 7, 7, 2, 2, 9])
VALID = torch.tensor([True, True, False, True, True, False])


def batch(**fields: Any) -> Experience:
    return replace(make_groups(size=3, groups=2), **{"group": GROUP, "valid": VALID, **fields})


def groups(**fields: Any) -> StepGroups:
    return StepGroups([batch(**fields)], lambda values: values)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def test_sums_and_means_are_those_of_the_valid_images_of_a_prompt() -> None:
    values = double(1, 2, math.nan, 10, 20, math.inf)
    torch.testing.assert_close(groups().sum(values), double(3, 3, 3, 30, 30, 0))
    torch.testing.assert_close(groups().mean(values), double(1.5, 1.5, 1.5, 15, 15, 0))
    alone = groups(valid=VALID & (torch.arange(6) != 1))
    torch.testing.assert_close(alone.mean(values), double(1, 1, 1, 15, 15, 0))
    both = torch.stack([values, -values], 1)
    torch.testing.assert_close(groups().mean(both)[:, 1], double(-1.5, -1.5, -1.5, -15, -15, 0))


def test_softmax_is_within_the_prompt_and_survives_large_scores() -> None:
    share = groups().softmax(double(0, math.log(3), math.nan, 5000, 4000, 1))
    torch.testing.assert_close(share, double(0.25, 0.75, 0, 1, 0, 0))


def test_what_comes_back_is_in_the_order_and_precision_of_each_micro_batch() -> None:
    whole = batch(x_0=batch().x_0.float())
    parts = [whole.take(torch.tensor(rows)) for rows in ([4, 1], [0], [5, 3, 2])]
    split = StepGroups(parts, lambda values: values)
    assert split.valid.tolist() == VALID.tolist() and split.group.tolist() == [1, 1, 1, 0, 0, 2]
    everything = split.collect([part.sample_index for part in parts])
    assert everything.tolist() == whole.sample_index.tolist()
    back = split.spread(everything)
    for part, values in zip(parts, back, strict=True):
        assert values.dtype == torch.float32 and values.tolist() == part.sample_index.tolist()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_strengths_are_positive(bad: float) -> None:
    with pytest.raises(ValueError, match=r"train\.dpo_beta=.* finite number above 0"):
        require_positive("dpo_beta", bad)
