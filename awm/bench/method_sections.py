"""What stands behind the results on the page: pictures, both rankings, what was tried, what failed, configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from awm.bench.arms import EVERY
from awm.bench.cells import coloured, plus_minus, table
from awm.bench.comparison import Comparison
from awm.bench.jobs import Record
from awm.bench.measures import Estimate
from awm.bench.records import Records
from awm.bench.rows import Row
from awm.bench.settings import Settings
from awm.bench.stability import RULE, Stability
from awm.report.images import data_uri
from awm.report.text import count, number

MAX_FAILURES = 50


def pictures_section(rows: Sequence[Row], records: Mapping[str, Record], folder: Path, settings: Settings) -> str:
    """A strip of held-out images for each arm, the untrained model's first."""
    seed = next((seed for seed in settings.reported if all(seed in row.scores for row in rows)), None)
    if seed is None:
        return ""
    names = {f"{row.arm}-{row.setting}-seed{seed}": row.title for row in rows}
    files = {title: Records(folder).pictures(name) for name, title in {"untrained": "Untrained model", **names}.items()}
    shown = [(title, path) for title, path in files.items() if path.exists()]
    captions: Sequence[str] = records[next(iter(names))]["captions"]
    if len(shown) < 2:
        return ""
    prompts = "".join(f"<span>{escape(text)}</span>" for text in captions)
    lines = "".join(
        f'<span>{escape(title)}</span><img alt="{escape(title)}: held-out images" src="{data_uri(path, 1024).uri}">'
        for title, path in shown
    )
    return (
        "<h2>The same prompts and noise, drawn by each</h2>"
        f'<p class="note">After the whole budget, seed {seed}, the first that all arms have; evenly spaced over the '
        "held-out prompts, not picked.</p>"
        f'<div class="panel strip"><span></span><div class="prompts">{prompts}</div>{lines}</div>'
    )


def stability_section(rows: Sequence[Row], ranking: Stability) -> str:
    """Both sets' rankings, and who changes places."""
    both = [row for row in rows if row.arm in ranking.means]
    body = [
        [
            escape(row.title),
            *(
                f'{_place(ranking, which, score)} <small class="beside">{plus_minus(Estimate(2, score, error))}</small>'
                for which, (score, error) in enumerate(
                    zip(ranking.means[row.arm], ranking.errors[row.arm], strict=True)
                )
            ),
        ]
        for row in both
    ]
    titles = {row.arm: escape(row.title) for row in rows}
    pairs = "".join(
        f"<li>{titles[swap.ahead]} ahead of {titles[swap.behind]} by {number(swap.first)}, then behind by "
        f"{number(-swap.second)}{' <b>(more than the errors)</b>' if swap in ranking.serious else ''}</li>"
        for swap in ranking.swapped
    )
    listed = f"<details><summary>Pairs that change places</summary><ul>{pairs}</ul></details>" if pairs else ""
    return (
        f'<h2>Would other seeds rank alike?</h2><p class="note">{escape(ranking.sentence)} {escape(RULE)} Errors come '
        "from one spread for all arms: that of the seeds within a set, pooled.</p>"
        + (table(["arm", "place by the first seeds", "by the second"], body) if body else "")
        + listed
    )


def _place(ranking: Stability, which: int, score: float) -> int:
    """1 for the best; equal scores share a place."""
    return 1 + sum(means[which] > score for means in ranking.means.values())


def tuning_section(comparison: Comparison, settings: Settings) -> str:
    """What each arm tried."""
    if not comparison.tunings:
        return ""
    body = []
    for tuning in comparison.tunings:
        cells = [
            f"<{tag}>{escape(setting)} {score if isinstance(score, str) else number(score)}</{tag}>"
            for setting, score in tuning.tried.items()
            for tag in ("b" if setting == tuning.chosen else "span",)
        ]
        edge = f" {coloured('(at the edge)', is_good=False)}" if tuning.at_edge else ""
        body.append([escape(tuning.title), " · ".join(cells) + edge])
    images = count(settings.tuning_images, "training image") if settings.tuning_images else "half the training images"
    edges = ", ".join(tuning.title for tuning in comparison.tunings if tuning.at_edge)
    note = f" The choice lies at the edge of the grid, and a better one may lie beyond: {edges}." if edges else ""
    return (
        "<h2>How each got its setting</h2>"
        f'<p class="note">The grid of every arm was declared before any run. Each point was run once for {images}, '
        f"with seed {settings.tuning_seed}, which is not reported, and scored by the training reward over the second "
        "half of its epochs; held-out prompts had no part in it. A point that diverged is never chosen. Bold: chosen."
        f"{escape(note)}</p>" + table(["arm", "tried"], body, left=(0, 1))
    )


def failures_section(unfinished: Sequence[Record]) -> str:
    """Runs that diverged or broke, and why."""
    if not unfinished:
        return ""
    rows = "".join(
        f'<tr><td class="name">{escape(record["name"])}</td><td class="name">{escape(record["status"])}</td>'
        f'<td class="why">{escape(record["message"])}</td></tr>'
        for record in unfinished[:MAX_FAILURES]
    )
    return f'<h2>Runs that diverged or broke</h2><div class="panel scroll"><table><tbody>{rows}</tbody></table></div>'


def configurations_section(rows: Sequence[Row], records: Mapping[str, Record]) -> str:
    """The keys of each arm that are not as in the quickstart, but for what all arms have otherwise."""
    if not rows:
        return ""
    lines = []
    for row in rows:
        changes = records[f"{row.arm}-{row.setting}-seed{next(iter(row.scores))}"]["changes"]
        text = ", ".join(f"{key}={_shown(value)}" for key, value in changes.items()) or "none"
        lines.append(f'<tr><td class="name">{escape(row.title)}</td><td class="why">{escape(text)}</td></tr>')
    shared = ", ".join(word.removeprefix("--config.") for word in EVERY)
    return (
        "<details><summary>What each arm changes in the quickstart, its chosen setting included</summary>"
        f'<p class="note">All arms: {escape(shared)}.</p>'
        f'<div class="scroll"><table><tbody>{"".join(lines)}</tbody></table></div></details>'
    )


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
