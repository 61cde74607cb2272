"""``algorithms.html``: one file without links to anything, from the records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from awm.bench.cells import plus_minus
from awm.bench.comparison import Comparison
from awm.bench.jobs import SCORE, SECOND, Record
from awm.bench.method_sections import (
    configurations_section,
    failures_section,
    pictures_section,
    stability_section,
    tuning_section,
)
from awm.bench.page_style import EXTRA_STYLE
from awm.bench.result_sections import curves_section, guards_section, ranking_section, thresholds_section
from awm.bench.rows import Row
from awm.bench.settings import Settings
from awm.bench.stability import Stability
from awm.report.style import STYLE
from awm.report.text import count, signed

TITLE = "Learning rules, compared"
MAX_NAMED = 6


def page(
    comparison: Comparison,
    ranking: Stability,
    settings: Settings,
    records: Mapping[str, Record],
    folder: Path,
    command: str,
) -> str:
    """The whole page.

    Args:
        comparison: of the arms.
        ranking: whether it is stable.
        settings: of the comparison.
        records: of its runs.
        folder: with ``runs``, for the pictures.
        command: that wrote it.
    """
    rows = comparison.rows
    sections = [_header(comparison, ranking, settings, records)]
    if rows:
        sections += [
            ranking_section(comparison, settings),
            thresholds_section(comparison),
            curves_section(comparison),
            guards_section(comparison),
            pictures_section(rows, records, folder, settings),
            stability_section(rows, ranking),
        ]
    sections += [tuning_section(comparison, settings), configurations_section(rows, records)]
    sections.append(failures_section(comparison.failed))
    sections.append(_commands(settings, records, folder, command))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}{EXTRA_STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def verdict(comparison: Comparison) -> str:
    """Who leads, by how much, and who might as well."""
    if not comparison.rows:
        return "No arm has a finished run yet."
    first, *others = comparison.rows
    tied = [row.title for row in others if not _is_behind(row, first)]
    leads = (
        f"{first.title} leads with {plus_minus(first.score)}, {signed(first.score.mean - comparison.base)} over the "
        "untrained model"
    )
    if not others:
        return f"{leads}; it is the only arm."
    if not tied:
        return f"{leads}; all others are at least two standard errors behind."
    more = f" and {len(tied) - MAX_NAMED} more" if len(tied) > MAX_NAMED else ""
    return f"{leads}; less than two standard errors behind: {', '.join(tied[:MAX_NAMED])}{more}."


def _is_behind(row: Row, first: Row) -> bool:
    """By two standard errors; with a single run nothing is known about them, and nobody is."""
    return first.score.mean - row.score.mean >= 2 * math.hypot(first.score.standard_error, row.score.standard_error)


def _header(comparison: Comparison, ranking: Stability, settings: Settings, records: Mapping[str, Record]) -> str:
    subtitle = (
        f"tiny shapes world · {count(settings.images, 'training image')} per run · "
        f"{count(len(settings.reported), 'seed')} each · held-out {SCORE} of {count(2 * settings.prompts, 'image')}, "
        "the same prompts and noise for all"
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in caveats(comparison, settings, records))
    return (
        f'<h1>{TITLE}</h1><p class="subtitle">{escape(subtitle)}</p>'
        f'<p class="verdict">{escape(verdict(comparison))} {escape(ranking.sentence)}</p>{notes}'
    )


def caveats(comparison: Comparison, settings: Settings, records: Mapping[str, Record]) -> list[str]:
    """What a reader should know before believing the table."""
    notes = []
    if len(settings.reported) < 3:
        notes.append(f"Only {count(len(settings.reported), 'seed')}: fewer than three say little about a ranking.")
    if comparison.missing:
        arms = ", ".join(f"{arm} (seeds {' '.join(map(str, seeds))})" for arm, seeds in comparison.missing.items())
        notes.append(f"Runs are missing of {arms}.")
    if comparison.failed:
        notes.append(f"{count(len(comparison.failed), 'run')} failed; see below.")
    if not comparison.same_base:
        notes.append(
            "The untrained model did not score the same in all runs, as it should with the same prompts and noise: "
            "they were made on machines that round differently, and differences of that size mean nothing."
        )
    machines = {record["machine"] for record in records.values()}
    if len(machines) > 1:
        notes.append(f"Made on {len(machines)} machines: seconds cannot be compared between them.")
    return notes


def _commands(settings: Settings, records: Mapping[str, Record], folder: Path, command: str) -> str:
    example = next((record["command"] for record in records.values() if record["stage"] == "final"), "")
    commits = dict.fromkeys(
        f"{record['commit']}{'' if record['clean'] else ' with uncommitted changes'}" for record in records.values()
    )
    parts = {
        "This page, and what was missing for it": command,
        "Write this page again": f"awm-bench algorithms --out {folder} --page-only",
        "A reward server for a single run": f"awm-reward-server --scorer {SCORE.partition('.')[0]} --scorer {SECOND}",
        "A single run": example,
        "Commits": "\n".join(commits),
        "Machines": "\n".join(dict.fromkeys(record["machine"] for record in records.values())),
        "Precision, and overrides of all arms": " ".join([settings.precision, *settings.overrides]),
    }
    items = "".join(f"<dt>{escape(k)}</dt><dd><pre>{escape(v)}</pre></dd>" for k, v in parts.items() if v)
    return f'<h2>Reproduce</h2><dl class="how">{items}</dl>'
