"""The GenEval reward: detector + rules -> four numbers per image, or an error that names what is wrong."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_server.scorers.base import Item, ItemError, Outcome, Scores
from reward_server.scorers.geneval.detector import Detector, RGBImage
from reward_server.scorers.geneval.metadata import MetadataError, Requirements, parse_metadata
from reward_server.scorers.geneval.rules import Detection, Selection, colors_needed, judge, select
from reward_server.scorers.table import load

VERSION = "1"  # of rules and preprocessing; raise it with any change that can change a score

DETECTORS: dict[str, str] = {
    "hf": "reward_server.scorers.geneval.mask2former:Mask2FormerDetector",
    "mmdet": "reward_server.scorers.geneval.mmdet_detector:MmdetDetector",
    "shapes": "reward_server.scorers.geneval.shapes:ShapesDetector",
}
"""Name -> dotted path of a class with the methods of ``Detector``, imported when chosen."""


class GenevalScorer:
    """Scores images by GenEval's rules: ``score`` is the soft reward; the metrics hold the other three.

    Args:
        detector: a name in ``DETECTORS``: "hf" is the real one, "mmdet" its original in an environment of its own,
            "shapes" the one for the drawn shapes of the tiny model.
        detector_options: keyword arguments of that detector's class.

    Raises:
        ValueError: the detector, one of its options or its model is unknown.
    """

    def __init__(self, detector: str = "shapes", **detector_options: Any) -> None:
        make: Callable[..., Detector] = load(DETECTORS, detector, "detector")
        _check_options(make, detector, detector_options)
        self.detector = make(**detector_options)

    def fingerprint(self) -> Mapping[str, str]:
        """Version of the rules, and the detector's own fingerprint."""
        return {"rules_version": VERSION, **self.detector.fingerprint()}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """A prompt and metadata this scorer accepts, for the warm-up."""
        name = self.detector.classes[0]
        return f"a photo of a {name}", {"tag": "single_object", "include": [{"class": name, "count": 1}]}

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Result of each item, in order; bad metadata costs only its own item its score."""
        outcomes: dict[int, Outcome] = {}
        jobs: list[tuple[int, RGBImage, Requirements]] = []
        for index, item in enumerate(items):
            try:
                jobs.append((index, item.image, parse_metadata(item.metadata, self.detector.classes)))
            except MetadataError as error:
                outcomes[index] = ItemError("bad_metadata", str(error))
        for (index, _, _), scores in zip(jobs, self._score([job[1:] for job in jobs]), strict=True):
            outcomes[index] = scores
        return [outcomes[index] for index in range(len(items))]

    def _score(self, jobs: Sequence[tuple[RGBImage, Requirements]]) -> list[Scores]:
        found = self.detector.detect([image for image, _ in jobs])
        selected = [select(objects, wanted.tag) for objects, (_, wanted) in zip(found, jobs, strict=True)]
        colors = self._colors(jobs, selected)
        verdicts = [judge(s, wanted, c) for s, (_, wanted), c in zip(selected, jobs, colors, strict=True)]
        return [
            Scores(
                score=v.soft,
                metrics={"strict": float(v.strict), "correct": float(v.correct), "soft_reference": v.soft_reference},
            )
            for v in verdicts
        ]

    def _colors(
        self, jobs: Sequence[tuple[RGBImage, Requirements]], selected: Sequence[Selection]
    ) -> list[dict[str, list[str]]]:
        """Per image: class -> colours of its top objects. One detector call for the whole batch."""
        colors: list[dict[str, list[str]]] = [{} for _ in jobs]
        queries: list[tuple[RGBImage, Detection]] = []
        answers: list[list[str]] = []  # where the answer to each query goes
        for (image, wanted), objects, of_image in zip(jobs, selected, colors, strict=True):
            for name, count in colors_needed(objects, wanted).items():
                queries += [(image, detection) for detection in objects[name][:count]]
                answers += [of_image.setdefault(name, [])] * count
        for answer, color in zip(answers, self.detector.colors(queries), strict=True):
            answer.append(color)
        return colors


def _check_options(make: Callable[..., Detector], detector: str, options: Mapping[str, Any]) -> None:
    known = inspect.signature(make).parameters
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"the {detector} detector has no option {name!r}; {takes}.{hint}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ValueError(f"the {detector} detector needs the option {name!r}")
