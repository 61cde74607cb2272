"""A sample's random numbers do not depend on the batch it is in."""

import torch

from awm.flow.rng import SampleNoise, SharedStart, evaluation_index, sample_generator


def draws(indices: list[int], **key: object) -> tuple[torch.Tensor, ...]:
    noise = SampleNoise(**{"seed": 1, "stream": "rollout", "epoch": 2, **key}, indices=indices)  # type: ignore[arg-type]
    return noise.randn((4, 5, 5)), noise.rand((3,)), noise.randn((4, 5, 5))


def test_rows_are_the_same_in_any_batch() -> None:
    whole = draws([5, 6, 7, 8])
    part = draws([7, 5])
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[2], b[0])
        assert torch.equal(a[0], b[1])


def test_successive_draws_and_keys_differ() -> None:
    first, _, second = draws([5])
    others = [second, draws([6])[0], draws([5], seed=2)[0], draws([5], epoch=3)[0], draws([5], stream="train/0")[0]]
    assert all(not torch.equal(first, other) for other in others)


def test_indices_may_be_a_tensor_and_numbers_have_the_right_law() -> None:
    noise = SampleNoise(0, "rollout", 0, torch.arange(2000))
    normal, uniform = noise.randn((8,)), noise.rand((8,))
    assert abs(normal.mean().item()) < 0.03
    assert abs(normal.std().item() - 1) < 0.03
    assert abs(uniform.mean().item() - 0.5) < 0.01
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert len({sample_generator(0, "rollout", 0, i).initial_seed() for i in range(2000)}) == 2000


def test_evaluation_noise_belongs_to_the_prompt() -> None:
    whole = SampleNoise.for_evaluation(0, ["a cat", "a dog", "a cat"], [0, 0, 1]).randn((4,))
    alone = SampleNoise.for_evaluation(0, ["a dog"], [0]).randn((4,))
    assert torch.equal(whole[1], alone[0])
    assert not torch.equal(whole[0], whole[2])


def test_keys_are_pinned() -> None:
    # Keys that change between releases would change every run and every published evaluation.
    assert evaluation_index("a cat") == evaluation_index("a cat", 0) == 12965642508601917097
    assert sample_generator(0, "rollout", 1, 2).initial_seed() == 10163621576418836989


def test_a_shared_start_is_one_for_the_group_and_the_rest_is_not() -> None:
    start, rest = (SampleNoise(0, stream, 2, indices) for stream, indices in (("start", [4, 4]), ("rollout", [8, 9])))
    noise = SharedStart(start, rest)
    first, second, third = (noise.randn((2, 3)) for _ in range(3))
    assert torch.equal(first[0], first[1]) and not torch.equal(second[0], second[1])
    again = SampleNoise(0, "rollout", 2, [8, 9])
    assert torch.equal(second, again.randn((2, 3))) and torch.equal(third, again.randn((2, 3)))
