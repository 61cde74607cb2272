"""Judges by name, with the questions they ask; every option of a preset can be given another value.

The UnifiedReward models were trained on one wording each. The presets here ask for the same lines of output in our
own words; to reproduce published numbers, give the wording of the model card as ``template``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from reward_server.scorers.vlm.judge import Judge
from reward_server.scorers.vlm.questions import SoftTifa
from reward_server.scorers.vlm.rubric import NUMBER, Rubric
from reward_server.scorers.vlm.yes_no import YesNo

_VQASCORE = 'Does this figure show "{prompt}"? Please answer yes or no.'

_SOFT_TIFA = "{question} Answer in one word."

_UNIFIED_REWARD = """\
Look at the generated image and at the caption it was made from, and rate the image on three scales from 1 (worst) to
5 (best); decimals are allowed.
- Alignment: does the content of the image agree with the caption?
- Coherence: is the image consistent in itself, free of distorted objects and artefacts?
- Style: is the image pleasing to look at, whatever the caption says?
Answer with exactly these three lines:
Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

Text Caption: [{prompt}]"""

_UNIFIED_REWARD_FINAL = """\
Judge the generated image by two criteria: how well its objects, their attributes and their relations agree with the
caption, and how good it looks (clarity, detail, colour, composition).
Name each element of the caption as 'element (type): value', where value is 1 if the image shows it and 0 if not.
Then end with a number from 1 (worst) to 5 (best) after 'Final Score:'.

Text Caption: [{prompt}]"""

_COLON = r"[\s*]*:[\s*]*"  # perhaps in bold; demanded, lest the 1 of "(1-5)" be taken for the score
_AXES = ("Alignment", "Coherence", "Style")

PRESETS: Mapping[str, tuple[Callable[..., Judge], Mapping[str, Any]]] = {
    "vqascore": (YesNo, {"template": _VQASCORE}),
    "soft_tifa": (SoftTifa, {"template": _SOFT_TIFA}),
    "unifiedreward": (
        Rubric,
        {
            "template": _UNIFIED_REWARD,
            "fields": {axis.lower(): rf"{axis} Score(?: \(1-5\))?{_COLON}{NUMBER}" for axis in _AXES},
            "low": 1.0,
            "high": 5.0,
        },
    ),
    "unifiedreward_final": (
        Rubric,
        {
            "template": _UNIFIED_REWARD_FINAL,
            "fields": {"final": rf"Final Score{_COLON}{NUMBER}"},
            "low": 1.0,
            "high": 5.0,
            "max_tokens": 2048,
        },
    ),
    "rubric": (Rubric, {}),
}
"""Name -> the judge's class, and the options it is built with unless others are given."""


def build_judge(preset: str, options: Mapping[str, Any]) -> Judge:
    """The judge of a preset, with some of its options replaced.

    Raises:
        ValueError: an unknown preset or option, an option that is missing, or a value the judge refuses.
    """
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, list(PRESETS), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}.{hint}")
    make, defaults = PRESETS[preset]
    given = {**defaults, **options}
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        known = ", ".join(inspect.signature(make).parameters)
        raise ValueError(f"preset {preset!r}: {error}; its options are {known}.") from None
    return make(**given)
