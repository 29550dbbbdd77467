"""The report as one HTML file: no script, no font, no picture from anywhere else.

The page forbids itself every request (Content-Security-Policy), so what it shows is what it holds.
"""

import io
import re
from html import escape

from bench.report.sections import Drawing, Report, Section
from perfmodel.show.tables import Table

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #6b7785; --line: #d9dee4; --head: #f4f6f8;
  --mark: #b3362b; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
.subtitle, figcaption { color: var(--soft); }
nav { margin: 1rem 0; } nav a { margin-right: 1rem; color: #2f6db3; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { background: var(--head); font-weight: 600; text-align: left; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.number, th.number { text-align: right; }
tr.bad td { color: var(--mark); }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; max-height: 46rem; }
figcaption { font-size: .9rem; }
@media print { nav { display: none; } }
"""
# Elements of matplotlib's SVG that would break or repeat inside a page.
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def as_html(report: Report) -> str:
    """The whole page."""
    links = "".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in report.sections)
    body = "\n".join(_section(section) for section in report.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(report.title)}</h1>
<p class="subtitle">{escape(report.subtitle)}</p>
<nav>{links}</nav>
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f'<section id="{section.key}">', f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(line)}</p>" for line in section.prose]
    parts += [_figure(section.key, n, drawing) for n, drawing in enumerate(section.drawings)]
    parts += [_table(table) for table in section.tables]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    classes = [' class="number"' if column.right else "" for column in table.columns]
    headings = [c.heading for c in table.columns]
    head = "".join(f"<th{c}>{escape(h)}</th>" for c, h in zip(classes, headings, strict=True))
    head = f"<thead><tr>{head}</tr></thead>" if any(headings) else ""
    lines = []
    for row in table.rows:
        cells = zip(classes, table.cells(row), strict=True)
        bad = ' class="bad"' if row.get("bad") else ""
        lines.append(f"<tr{bad}>" + "".join(f"<td{c}>{escape(t)}</td>" for c, t in cells) + "</tr>")
    body = "\n".join(lines)
    notes = "".join(f"<p>{escape(line)}</p>" for line in filter(None, table.head))
    foot = "".join(f"<p>{escape(line)}</p>" for line in filter(None, table.foot))
    return f'{notes}<div class="scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>{foot}'


def _figure(key: str, number: int, drawing: Drawing) -> str:
    caption = escape(drawing.caption)
    svg = as_svg(drawing, salt=f"{key}-{number}")
    return f"<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def as_svg(drawing: Drawing, *, salt: str) -> str:
    """The figure as an SVG element with text as text and a tooltip on each named artist.

    `salt` keeps the ids of several figures of one page apart.
    """
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}
    ):
        drawing.figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = _METADATA.sub("", _PROLOGUE.sub("", stream.getvalue(), count=1))
    svg = re.sub(
        r'\bid="(figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|legend)_(\d+)"',
        rf'id="{salt}-\1-\2"',
        svg,
    )
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(drawing.caption)}" ', 1)
    for gid, text in drawing.tooltips.items():
        svg = svg.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(text)}</title>', 1)
    return svg.strip()
