"""Which images an evaluation has, and in which batches they are made."""

from __future__ import annotations

from awm.data.prompts import PromptSet
from awm.held_out.items import batches, evaluation_items

PROMPTS = PromptSet(("a", "b", "a", "c"), ({"tag": "x"}, {}, {"tag": "y"}, {}))


def test_a_text_that_stands_twice_gets_other_images_the_second_time():
    items = evaluation_items(PROMPTS, 2)
    assert [(i.index, i.prompt, i.copy, i.tag) for i in items] == [
        *((0, "a", 0, "x"), (1, "a", 1, "x"), (2, "b", 0, ""), (3, "b", 1, "")),
        *((4, "a", 2, "y"), (5, "a", 3, "y"), (6, "c", 0, ""), (7, "c", 1, "")),
    ]


def test_a_subset_is_evenly_spaced_and_keeps_each_image_s_number():
    assert [(i.index, i.prompt_index, i.copy) for i in evaluation_items(PROMPTS, 1, 2)] == [(0, 0, 0), (1, 2, 1)]


def test_borders_of_batches_do_not_move_when_some_are_done():
    items = evaluation_items(PROMPTS, 2)
    whole = batches(items, 3)
    assert [[i.index for i in batch] for batch in whole] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert batches(items, 3, done={0, 1, 2, 6, 7}) == [whole[1]]
    # Another batch size later on: nothing that is done is made again.
    assert [[i.index for i in batch] for batch in batches(items, 2, done={0, 1, 2})] == [[3], [4, 5], [6, 7]]
