"""The two decay schedules and the drift they lead to."""

import pytest

from awm.training.averaging import anchor_decay, average_decay


def test_average_decay_table() -> None:
    table = {0: 0.1, 10: 0.55, 100: 0.9182, 889: 0.98999, 890: 0.99, 5000: 0.99}
    for n, decay in table.items():
        assert average_decay(n, 0.99) == pytest.approx(decay, abs=5e-5)
    assert average_decay(891, 0.99) == 0.99


def test_linear_anchor_decay() -> None:
    assert [anchor_decay(n, 0.3, "linear") for n in (0, 100, 300, 1000)] == pytest.approx([0, 0.1, 0.3, 0.3])
    assert anchor_decay(0, 0.3, "constant") == 0.3


def test_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ValueError, match="known: constant, linear"):
        anchor_decay(0, 0.3, "cosine")


def test_anchor_lags_a_steady_drift_by_three_sevenths() -> None:
    current = anchor = 0.0
    for n in range(1, 500):
        current += 1.0
        decay = anchor_decay(n, 0.3, "linear")
        anchor = decay * anchor + (1 - decay) * current
    assert current - anchor == pytest.approx(3 / 7, abs=1e-9)


def test_schedules_of_the_rivals() -> None:
    # DiffusionNFT for OCR: nothing for 75 updates, then 0.0075 an update; CRD: from a quarter on.
    assert [anchor_decay(n, 0.999, "delayed") for n in (0, 75, 77, 1000)] == pytest.approx([0, 0, 0.015, 0.999])
    assert [anchor_decay(n, 0.999, "offset") for n in (0, 10, 1000)] == pytest.approx([0.25, 0.3, 0.999])
