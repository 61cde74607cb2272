"""What this page needs beside the report's style sheet: small multiples, score bars, strips of images."""

EXTRA_STYLE = """
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(205px, 100%), 1fr)); gap: 10px; }
.small { margin: 0; padding: 9px 8px 4px; min-width: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.small figcaption { font-size: 0.82rem; line-height: 1.3; padding: 0 2px 3px; display: flex; gap: 8px;
  justify-content: space-between; } .small span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.small b { font-variant-numeric: tabular-nums; }
.small svg { display: block; width: 100%; height: auto; }
.tick { fill: var(--muted); font: 10.5px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 0.7; } .base { stroke: var(--muted); stroke-width: 1;
  stroke-dasharray: 4 3; }
.grey { fill: none; stroke: var(--muted); stroke-width: 0.9; opacity: 0.3; stroke-linejoin: round; }
.mine { fill: none; stroke: var(--c1); stroke-width: 2.1; stroke-linejoin: round; }
.band { fill: var(--c1); opacity: 0.16; } .dots { fill: var(--c1); }
.bar { display: block; width: 96px; height: 14px; } .bar path { fill: none; stroke: var(--muted); }
.bar .from { stroke: var(--c1); opacity: 0.35; stroke-width: 3; } .bar .mark { stroke-width: 1.2; }
.bar .whisker { stroke: var(--c1); stroke-width: 1.4; } .bar circle { fill: var(--c1); }
td.left, th.left { text-align: left; } td.why { text-align: left; white-space: normal; overflow-wrap: anywhere; }
td b { font-weight: 600; } td small { display: block; line-height: 1.3; } td small.beside { display: inline; }
td.left small { max-width: 8.5rem; white-space: normal; overflow-wrap: anywhere; }
thead th { white-space: normal; vertical-align: bottom; line-height: 1.25; }
th, td { padding-left: 8px; padding-right: 8px; } .note.below { margin-top: 10px; }
.panel + details { margin-top: 12px; }
.strip { display: grid; grid-template-columns: 190px 1fr; gap: 2px 12px; align-items: center; font-size: 0.86rem; }
.strip img, .strip .prompts { width: 100%; max-width: 640px; }
.strip img { display: block; image-rendering: pixelated; border-radius: 6px; }
.strip .prompts { display: grid; grid-template-columns: repeat(8, 1fr); color: var(--muted); font-size: 0.7rem;
  line-height: 1.25; gap: 6px; align-items: end; }
@media (max-width: 820px) { .strip { grid-template-columns: 1fr; } }
"""
