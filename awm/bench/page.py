"""``algorithms.html``: one file without links to anything, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from awm.bench.cells import plus_minus
from awm.bench.comparison import Comparison
from awm.bench.jobs import SCORE, SECOND, Record
from awm.bench.measures import is_above_zero
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
TEST = "95 % t intervals of the differences, paired by seed; not adjusted for picking the best"
ORIGINS = (
    "What all arms share, the geometry of an epoch and the middle of the learning rates, was once tuned for AWM; and "
    "the held-out prompts are those that earlier development looked at, too."
)


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
        folder: with ``records``, for the pictures.
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
    sections.append(failures_section(comparison.unfinished))
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
        return "No arm has a result yet."
    first, *others = comparison.rows
    leads = (
        f"{first.named} leads with {plus_minus(first.score)}, {signed(first.score.mean - comparison.base)} over the "
        "untrained model"
    )
    marked = [row.named for row in comparison.rows if row.mark]
    incomplete = f" Not all runs are there or finished: {', '.join(marked)}." if marked else ""
    if not others:
        return f"{leads}; it is the only arm.{incomplete}"
    tied = [row.named for row in others if not _is_behind(row, first)]
    more = f" and {len(tied) - MAX_NAMED} more" if len(tied) > MAX_NAMED else ""
    named = f"not clearly behind: {', '.join(tied[:MAX_NAMED])}{more}" if tied else "all others are clearly behind"
    return f"{leads}; {named} ({TEST}).{incomplete}"


def _is_behind(row: Row, first: Row) -> bool:
    """With fewer than two seeds in common nothing is known of their spread, and nobody is."""
    return is_above_zero([first.scores[seed] - row.scores[seed] for seed in first.scores if seed in row.scores])


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
    if comparison.absent:
        num_arms = len(comparison.rows) + len(comparison.absent)
        notes.append(f"{len(comparison.rows)} of {num_arms} arms; missing: {', '.join(comparison.absent)}.")
    if len(settings.reported) < 3:
        notes.append(f"Only {count(len(settings.reported), 'seed')}: fewer than three say little about a ranking.")
    if not comparison.same_base:
        notes.append(
            "The untrained model did not score the same in all runs, as it should with the same prompts and noise: "
            "they were made on machines that round differently, and differences of that size mean nothing."
        )
    machines = {record["machine"] for record in records.values()}
    if len(machines) > 1:
        notes.append(f"Made on {len(machines)} machines: seconds cannot be compared between them.")
    commits = {record["commit"] for record in records.values()}
    if len(commits) > 1:
        notes.append(f"Made by {len(commits)} commits: the code of some runs may differ beside their configuration.")
    if any(record["clean"] is False for record in records.values()):
        notes.append("Some runs were made with uncommitted changes: their commit does not say all of their code.")
    if len({tuple(sorted(record["versions"].items())) for record in records.values()}) > 1:
        notes.append("Made with different versions of the libraries.")
    return [*notes, ORIGINS]


def _commands(settings: Settings, records: Mapping[str, Record], folder: Path, command: str) -> str:
    example = next((record["command"] for record in records.values() if record["stage"] == "final"), "")
    commits = dict.fromkeys(
        f"{record['commit']}{'' if record['clean'] else ' with uncommitted changes'}" for record in records.values()
    )
    parts = {
        "This page, and what was missing for it": command,
        "Write this page again": f"awm-bench algorithms --out {folder} --stage page",
        "A reward server for a single run": f"awm-reward-server --scorer {SCORE.partition('.')[0]} --scorer {SECOND}",
        "A single run": example,
        "Commits": "\n".join(commits),
        "Machines": "\n".join(dict.fromkeys(record["machine"] for record in records.values())),
        "Precision, and overrides of all arms": " ".join([settings.precision, *settings.overrides]),
    }
    items = "".join(f"<dt>{escape(k)}</dt><dd><pre>{escape(v)}</pre></dd>" for k, v in parts.items() if v)
    return f'<h2>Reproduce</h2><dl class="how">{items}</dl>'
