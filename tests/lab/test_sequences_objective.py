"""Reweighted masked diffusion: its gradient, its minimiser and what bounds negative weights."""

import math

import pytest
import torch
from torch import Tensor

from awm.lab.sequences.denoiser import MASK
from awm.lab.sequences.diffusion import denoising_loss, draw_times, mask_tokens
from awm.lab.sequences.objective import case_two_share, weighted_denoising_loss


def problem(batch: int = 6, length: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random logits [2, B, L, 4], tokens [B, L], x_t [2, B, L] and t [2, B]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, (batch, length), generator=generator)
    t = draw_times(2, batch, generator)
    logits = torch.randn(2, batch, length, 4, generator=generator, dtype=torch.float64)
    return logits, tokens, mask_tokens(tokens, t, generator), t.double()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]


def test_on_policy_gradient_is_the_plain_one_times_the_centred_weight() -> None:
    logits, tokens, x_t, t = problem()
    logits.requires_grad_()
    log_probs = logits.log_softmax(-1)
    weights = torch.tensor([3.0, 1.5, 0.5, 0.5, 0.25, 0.25], dtype=torch.float64)
    output = weighted_denoising_loss(log_probs, log_probs, tokens, x_t, t, weights - 1, error_clip=5.0)
    plain = denoising_loss(log_probs, tokens, x_t, t).mean(0)
    torch.testing.assert_close(gradient(output.loss, logits), gradient((weights - 1) * plain, logits))


def test_equal_weights_teach_nothing_and_pull_back_to_the_old_model() -> None:
    logits, tokens, x_t, t = problem()
    old = logits.log_softmax(-1)
    moved = (logits + 0.3 * torch.randn(logits.shape, dtype=torch.float64)).requires_grad_()
    credit = torch.zeros(6, dtype=torch.float64)
    at_old = weighted_denoising_loss(old, old, tokens, x_t, t, credit, error_clip=5.0)
    away = weighted_denoising_loss(moved.log_softmax(-1), old, tokens, x_t, t, credit, error_clip=5.0)
    torch.testing.assert_close(at_old.loss, torch.zeros(6, dtype=torch.float64))
    assert bool((away.loss > 0).all())
    kl = (old.exp() * (old - moved.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(away.loss, ((kl * (x_t == MASK)).mean(-1) / t).mean(0))


@pytest.mark.parametrize(("pull", "expected"), [(1.0, [0.75, 0.125, 0.125]), (2.0, [0.625, 0.1875, 0.1875])])
def test_minimiser_is_the_reweighted_distribution(pull: float, expected: list[float]) -> None:
    # One letter; the old model is the samples' distribution: A, A, C, G. Weights W + pull - 1, over pull.
    tokens, x_t, t = torch.tensor([[0], [0], [1], [2]]), torch.full((1, 4, 1), MASK), torch.ones(1, 4)
    credit = torch.tensor([2.0, 1.0, 0.5, 0.5], dtype=torch.float64) - 1
    old = torch.tensor([0.5, 0.25, 0.25, 1e-12], dtype=torch.float64).log().expand(1, 4, 1, 4)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_probs = logits.log_softmax(0).expand(1, 4, 1, 4)
        value = weighted_denoising_loss(log_probs, old, tokens, x_t, t, credit, pull=pull, error_clip=50.0).loss.sum()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(logits.softmax(0)[:3], torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("credit", "old", "error", "pushes"),
    [(-1.5, 0.5, 4.9, True), (-1.5, 0.5, 5.1, False), (-0.9, 0.95, 5.1, True), (-0.9, 0.5, 5.1, False)],
)
def test_only_a_letter_of_negative_mass_is_bounded(credit: float, old: float, error: float, pushes: bool) -> None:
    # Mass of the letter: credit + pull x its old probability. Beyond the bound only the pull is left.
    p = math.exp(-error)
    logits = torch.tensor([p, 1 - p, 1e-30, 1e-30], dtype=torch.float64).log().reshape(1, 1, 1, 4).requires_grad_()
    log_probs = logits.log_softmax(-1)
    log_probs_old = torch.tensor([old, 1 - old, 1e-30, 1e-30], dtype=torch.float64).log().reshape(1, 1, 1, 4)
    tokens, x_t, t = torch.tensor([[0]]), torch.full((1, 1, 1), MASK), torch.ones(1, 1)
    output, pull_alone = (
        weighted_denoising_loss(log_probs, log_probs_old, tokens, x_t, t, torch.tensor([c]).double(), error_clip=5.0)
        for c in (credit, 0.0)
    )
    push = gradient(output.loss, logits) - gradient(pull_alone.loss, logits)
    assert push[..., 0].item() == pytest.approx(credit * (p - 1) if pushes else 0.0)
    assert output.metrics["clipped"].item() == (0.0 if pushes else 1.0)


def test_a_repelled_letter_stays_at_the_bound() -> None:
    # Gradient descent on -|mass| CE would run away; it stops where the letter's probability is exp(-error_clip).
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    tokens, x_t, t = torch.tensor([[0]]), torch.full((1, 1, 1), MASK), torch.ones(1, 1)
    old = torch.full((1, 1, 1, 4), 0.25, dtype=torch.float64).log()
    optimizer = torch.optim.SGD([logits], lr=0.05)
    for _ in range(100):
        log_probs = logits.log_softmax(0).expand(1, 1, 1, 4)
        output = weighted_denoising_loss(
            log_probs, old, tokens, x_t, t, torch.tensor([-2.0], dtype=torch.float64), pull=0.0, error_clip=3.0
        )
        optimizer.zero_grad()
        output.loss.sum().backward()
        optimizer.step()
    assert -logits.log_softmax(0)[0].item() == pytest.approx(3.0, abs=0.2)


def test_case_two_share_by_hand() -> None:
    tokens = torch.tensor([[0, 1], [0, 2], [3, 2]])
    # Position 0: A has 2 - 0.5, T has -0.5. Position 1: C has 2, G has -0.5 - 0.5. Two of four letters seen.
    assert case_two_share(tokens, torch.tensor([2.0, -0.5, -0.5])) == pytest.approx(0.5)
    assert case_two_share(tokens, torch.tensor([2.0, 0.5, 0.5])) == 0.0


@pytest.mark.parametrize(("pull", "error_clip"), [(-0.1, 5.0), (1.0, 0.0)])
def test_nonsense_is_refused(pull: float, error_clip: float) -> None:
    logits, tokens, x_t, t = problem()
    with pytest.raises(ValueError, match="must not be negative"):
        weighted_denoising_loss(logits, logits, tokens, x_t, t, torch.zeros(6), pull=pull, error_clip=error_clip)
