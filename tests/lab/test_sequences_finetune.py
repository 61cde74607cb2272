"""Fine-tuning: weights and temperature, a reward that rises with every method, baselines and measures."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from awm.lab.sequences.baselines import best_of_n, rejection_finetune
from awm.lab.sequences.denoiser import Denoiser
from awm.lab.sequences.finetune import credit_of, finetune
from awm.lab.sequences.measures import (
    kmer_correlation,
    kmer_frequencies,
    mean_pairwise_hamming,
    negative_log_likelihood,
)
from awm.lab.sequences.settings import FINETUNED, QUICK, Settings
from awm.lab.sequences.world import World, encode

TINY = replace(
    QUICK, world=World(length=12), updates=12, groups=2, group_size=16, inner_steps=2, learning_rate=1e-2,
    target_kl=1.0, sampler_steps=4, eval_size=16,
)  # fmt: skip


def share_of_a(tokens: Tensor) -> Tensor:
    return (tokens == 0).float().mean(1)


def small_denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(width=12, dilations=(1, 2))


@pytest.mark.parametrize("method", [*FINETUNED, "linear_neg centred"])
def test_reward_rises_with_every_method(method: str) -> None:
    method, _, form = method.partition(" ")
    settings = replace(TINY, centred=bool(form))
    start = small_denoiser()
    before = [p.clone() for p in start.parameters()]
    watch = {"cost": lambda tokens: -share_of_a(tokens)}
    _, records = finetune(start, share_of_a, settings.weighing(method), settings, seed=0, watch=watch)
    assert len(records) == settings.updates
    early, late = (sum(record["predicted"] for record in part) / 3 for part in (records[:3], records[-3:]))
    assert late > early + 0.1
    assert all(record["cost"] == -record["predicted"] for record in records)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), before, strict=True))


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (finetune(small_denoiser(), share_of_a, TINY.weighing("square_neg"), TINY, seed=4) for _ in "ab")
    assert first[1] == second[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("method", FINETUNED)
def test_credit_has_the_right_mass_and_hits_the_temperature_target(method: str, centred: bool) -> None:
    reward = torch.randn(4 * 32, generator=torch.Generator().manual_seed(0))
    settings = Settings(centred=centred)
    weighing = settings.weighing(method)
    centre, pull = settings.centre_and_pull(weighing.weighting)
    credit, metrics = credit_of(reward, weighing, group_size=32, centre=centre)
    # Credit and pull together are a measure of mass one, whatever the form.
    torch.testing.assert_close((credit + pull).reshape(4, 32).mean(1), torch.ones(4), atol=1e-4, rtol=0)
    assert bool((credit[:32][reward[:32].argsort()].diff() >= -1e-6).all())
    if method == "wd1":
        assert metrics["weight_temperature"] == 1.0
    else:
        assert metrics["weight_kl"] == pytest.approx(1.5, abs=1e-3)
    assert (metrics["weight_negative_mass"] > 0) == (method.endswith("_neg") or method == "wd1")
    if method.endswith("_neg"):
        assert metrics["weight_min"] == pytest.approx(-0.5)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    broken = small_denoiser()
    with torch.no_grad():
        broken.head.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        finetune(broken, lambda x: torch.arange(len(x)).float(), TINY.weighing("exp"), TINY, seed=0)


def test_best_of_n_spends_the_budget_on_eval_size_sequences() -> None:
    seen: list[Tensor] = []

    def reward(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return share_of_a(tokens)

    tokens, number = best_of_n(small_denoiser(), reward, TINY, seed=0)
    assert number == 24 and tokens.shape == (16, 12)  # 12 updates x 32 sequences over 16
    groups = share_of_a(seen[0]).reshape(16, 24)
    torch.testing.assert_close(share_of_a(tokens), groups.max(1).values)
    with pytest.raises(ValueError, match="cannot deliver 1000"):
        best_of_n(small_denoiser(), reward, replace(TINY, eval_size=1000), seed=0)


def test_rejection_finetuning_raises_the_reward() -> None:
    start = small_denoiser()
    tuned = rejection_finetune(start, share_of_a, TINY, seed=0)
    tokens = torch.zeros(8, 12, dtype=torch.int64)
    before, after = (negative_log_likelihood(m, tokens, versions=4, seed=0).mean().item() for m in (start, tuned))
    assert after < before - 1


def test_likelihood_of_a_uniform_model_is_the_entropy() -> None:
    tokens = torch.randint(4, (50, 20), generator=torch.Generator().manual_seed(0))
    nll = negative_log_likelihood(
        lambda x: torch.full((*x.shape, 4), -math.log(4)), tokens, versions=100, seed=1, batch=16
    )
    assert nll.shape == (50,)
    assert nll.mean().item() == pytest.approx(20 * math.log(4), rel=0.02)


def test_kmers_and_hamming_by_hand() -> None:
    tokens = torch.stack([encode("AACA"), encode("AAGA")])
    frequency = kmer_frequencies(tokens, 2)
    assert {int(i): round(float(frequency[i]) * 6) for i in frequency.nonzero()[:, 0]} == {0: 2, 1: 1, 2: 1, 4: 1, 8: 1}
    assert kmer_correlation(tokens, tokens, k=2) == pytest.approx(1)
    assert mean_pairwise_hamming(tokens) == pytest.approx(0.25)
    many = torch.randint(4, (9, 7), generator=torch.Generator().manual_seed(0))
    pairs = [(many[i] != many[j]).double().mean().item() for i in range(9) for j in range(i)]
    assert mean_pairwise_hamming(many) == pytest.approx(sum(pairs) / len(pairs))
    assert mean_pairwise_hamming(many[:1]) == 0
    with pytest.raises(ValueError, match="does not fit"):
        kmer_frequencies(tokens, 5)
