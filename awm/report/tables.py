"""Held-out scores before and after, by task: HTML for the page, plain text for the console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from awm.report.run_folder import RunFolder, load_run
from awm.report.statistics import PairedGain, mean_of_tasks
from awm.report.text import MINUS, count, number, score_label, signed, task_label, times


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; a summary closes it."""

    label: str
    gains: tuple[PairedGain, ...]
    is_summary: bool = False


def task_scores(run: RunFolder) -> tuple[str, ...]:
    """The scores shown by task: the headline, and GenEval's official "correct" beside its strict one."""
    if run.headline is None:
        return ()
    official = run.headline.rpartition(".")[0] + ".correct"
    return (run.headline, official) if official != run.headline and official in run.score_names else (run.headline,)


def task_rows(run: RunFolder, names: Sequence[str]) -> list[Row]:
    """A row for each task, their mean if there are several, and all images together."""
    tags = [tag for tag in dict.fromkeys(pair.before.tag for pair in run.pairs) if tag]
    rows = [Row(task_label(tag), tuple(run.gain(name, tag) for name in names)) for tag in tags]
    if len(rows) > 1:
        means = tuple(mean_of_tasks([row.gains[i] for row in rows]) for i in range(len(names)))
        rows.append(Row("mean of tasks", means, is_summary=True))
    return [*rows, Row("all images", tuple(run.gain(name) for name in names), is_summary=True)]


def task_table_html(run: RunFolder) -> str:
    """The table by task with two groups of columns, strict and official, if both were scored."""
    names = task_scores(run)
    groups = "".join(f'<th colspan="3" class="group">{escape(score_label(name))}</th>' for name in names)
    columns = '<th class="group">before</th><th>after</th><th>change</th>' * len(names)
    body = "".join(_html_row(row) for row in task_rows(run, names))
    return (
        f'<div class="scroll"><table><thead><tr><th></th><th></th><th class="move"></th>{groups}</tr>'
        f'<tr><th class="name">task</th><th>n</th><th class="move"></th>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def score_table_html(run: RunFolder) -> str:
    """Every score that was logged, over all images."""
    rows = [Row(name, (run.gain(name),)) for name in run.score_names]
    body = "".join(_html_row(row) for row in rows)
    return (
        '<div class="scroll"><table><thead><tr><th class="name">score</th><th>n</th><th class="move"></th>'
        '<th class="group">before</th><th>after</th><th>change</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def change_class(gain: PairedGain) -> str:
    """``up`` or ``down`` for a change of two standard errors or more, else ``flat``."""
    return "flat" if not gain.is_clear else "up" if gain.gain > 0 else "down"


def console_table(path: Path) -> str:
    """The table by task as plain text, for the end of a run."""
    run = load_run(path)
    names = task_scores(run)
    if not names or not run.pairs or run.before is None or run.after is None:
        return f"No held-out comparison in {path} yet: it needs an evaluation before and one after training."
    rows = task_rows(run, names)
    width = max(len(row.label) for row in rows)
    titles = " |".join(f"{score_label(name):^42}" for name in names)
    columns = " |".join(f"{'before':>9}{'after':>9}{'gain':>9}{'SE':>8}{'in SE':>7}" for _ in names)
    header = [f"{'':{width}}  {'':>5} {titles}", f"{'task':{width}}  {'n':>5} {columns}"]
    rule = "-" * len(header[1])
    tasks = [_console_row(row, width) for row in rows if not row.is_summary]
    totals = [_console_row(row, width) for row in rows if row.is_summary]
    body = [*tasks, rule, *totals] if tasks else totals
    overall = run.gain(names[0])
    return "\n".join(
        [
            f"Held-out images before training and after epoch {run.after.epoch}, same prompts and noise",
            *header,
            rule,
            *body,
            f"{score_label(names[0])}: {count(overall.wins, 'image')} rose, {overall.losses:,} fell, "
            f"{overall.n - overall.wins - overall.losses:,} stayed the same. SE: standard error of the gain by prompt.",
        ]
    )


def _console_row(row: Row, width: int) -> str:
    cells = []
    for gain in row.gains:
        texts = (number(gain.before), number(gain.after), signed(gain.gain), number(gain.standard_error))
        before, after, change, error = (text.replace(MINUS, "-") for text in texts)
        ratio = times(gain.in_standard_errors).replace(MINUS, "-")
        cells.append(f"{before:>9}{after:>9}{change:>9}{error:>8}{ratio:>7}")
    return f"{row.label:{width}}  {row.gains[0].n:>5} {' |'.join(cells)}"


def _html_row(row: Row) -> str:
    cells = "".join(
        f'<td class="group">{number(gain.before)}</td><td>{number(gain.after)}</td>'
        f'<td class="{change_class(gain)}"><b>{signed(gain.gain)}</b> '
        f"<small>± {number(gain.standard_error)}</small></td>"
        for gain in row.gains
    )
    style = ' class="summary"' if row.is_summary else ""
    return (
        f'<tr{style}><th class="name">{escape(row.label)}</th><td>{row.gains[0].n:,}</td>'
        f'<td class="move">{_move_svg(row.gains[0])}</td>{cells}</tr>'
    )


def _move_svg(gain: PairedGain) -> str:
    """From a ring (before) to a dot (after) on a track from 0 to 1; empty for scores outside."""
    if not (0 <= gain.before <= 1 and 0 <= gain.after <= 1):
        return ""
    start, end = 6 + 108 * gain.before, 6 + 108 * gain.after
    return (
        f'<svg class="{change_class(gain)}" viewBox="0 0 120 14" role="img" aria-label="from {number(gain.before)} '
        f'to {number(gain.after)}"><path class="track" d="M6 7H114"/><path class="span" d="M{start:.1f} 7H{end:.1f}"/>'
        f'<circle class="before" cx="{start:.1f}" cy="7" r="3.4"/>'
        f'<circle class="after" cx="{end:.1f}" cy="7" r="4"/></svg>'
    )
