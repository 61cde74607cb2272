"""What the reading order promises, on hand-made boxes."""

from __future__ import annotations

from math import cos, radians, sin

import pytest

from reward_server.scorers.ocr.engine import TextBox
from reward_server.scorers.ocr.lines import text_lines


def box(text: str, left: float, top: float, right: float, bottom: float, degrees: float = 0.0) -> TextBox:
    """A text in a rectangle, turned around the origin, clockwise as seen (y points down)."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    turned = [(x * c - y * s, x * s + y * c) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
    return TextBox(text, (turned[0], turned[1], turned[2], turned[3]))


def test_no_boxes_no_lines() -> None:
    assert text_lines([]) == []


def test_words_of_a_line_go_from_left_to_right_though_their_heights_differ() -> None:
    boxes = [box("t", 90, 14, 95, 30), box("Only", 50, 8, 80, 32), box("Exit", 10, 10, 40, 30)]
    assert text_lines(boxes) == ["Exit Only t"]


def test_lines_go_from_top_to_bottom() -> None:
    boxes = [box("Page", 40, 60, 90, 80), box("More", 60, 10, 110, 30), box("One", 10, 12, 50, 32)]
    assert text_lines(boxes) == ["One More", "Page"]


def test_a_staircase_of_barely_touching_boxes_is_not_one_line() -> None:
    boxes = [box(str(i), 50 * (3 - i), 12 * i, 50 * (4 - i), 12 * i + 20) for i in range(3)]
    assert text_lines(boxes) == ["0", "1", "2"]  # neighbours share 8 of 20 pixels


def test_a_tall_letter_does_not_swallow_the_next_line() -> None:
    boxes = [box("Once", 0, 0, 20, 50), box("upon", 22, 5, 60, 20), box("a time", 22, 60, 60, 75)]
    assert text_lines(boxes) == ["Once upon", "a time"]


def test_a_flat_dash_belongs_to_its_line() -> None:
    assert text_lines([box("Fi", 40, 10, 60, 30), box("-", 32, 19, 38, 21), box("Wi", 10, 10, 30, 30)]) == ["Wi - Fi"]


@pytest.mark.parametrize("degrees", [-40, -20, 0, 20, 40])
def test_a_slanted_sign_reads_as_a_straight_one(degrees: float) -> None:
    places = {"Grand": (0, 0, 90, 30), "Opening": (100, 0, 220, 30), "every": (0, 40, 80, 70), "Day": (90, 40, 150, 70)}
    boxes = [box(text, *place, degrees) for text, place in reversed(places.items())]
    assert text_lines(boxes) == ["Grand Opening", "every Day"]


def test_boxes_without_height_stay_apart() -> None:
    assert text_lines([box("b", 0, 5, 10, 5), box("a", 0, 0, 10, 0)]) == ["a", "b"]
