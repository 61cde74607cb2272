"""The table of an evaluation, as Markdown that also reads well on a console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from awm.held_out import summary
from awm.held_out.records import Record
from awm.report.statistics import Mean, PairedGain
from awm.report.text import count, number, signed


@dataclass(frozen=True, slots=True)
class Column:
    """One score in the table."""

    score: str
    title: str


def columns(records: Sequence[Record], rewards: Sequence[str]) -> list[Column]:
    """GenEval's two rules side by side where a scorer applies them; otherwise the rewards themselves.

    Args:
        records: of the evaluation.
        rewards: names in ``reward_fn``.
    """
    known = summary.score_names(records)
    scorers = list(dict.fromkeys(reward.partition(".")[0] for reward in rewards))
    by_rules = [scorer for scorer in scorers if {f"{scorer}.strict", f"{scorer}.correct"} <= {*known}]
    shown: list[Column] = []
    for scorer in scorers:
        if scorer in by_rules:
            prefix = f"{scorer} " if len(by_rules) > 1 else ""
            shown += [Column(f"{scorer}.strict", f"{prefix}strict"), Column(f"{scorer}.correct", f"{prefix}official")]
        else:
            shown += [Column(r, r) for r in rewards if r.partition(".")[0] == scorer and r in known]
    return shown


def task_table(records: Sequence[Record], shown: Sequence[Column], base: Sequence[Record] | None = None) -> str:
    """A row for each task, their mean, and all images together.

    Args:
        records: of the evaluation.
        shown: the scores.
        base: of the base model, for the columns before, after and change.
    """
    tasks = summary.tasks(records)
    header = ["task", "images", *(title for column in shown for title in _titles(column, base is not None))]
    rows = [_row(task, records, shown, base, task) for task in tasks]
    if len(tasks) > 1:
        cells = [cell for column in shown for cell in _overall_cells(records, column.score, base)]
        rows.append([f"overall (mean of {len(tasks)} tasks)", str(sum(bool(record.tag) for record in records)), *cells])
    rows.append(_row("all images", records, shown, base, None))
    return markdown(header, rows)


def score_table(records: Sequence[Record], base: Sequence[Record] | None = None) -> str:
    """Every score over all images."""
    names = summary.score_names(records)
    header = ["score", "images", *_titles(Column("", "mean"), base is not None)]
    rows = [_row(name, records, [Column(name, name)], base, None, summary.mean(records, name).n) for name in names]
    return markdown(header, rows)


def notes(records: Sequence[Record], has_base: bool) -> str:
    """What the numbers mean, below the tables."""
    lines = ["± one standard error, with the images of a prompt as one cluster."]
    if has_base:
        lines.append("Change: paired, the same prompts and noise.")
    if failed := [record for record in records if record.error]:
        lines.append(
            f"{count(len(failed), 'image')} without some score, left out of its means; scores.jsonl says why. "
            f"The first: {failed[0].error}"
        )
    return "\n".join(lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are padded: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = [" " * (width - len(cell)) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join([cells[0] + first, *(p + c for p, c in zip(rest, cells[1:], strict=True))]) + " |"

    rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def _row(
    label: str,
    records: Sequence[Record],
    shown: Sequence[Column],
    base: Sequence[Record] | None,
    task: str | None,
    images: int | None = None,
) -> list[str]:
    images = len(summary.of_task(records, task)) if images is None else images
    cells: list[str] = []
    for column in shown:
        if base is None:
            cells.append(_mean_cell(summary.mean(records, column.score, task)))
        else:
            cells += _change_cells(summary.change(base, records, column.score, task))
    return [label, str(images), *cells]


def _overall_cells(records: Sequence[Record], score: str, base: Sequence[Record] | None) -> list[str]:
    if base is None:
        return [_mean_cell(summary.overall(records, score))]
    return _change_cells(summary.overall_change(base, records, score))


def _titles(column: Column, has_base: bool) -> list[str]:
    return [f"{column.title}{what}" for what in (" before", " after", " change")] if has_base else [column.title]


def _mean_cell(value: Mean) -> str:
    return f"{number(value.mean)} ± {_error(value.standard_error)}"


def _change_cells(gain: PairedGain) -> list[str]:
    return [number(gain.before), number(gain.after), f"{signed(gain.gain)} ± {_error(gain.standard_error)}"]


def _error(value: float) -> str:
    """As many decimals as the mean has it belongs to."""
    return f"{value:.3f}" if 0.0005 <= value < 100 else number(value)
