"""The report as Markdown, as CSV and as JSON."""

import json

from bench.report.sections import Report
from perfmodel.show.tables import as_csv, as_markdown


def as_markdown_text(report: Report) -> str:
    """Headings, prose and tables; the figures are the page's."""
    parts = [f"# {report.title}", report.subtitle]
    for section in report.sections:
        parts += [f"## {section.title}", *section.prose]
        parts += [as_markdown([table]).strip() for table in section.tables]
    return "\n\n".join(parts) + "\n"


def as_csv_text(report: Report) -> str:
    """One line per row of every table: section, row and column by name, raw value."""
    return as_csv(
        {"section": section.key, "table": number, "row": line, "column": key, "value": value}
        for section in report.sections
        for number, table in enumerate(section.tables)
        for line, row in enumerate(table.rows)
        for key, value in row.items()
    )


def as_json_text(report: Report) -> str:
    """Rows of every table by section, raw values, under the command that measured them."""
    document = {
        "schema": "memwall.report/1", "title": report.title, "subtitle": report.subtitle,
        "command": report.command,
        "sections": {
            section.key: [row for table in section.tables for row in table.rows]
            for section in report.sections
        },
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
