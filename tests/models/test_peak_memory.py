"""What the count of bytes alive promises: the numbers a careful person would write down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awm.models.flops import count_costs
from awm.models.peak_memory import Line, Peaks, count_peaks, peak_bytes
from awm.models.weightless import META, Weightless, load_weightless


def test_what_is_alive_at_once_counts_and_what_is_gone_does_not():
    x = torch.empty(1000, device=META)  # held before: not counted

    def chain() -> None:
        a = x * 2  # 4000 bytes
        b = a * 3  # 8000
        del a
        c = b.reshape(10, 100)[2:]  # a view: no memory of its own
        del b
        (c * 2).sum()  # 3200 more than b, which its view keeps

    assert peak_bytes(chain, [x]) == 8000

    def views_keep() -> None:
        c = (x * 2).reshape(10, 100)[2:]
        d = torch.cat([c, c])  # 4000 + 6400
        del c, d

    assert peak_bytes(views_keep, [x]) == 4000 + 6400


def test_a_backward_pass_holds_what_its_forward_kept():
    weight = torch.empty(100, 100, device=META, requires_grad=True)
    x = torch.empty(50, 100, device=META)

    def work() -> None:
        hidden = (x @ weight).relu()  # the product dies, its relu is kept: 20000 bytes
        (hidden @ weight).sum().backward()

    # hidden, gradients of the last product and of hidden, and both parts of the weight's gradient with their sum
    assert 40_000 + 40_000 <= peak_bytes(work, [weight, x]) <= 3 * 20_000 + 3 * 40_000
    assert weight.grad is not None


def test_attention_never_holds_the_matrix_of_all_pairs():
    query = torch.empty(1, 2, 4096, 8, device=META, requires_grad=True)

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    assert peak_bytes(attend, [query]) < 10 * query.nbytes < 4096 * 4096 * 4


@pytest.fixture(scope="module")
def peaks(checkpoint: Path) -> dict[bool, Peaks]:
    return {on: count_peaks(parts_of(checkpoint), resolution=32, gradient_checkpointing=on) for on in (False, True)}


def parts_of(checkpoint: Path) -> Weightless:
    parts = load_weightless(str(checkpoint), revision="", max_sequence_length=None, dtype=torch.float32)
    parts.transformer.requires_grad_(True)
    return parts


def test_a_model_s_peaks_are_affine_and_of_the_right_size(checkpoint: Path, peaks: dict[bool, Peaks]):
    saved = count_costs(parts_of(checkpoint), resolution=32, gradient_checkpointing=False).saved_bytes
    assert 0.8 * saved <= peaks[False].training.per_row <= 2 * saved
    assert 0 < peaks[False].sampling.per_row < peaks[False].training.per_row
    assert peaks[False].decoding.per_row > 4 * 16 * 32 * 32  # a map of the decoder's 16 channels
    assert peaks[False].decoded_at_once == 32


def test_checkpointing_holds_less(peaks: dict[bool, Peaks]):
    assert peaks[True].training.per_row < peaks[False].training.per_row
    assert peaks[True].sampling == peaks[False].sampling


def test_a_line_is_one():
    assert Line(3.0, 2.0)(5) == 13.0
