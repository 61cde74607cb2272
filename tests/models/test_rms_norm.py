"""The normalisation in pieces is the library's, rounded less, and stands in for it only where it is meant to."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor

from awm.models import rms_norm as module
from awm.models.rms_norm import use_rms_norm_in_pieces

HEADS, WIDTH = 3, 8


def norm(dtype: torch.dtype) -> RMSNorm:
    made: RMSNorm = RMSNorm(WIDTH, eps=1e-6)
    made.weight.data = 0.5 + torch.rand(WIDTH, generator=torch.Generator().manual_seed(0))
    return made.to(dtype).requires_grad_(False)


def heads(rows: int) -> Tensor:
    """[rows, HEADS, 5, WIDTH] bfloat16 as attention splits its projections, of sizes far apart."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 5, HEADS, WIDTH, generator=generator) * torch.logspace(-2, 2, 5)[:, None, None]
    return x.transpose(1, 2).bfloat16()


def output_and_gradient(layer: RMSNorm, x: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    x = x.requires_grad_()
    y = layer(x)
    return y.detach(), torch.autograd.grad(y, x, towards.to(y.dtype))[0]


# Seven images in one piece, in pieces of three, three and one, and a piece for every image.
@pytest.mark.parametrize("piece", [module.PIECE, 3 * HEADS * 5 * WIDTH, 1])
def test_is_nearer_to_the_exact_one_than_the_library_is(piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PIECE", piece)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    library, ours, x = norm(torch.bfloat16), norm(torch.bfloat16), heads(7)
    exact = copy.deepcopy(library).double()
    use_rms_norm_in_pieces(ours)
    towards = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    true = output_and_gradient(exact, x.double(), towards)
    found, its = output_and_gradient(ours, x.clone(), towards), output_and_gradient(library, x.clone(), towards)
    for mine, the_library_s, right in zip(found, its, true, strict=True):
        assert mine.dtype == torch.bfloat16 and mine.shape == right.shape
        error, usual = ((each.double() - right).norm() / right.norm() for each in (mine, the_library_s))
        assert error < usual < 0.01
        assert error < 2**-9  # one rounding


def test_the_layout_in_memory_is_the_library_s():
    library, ours, x = norm(torch.bfloat16), norm(torch.bfloat16), heads(2)
    use_rms_norm_in_pieces(ours)
    assert ours(x).stride() == library(x).stride() == x.stride()


def test_the_same_bits_with_gradient_and_without():
    ours, x = norm(torch.bfloat16), heads(4)
    use_rms_norm_in_pieces(ours)
    with_gradient = ours(x.clone().requires_grad_())
    assert with_gradient.requires_grad
    with torch.no_grad():
        assert torch.equal(ours(x), with_gradient)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int):
    ours = norm(torch.bfloat16)
    use_rms_norm_in_pieces(ours)
    torch.testing.assert_close(ours(heads(rows)), norm(torch.bfloat16)(heads(rows)), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("weight", "inputs"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
def test_other_dtypes_are_the_library_s(weight: torch.dtype, inputs: torch.dtype):
    library, ours, x = norm(weight), norm(weight), heads(2).to(inputs)
    use_rms_norm_in_pieces(ours)
    expected, found = library(x), ours(x)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_trained_weights_have_the_library_s_gradient():
    library, ours = norm(torch.bfloat16).requires_grad_(), norm(torch.bfloat16).requires_grad_()
    use_rms_norm_in_pieces(ours)
    for layer in (library, ours):
        layer(heads(2)).float().square().sum().backward()
    assert torch.equal(ours.weight.grad, library.weight.grad)


def test_the_number_of_threads_makes_no_difference(monkeypatch: pytest.MonkeyPatch):
    ours = norm(torch.bfloat16)
    use_rms_norm_in_pieces(ours)
    monkeypatch.setattr(module, "PIECE", HEADS * 5 * WIDTH)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(ours(heads(7)))
    assert torch.equal(*found)


def test_without_weights_or_with_a_shift_it_is_the_library_s():
    for made in (RMSNorm(WIDTH, eps=1e-6, elementwise_affine=False), RMSNorm(WIDTH, eps=1e-6, bias=True)):
        library = copy.deepcopy(made).bfloat16().requires_grad_(False)
        ours = copy.deepcopy(library)
        use_rms_norm_in_pieces(ours)
        assert torch.equal(ours(heads(2)), library(heads(2)))


def test_a_copy_computes_with_its_own_weights():
    first = norm(torch.bfloat16)
    use_rms_norm_in_pieces(first)
    second = copy.deepcopy(first)
    second.weight.zero_()
    assert second(heads(1)).abs().max() == 0 < first(heads(1)).abs().max()
