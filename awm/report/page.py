"""Writes ``report.html``: one file without links to anything, for a finished run or one that still goes on."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path

from awm.report.curves import Panel, panels
from awm.report.images import data_uri
from awm.report.pairs import gallery_html
from awm.report.plots import NUM_COLOURS, panel_svg
from awm.report.run_folder import RunFolder, load_run
from awm.report.style import STYLE
from awm.report.tables import score_table_html, task_table_html
from awm.report.verdict import Card, cards, verdict


def write_report(run: Path) -> Path:
    """Read the run folder and write ``<run>/report.html``, replacing an older one.

    Args:
        run: folder with config.json or metrics.jsonl; everything else may still be missing.

    Returns:
        Path of the page.

    Raises:
        ValueError: if ``run`` is not a run folder.
    """
    page = run / "report.html"
    temporary = page.with_name("report.html.tmp")
    temporary.write_text(_page(load_run(run)), encoding="utf-8")
    os.replace(temporary, page)
    return page


def _page(run: RunFolder) -> str:
    sections = [_header(run), _tables(run), _curves(run), _gallery(run), _samples(run), _config(run), _commands(run)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _header(run: RunFolder) -> str:
    rewards = ", ".join(f"{name} × {weight:g}" for name, weight in (run.config.get("reward_fn") or {}).items())
    parts = {
        "model": (run.config.get("pretrained") or {}).get("model"),
        "reward": rewards,
        "algorithm": (run.config.get("train") or {}).get("algorithm"),
        "seed": run.config.get("seed"),
    }
    subtitle = " · ".join(f"{name} {value}" for name, value in parts.items() if value not in (None, ""))
    return (
        f'<h1>{escape(run.name)}</h1><p class="subtitle">{escape(subtitle)}</p>'
        f'<p class="verdict">{escape(verdict(run))}</p>'
        f'<div class="cards">{"".join(_card(card) for card in cards(run))}</div>'
    )


def _card(card: Card) -> str:
    wide = " wide" if "→" in card.value else ""
    return (
        f'<div class="card{wide}"><small>{escape(card.title)}</small>'
        f'<b class="{card.style}">{escape(card.value)}</b><small>{escape(card.remark)}</small></div>'
    )


def _tables(run: RunFolder) -> str:
    if not run.pairs:
        return ""
    assert run.before is not None and run.after is not None
    has_tasks = any(pair.before.tag for pair in run.pairs)
    tasks = f'<div class="panel">{task_table_html(run)}</div>' if has_tasks else ""
    everything = score_table_html(run)
    if has_tasks:
        everything = f'<details style="margin-top:12px"><summary>All scores, all images</summary>{everything}</details>'
    else:
        everything = f'<div class="panel">{everything}</div>'
    return (
        "<h2>Held-out prompts, before and after</h2>"
        f'<p class="note">Epoch {run.before.epoch} against epoch {run.after.epoch}, average weights. Every image is '
        "compared with the one made from the same prompt and the same noise. ± is the standard error of the change, "
        "clustered by prompt: the images of one prompt gain or lose alike, so prompts count rather than images. "
        "Coloured where the change is at least two standard errors; of several scores, some pass that by chance."
        f"</p>{tasks}{everything}"
    )


def _curves(run: RunFolder) -> str:
    drawn = panels(run.metrics, run.headline)
    if not drawn:
        return ""
    return (
        "<h2>Curves</h2>"
        '<p class="note">Over completed epochs; long runs show means of neighbouring epochs.</p>'
        f'<div class="plots">{"".join(_plot(panel) for panel in drawn)}</div>'
    )


def _plot(panel: Panel) -> str:
    swatches = "".join(
        f'<span><i style="background: var(--c{i % NUM_COLOURS + 1})"></i>{escape(line.label)}</span>'
        for i, line in enumerate(panel.lines)
    )
    legend = f'<div class="legend">{swatches}</div>' if len(panel.lines) > 1 else ""
    note = f'<div class="legend">{escape(panel.note)}</div>' if panel.note else ""
    title = f"<h3>{escape(panel.title)}</h3>"
    return f'<figure class="plot"><figcaption>{title}{legend}{note}</figcaption>{panel_svg(panel)}</figure>'


def _gallery(run: RunFolder) -> str:
    if not run.pairs or run.headline is None:
        return ""
    return (
        "<h2>The same prompt and noise, before and after</h2>"
        f'<p class="note">Sorted by {escape(run.headline)}. The pictures are spread evenly over the held-out set, '
        "not picked by how they fared.</p>"
        f'<div class="gallery">{gallery_html(run, run.headline)}</div>'
    )


def _samples(run: RunFolder) -> str:
    if run.sample_grid is None:
        return ""
    epoch = int(run.sample_grid.stem.removeprefix("epoch_"))
    source = data_uri(run.sample_grid, 1400).uri
    return (
        f"<h2>Training samples of epoch {epoch}</h2>"
        '<p class="note">As sampled for training, with exploration noise; the number is the reward.</p>'
        f'<img class="sheet" alt="Training samples with prompts and rewards" src="{source}">'
    )


def _config(run: RunFolder) -> str:
    if not run.config:
        return ""
    text = escape(json.dumps(run.config, indent=2))
    summary = "<summary>Every value, resolved (config.json)</summary>"
    return f"<h2>Configuration</h2><details>{summary}<pre>{text}</pre></details>"


def _commands(run: RunFolder) -> str:
    commands = {
        "Write this page again": f"python -m awm.report {run.path}",
        "Continue the run": f"python -m awm.train --config {run.path}/config.json --config.resume_from=auto",
    }
    if run.checkpoint is not None:
        commands["Use the trained weights in diffusers"] = (
            f'pipeline.load_lora_weights("{run.checkpoint}/lora_average")'
        )
    items = "".join(f"<dt>{title}</dt><dd><pre>{escape(command)}</pre></dd>" for title, command in commands.items())
    return f'<h2>Rebuild, resume, reuse</h2><dl class="how">{items}</dl>'
