"""The class list is GenEval's, in COCO's order, and a model with another order is refused."""

from __future__ import annotations

import pytest

from dataset.geneval import vocabulary
from reward_server.scorers.geneval.coco import CLASSES, check_classes


def test_the_prompts_ask_for_the_classes_the_detector_knows() -> None:
    assert CLASSES == vocabulary.CLASSES


def test_eighty_names_in_cocos_order_under_genevals_spelling() -> None:
    assert len(set(CLASSES)) == 80
    assert {0: "person", 64: "computer mouse", 65: "tv remote", 66: "computer keyboard", 79: "toothbrush"}.items() <= (
        dict(enumerate(CLASSES)).items()
    )


def test_cocos_own_spelling_is_accepted() -> None:
    names = dict(enumerate(CLASSES)) | {64: "mouse", 65: "remote", 66: "keyboard"}
    check_classes(80, names, "a model")


def test_no_names_are_accepted() -> None:
    check_classes(80, {}, "a model")


@pytest.mark.parametrize(
    ("count", "names", "complaint"),
    [
        (133, {}, "133 classes"),
        (80, {0: "background"}, "'background', not 'person'"),
        (80, {0: "person", 79: "zebra"}, "'zebra', not 'toothbrush'"),
    ],
)
def test_other_classes_are_refused(count: int, names: dict[int, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_classes(count, names, "a model")
