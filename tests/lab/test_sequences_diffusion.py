"""Masked diffusion: schedule and loss by hand, the sampler against exact distributions."""

import math

import pytest
import torch

from awm.lab.sequences.denoiser import MASK, Denoiser
from awm.lab.sequences.diffusion import denoising_loss, draw_times, mask_tokens, sample

PROBABILITIES = torch.tensor([0.5, 0.25, 0.125, 0.125])
# Two letters that mostly agree: p(AA) = 0.5, p(CC) = 0.3, p(AC) = 0.15, p(CA) = 0.05.
JOINT = torch.tensor([[0.5, 0.15], [0.05, 0.3]])


def independent(tokens: torch.Tensor) -> torch.Tensor:
    """Every letter has PROBABILITIES, whatever else is visible."""
    return PROBABILITIES.log().expand(*tokens.shape, 4)


def exact(tokens: torch.Tensor) -> torch.Tensor:
    """log p of both letters of JOINT given the visible one."""
    marginal = torch.stack([JOINT.sum(1), JOINT.sum(0)])  # [letter, value]
    given = torch.stack([(JOINT / JOINT.sum(0)).T, JOINT / JOINT.sum(1, keepdim=True)])  # [letter, other, value]
    rows = []
    for letter in (0, 1):
        other = tokens[:, 1 - letter]
        hidden = (other == MASK)[:, None]
        rows.append(torch.where(hidden, marginal[letter], given[letter][other.clamp(max=1)]))
    return torch.nn.functional.pad(torch.stack(rows, 1), (0, 2)).log()


def test_times_are_stratified_over_the_batch() -> None:
    times = draw_times(4, 8, torch.Generator().manual_seed(0))
    assert times.shape == (4, 8)
    strata = (times.flatten().sort().values * 32).ceil().long()
    assert strata.tolist() == list(range(1, 33))


def test_letters_are_masked_with_probability_t() -> None:
    tokens = torch.randint(4, (3, 4000), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([[0.1, 0.6, 1.0]])
    x_t = mask_tokens(tokens, t, torch.Generator().manual_seed(1))
    torch.testing.assert_close((x_t == MASK).double().mean(-1), t.double(), atol=0.03, rtol=0)
    assert bool((x_t == MASK)[0, 2].all())
    visible = x_t != MASK
    assert torch.equal(x_t[visible], tokens.expand_as(x_t)[visible])


@pytest.mark.parametrize("t", [0.0, 1.5])
def test_times_outside_the_schedule_are_refused(t: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        mask_tokens(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[t]]), torch.Generator())


def test_loss_by_hand() -> None:
    tokens, x_t = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[[MASK, 1, MASK, 3]]])
    loss = denoising_loss(independent(x_t), tokens, x_t, torch.tensor([[0.5]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(8)) / 0.5 / 4)


def test_loss_averages_to_the_likelihood() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.tensor([[0, 1, 2, 0, 0, 3, 1, 0]])
    t = draw_times(20_000, 1, generator)
    x_t = mask_tokens(tokens, t, generator)
    loss = denoising_loss(independent(x_t), tokens, x_t, t)
    assert loss.mean().item() == pytest.approx(-PROBABILITIES[tokens].log().mean().item(), rel=0.02)


@pytest.mark.parametrize(("steps", "expected"), [(200, JOINT), (1, torch.outer(JOINT.sum(1), JOINT.sum(0)))])
def test_sampler_follows_the_model(steps: int, expected: torch.Tensor) -> None:
    # One step draws both letters at once, hence independently; many steps draw the second given the first.
    tokens = sample(exact, 20_000, 2, steps=steps, generator=torch.Generator().manual_seed(3))
    assert int(tokens.max()) < MASK
    share = torch.bincount(tokens[:, 0] * 2 + tokens[:, 1], minlength=4).reshape(2, 2) / len(tokens)
    torch.testing.assert_close(share, expected, atol=0.013, rtol=0)


def test_sampler_uncovers_everything_and_keeps_what_it_uncovered() -> None:
    seen: list[torch.Tensor] = []

    def model(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tokens)
        return independent(tokens)

    last = sample(model, 40, 30, steps=7, generator=torch.Generator().manual_seed(0))
    assert len(seen) == 7
    for before, after in zip(seen, [*seen[1:], last], strict=True):
        assert torch.equal(before[before != MASK], after[before != MASK])
    hidden = torch.stack([(tokens == MASK).float().mean() for tokens in seen])
    torch.testing.assert_close(hidden, torch.linspace(1, 1 / 7, 7), atol=0.06, rtol=0)
    with pytest.raises(ValueError, match="at least 1"):
        sample(model, 1, 4, steps=0, generator=torch.Generator())


def test_denoiser_gives_normalised_probabilities_and_sees_far() -> None:
    torch.manual_seed(0)
    model = Denoiser(width=8)
    tokens = torch.randint(5, (2, 3, 64))
    log_probs = model(tokens)
    assert log_probs.shape == (2, 3, 64, 4)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3, 64))
    changed = tokens.clone()
    changed[..., 0] = (changed[..., 0] + 1) % 5
    assert bool((model(changed) != log_probs)[..., 40, :].any())
