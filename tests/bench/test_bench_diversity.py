"""Distance between the images of a prompt."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from awm.bench.diversity import diversity, read_image, side_by_side


def flat(value: float) -> np.ndarray:
    return np.full((4, 4, 3), value)


def test_by_hand():
    # Prompt 0: |0.1 - 0.4|; prompt 1: (0.2 + 0.6 + 0.4) / 3.
    images = [flat(0.1), flat(0.4), flat(0.0), flat(0.2), flat(0.6)]
    assert diversity(images, [0, 0, 1, 1, 1]) == pytest.approx((0.3 + 0.4) / 2, abs=1e-12)


def test_distances_between_prompts_do_not_count():
    assert diversity([flat(0.0), flat(1.0), flat(0.0), flat(1.0)], [0, 1, 0, 1]) == 0.0


def test_root_mean_square_over_pixels():
    image = flat(0.0)
    image[0, 0, 0] = 1.0
    assert diversity([flat(0.0), image], ["p", "p"]) == pytest.approx(math.sqrt(1 / 48), abs=1e-12)


def test_a_prompt_with_one_image_is_left_out():
    assert diversity([flat(0.1), flat(0.4), flat(0.9)], [0, 0, 1]) == pytest.approx(0.3)
    assert math.isnan(diversity([flat(0.1)], [0]))


def test_a_strip_holds_the_images_in_order(tmp_path: Path):
    side_by_side([flat(0.0), flat(1.0)]).save(tmp_path / "x.png")
    strip = read_image(tmp_path / "x.png")
    assert strip.shape == (4, 8, 3) and strip[:, :4].max() == 0.0 and strip[:, 4:].min() == 1.0
