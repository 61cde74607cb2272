"""GenEval's rules: from detected objects to "does this image show what was asked?". Pure Python.

Two public rules exist and both are kept, by name:

* **correct**, the official benchmark (https://arxiv.org/abs/2310.11513): at least ``count`` objects; colour and
  position are checked on the ``count`` most confident ones; ``exclude`` is honoured.
* **strict**, the training rule of Flow-GRPO's reward server: exactly ``count`` objects, all of them checked;
  ``exclude`` is ignored (an exact count already implies the official ones).

and two dense rewards, means over terms for count, colour and position:

* **soft_reference** follows Flow-GRPO's server to the letter: the count term 1 - |n - count| / count has no
  floor (-14 at 16 objects instead of one); a failed relation adds 0 *and then* 1, so that it scores 3/4 where
  2/3 was meant; and a check that could not be made may or may not add a zero, so that the number of terms
  depends on the image.
* **soft** has one term per check the prompt states, each in [0, 1], zero if the check could not be made. It is
  1 exactly when strict holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import copysign, hypot
from typing import Any

from reward_server.scorers.geneval.metadata import Clause, Requirements

SCORE_THRESHOLD = 0.3
COUNTING_SCORE_THRESHOLD = 0.9  # GenEval's own: counting prompts need confident objects
MAX_OBJECTS_PER_CLASS = 16
POSITION_THRESHOLD = 0.1  # share of the two objects' sizes by which they must be apart
UNIT_OFFSET_THRESHOLD = 0.5

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, y down; the right and lower edges are exclusive."""


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One detected object.

    Attributes:
        class_name: what it is.
        score: confidence in [0, 1].
        box: where it is.
        color: its colour, if the detector finds it on the way.
        mask: [height, width] bool of the box, which of its pixels are the object's, if the detector segments.
    """

    class_name: str
    score: float
    box: Box
    color: str | None = None
    mask: Any = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say about one image; the module docstring defines the four."""

    correct: bool
    strict: bool
    soft: float
    soft_reference: float


Selection = Mapping[str, Sequence[Detection]]
"""class name -> its detections, most confident first."""


def select(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """Detections that count: above the tag's threshold, at most sixteen per class, most confident first."""
    threshold = COUNTING_SCORE_THRESHOLD if tag == "counting" else SCORE_THRESHOLD
    selected: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        of_class = selected.setdefault(detection.class_name, [])
        if detection.score > threshold and len(of_class) < MAX_OBJECTS_PER_CLASS:
            of_class.append(detection)
    return selected


def colors_needed(selected: Selection, requirements: Requirements) -> dict[str, int]:
    """Class -> of how many of its most confident objects ``judge`` will want the colour."""
    needed: dict[str, int] = {}
    for clause in requirements.include:
        # With too few objects the clause fails before anyone looks at colours.
        if clause.color is not None and len(selected.get(clause.class_name, ())) >= clause.count:
            needed[clause.class_name] = max(clause.count, needed.get(clause.class_name, 0))
    return needed


def judge(selected: Selection, requirements: Requirements, colors: Mapping[str, Sequence[str]]) -> Verdict:
    """Apply all rules to one image.

    Args:
        selected: what ``select`` returned.
        requirements: what the prompt asks for.
        colors: class -> colours of its most confident objects, at least as many as ``colors_needed`` says.
    """
    outcomes = _outcomes(selected, requirements.include, colors)
    soft = [term for outcome in outcomes for term in outcome.soft_terms()]
    reference = [term for outcome in outcomes for term in outcome.reference_terms()]
    return Verdict(
        correct=_officially_correct(selected, requirements, colors),
        strict=all(outcome.matched for outcome in outcomes),
        soft=sum(soft) / len(soft),
        soft_reference=sum(reference) / len(reference),
    )


def relations(a: Box, b: Box) -> set[str]:
    """Where ``a`` is relative to ``b``: none, one or two of "left of", "right of", "above", "below".

    The offset between the centres is shrunk by a tenth of the two sizes and divided by the length of the
    unshrunk offset; a component beyond one half counts.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [a[i + 2] - a[i] + b[i + 2] - b[i] for i in (0, 1)]
    shrunk = [copysign(max(abs(o) - POSITION_THRESHOLD * s, 0.0), o) for o, s in zip(offset, sizes, strict=True)]
    if all(abs(s) < 1e-3 for s in shrunk):
        return set()
    dx, dy = (s / hypot(*offset) for s in shrunk)
    found = {
        "left of": dx < -UNIT_OFFSET_THRESHOLD,
        "right of": dx > UNIT_OFFSET_THRESHOLD,
        "above": dy < -UNIT_OFFSET_THRESHOLD,
        "below": dy > UNIT_OFFSET_THRESHOLD,
    }
    return {name for name, holds in found.items() if holds}


def _related(objects: Sequence[Detection], targets: Sequence[Detection], relation: str) -> bool:
    return all(relation in relations(o.box, target.box) for o in objects for target in targets)


def _officially_correct(selected: Selection, requirements: Requirements, colors: Mapping[str, Sequence[str]]) -> bool:
    groups: list[Sequence[Detection] | None] = []
    for clause in requirements.include:
        objects = list(selected.get(clause.class_name, ()))[: clause.count]
        matched = len(objects) == clause.count
        if matched and clause.color is not None:
            matched = all(color == clause.color for color in colors[clause.class_name][: clause.count])
        if matched and clause.position is not None:
            targets = groups[clause.position[1]]
            matched = targets is not None and _related(objects, targets, clause.position[0])
        groups.append(objects if matched else None)
    excluded = any(len(selected.get(c.class_name, ())) >= c.count for c in requirements.exclude)
    return None not in groups and not excluded


@dataclass(slots=True)
class _Outcome:
    """How one clause fared under the strict rule; None means that the check was not made."""

    clause: Clause
    found: int
    painted: int | None = None
    has_target: bool | None = None
    related: bool | None = None

    @property
    def counted(self) -> bool:
        return self.found == self.clause.count

    @property
    def matched(self) -> bool:
        color_holds = self.clause.color is None or self.painted == self.clause.count
        position_holds = self.clause.position is None or self.related is True
        return self.counted and color_holds and position_holds

    def soft_terms(self) -> list[float]:
        terms = [max(0.0, self._count_term())]
        if self.clause.color is not None:
            terms.append((self.painted or 0) / self.clause.count)
        if self.clause.position is not None:
            terms.append(float(self.related is True))
        return terms

    def reference_terms(self) -> list[float]:
        terms = [self._count_term()]
        if not self.counted:
            has_more_checks = self.clause.color is not None or self.clause.position is not None
            return terms + [0.0] * has_more_checks
        if self.painted is not None:
            terms.append(self.painted / self.clause.count)
        if self.has_target is False:
            terms.append(0.0)
        if self.related is not None:
            terms += [1.0] if self.related else [0.0, 1.0]  # the extra 1 is the public code's quirk
        return terms

    def _count_term(self) -> float:
        return 1.0 - abs(self.clause.count - self.found) / self.clause.count


def _outcomes(selected: Selection, clauses: Sequence[Clause], colors: Mapping[str, Sequence[str]]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    for clause in clauses:
        objects = selected.get(clause.class_name, ())
        outcome = _Outcome(clause, found=len(objects))
        if outcome.counted and clause.color is not None:
            outcome.painted = list(colors[clause.class_name][: clause.count]).count(clause.color)
        right_color = clause.color is None or outcome.painted == clause.count
        if outcome.counted and right_color and clause.position is not None:
            target = outcomes[clause.position[1]]
            outcome.has_target = target.matched
            if target.matched:
                targets = selected[target.clause.class_name]
                outcome.related = _related(objects, targets, clause.position[0])
        outcomes.append(outcome)
    return outcomes
