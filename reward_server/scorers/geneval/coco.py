"""The 80 classes a COCO detector tells apart, by index, under the names GenEval gives them.

Three names differ from COCO's own so that they can be understood out of context: "computer mouse" (mouse), "tv
remote" (remote) and "computer keyboard" (keyboard). Detectors are therefore read by index, never by name.
https://arxiv.org/abs/2310.11513
"""

from __future__ import annotations

from collections.abc import Mapping

CLASSES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)


def check_classes(count: int, names: Mapping[int, str], model: str) -> None:
    """Make sure that the indices a detector reports mean the classes above.

    Args:
        count: how many classes it has.
        names: index -> its own name of the class, as far as it has names.
        model: what to call it in an error.

    Raises:
        ValueError: it was trained on other classes, or on these in another order.
    """
    if count != len(CLASSES):
        raise ValueError(
            f"{model} tells {count} classes apart; GenEval needs the {len(CLASSES)} of COCO instance segmentation, "
            "such as facebook/mask2former-swin-small-coco-instance (a panoptic or semantic model will not do)"
        )
    for index in (0, len(CLASSES) - 1):
        # The first and last name tell the usual order from an alphabetical one and from lists that begin with
        # a background class; the names in between differ in spelling from model to model.
        if names.get(index, CLASSES[index]) != CLASSES[index]:
            raise ValueError(
                f"{model} calls its class {index} {names[index]!r}, not {CLASSES[index]!r}: its classes are not in "
                "COCO's order, and every object would be taken for another; use a model trained with COCO's order"
            )
