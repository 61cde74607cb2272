"""What a batch of networks over seeds promises: the same as one network at a time."""

from __future__ import annotations

import torch

from awm.lab.networks import (
    MLP,
    SeedMLP,
    SeedVelocity,
    Velocity,
    clip_gradients,
    seed_generators,
    time_features,
)


def test_a_seed_is_the_same_whoever_runs_beside_it() -> None:
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    many = SeedMLP((4, 8, 2), seed_generators([0, 1, 2], "init"))
    alone = SeedMLP((4, 8, 2), seed_generators([2], "init"))
    torch.testing.assert_close(many(x)[2:], alone(x[2:]))
    assert not torch.allclose(many(x[:1].expand(3, -1, -1))[0], many(x[:1].expand(3, -1, -1))[1])


def test_one_adam_over_stacked_parameters_is_an_adam_per_seed() -> None:
    def train(seeds: list[int], target: torch.Tensor) -> SeedMLP:
        net = SeedMLP((2, 8, 1), seed_generators(seeds, "init"))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        x = torch.linspace(-1, 1, 12).reshape(1, 6, 2).expand(len(seeds), -1, -1)
        for _ in range(5):
            optimizer.zero_grad()
            ((net(x) - target) ** 2).flatten(1).mean(1).sum().backward()
            clip_gradients(net.parameters(), 0.1)
            optimizer.step()
        return net

    target = torch.tensor([1.0, -50.0]).reshape(2, 1, 1)
    both, second = train([0, 1], target), train([1], target[1:])
    for a, b in zip(both.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-6)


def test_clipping_is_per_seed_and_equals_torch() -> None:
    net = SeedMLP((2, 3, 1), seed_generators([0, 1], "init"))
    scale = torch.tensor([0.01, 100.0]).reshape(2, 1, 1)
    (net(torch.ones(2, 4, 2)) * scale).sum().backward()
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    norm = clip_gradients(net.parameters(), 1.0)
    assert norm[0] < 1 < norm[1]
    for p, gradient in zip(net.parameters(), before, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad[0], gradient[0])
        torch.testing.assert_close(p.grad[1], gradient[1] / (norm[1] + 1e-6))


def test_plain_networks_are_batches_of_one() -> None:
    generator, x, t = seed_generators([7], "v"), torch.randn(5, 2), torch.rand(5)
    plain, batched = Velocity(2, generator[0], condition=3), SeedVelocity(2, seed_generators([7], "v"), condition=3)
    state = torch.randn(5, 3)
    torch.testing.assert_close(plain(x, t, state), batched(x[None], t[None], state[None])[0])
    assert MLP((2, 4, 3), generator[0])(torch.zeros(6, 5, 2)).shape == (6, 5, 3)


def test_times_per_seed_and_per_sample_mean_the_same() -> None:
    net = SeedVelocity(1, seed_generators([0, 1], "v"))
    x, t = torch.randn(2, 4, 1), torch.tensor([0.2, 0.7])
    torch.testing.assert_close(net(x, t), net(x, t[:, None].expand(2, 4)))


def test_time_features_are_sines_and_cosines_of_octaves() -> None:
    expected = [1.0, 0.0, 0.0, -1.0]
    torch.testing.assert_close(time_features(torch.tensor(0.5), 2), torch.tensor(expected), atol=1e-6, rtol=0)
