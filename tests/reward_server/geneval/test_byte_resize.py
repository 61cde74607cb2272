"""Resizing of bytes reproduces OpenCV to the last bit, on values that OpenCV 4.11 and 5.0 computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reward_server.scorers.geneval.byte_resize import resize_bytes

IMAGE = np.array([[168, 229, 184, 171], [238, 171, 20, 206], [245, 153, 204, 5]], np.uint8)
BY_OPENCV = (
    [
        [168, 190, 224, 206, 183, 175, 171],
        [196, 199, 205, 162, 123, 161, 185],
        [238, 214, 176, 96, 33, 140, 206],
        [242, 213, 166, 145, 127, 101, 85],
        [245, 212, 159, 178, 190, 76, 5],
    ],
    [[190, 179, 174], [229, 158, 72]],
)


def resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return resize_bytes(torch.from_numpy(image)[None], size)[0].numpy()


@pytest.mark.parametrize("expected", BY_OPENCV)
def test_equal_to_opencv(expected: list[list[int]]) -> None:
    result = resized(IMAGE, (len(expected), len(expected[0])))
    assert result.dtype == np.uint8
    assert result.tolist() == expected


def test_it_is_not_the_rounded_exact_value() -> None:
    exact = torch.nn.functional.interpolate(torch.from_numpy(IMAGE)[None, None].float(), size=(5, 7), mode="bilinear")
    difference = exact.round()[0, 0].numpy() - resized(IMAGE, (5, 7))
    assert np.abs(difference).max() == 1


def test_the_same_size_changes_nothing() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(resized(values, (16, 16)), values)


def test_channels_do_not_mix() -> None:
    image = torch.from_numpy(np.stack([IMAGE, 255 - IMAGE]))
    first, second = resize_bytes(image, (5, 7)).numpy()
    assert first.tolist() == BY_OPENCV[0]
    assert np.array_equal(second, resized(255 - IMAGE, (5, 7)))
