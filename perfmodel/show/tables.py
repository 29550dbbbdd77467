"""One table model, four renderings: terminal (rich), Markdown, CSV; JSON is the command's own."""

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, Literal

import msgspec

WIDEST = 1000  # characters: a table is as wide as its cells, and never cut off


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column: the key of the raw value, its heading, and how a person reads it."""

    key: str
    heading: str
    show: Callable[[Any], str] = str
    right: bool = True


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of raw values with headings for people; CSV holds the raw values of all keys."""

    head: Sequence[str] = ()
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    foot: Sequence[str] = ()

    def cells(self, row: dict[str, Any]) -> list[str]:
        return ["-" if (v := row[c.key]) is None else c.show(v) for c in self.columns]


def as_text(tables: Sequence[Table]) -> str:
    """For people: coloured on a terminal, plain elsewhere."""
    return "\n".join(_as_text(table) for table in tables)


def as_markdown(tables: Sequence[Table]) -> str:
    """GitHub tables with the lines above and below as paragraphs."""
    blocks: list[str] = []
    for table in tables:
        heading = "| " + " | ".join(c.heading for c in table.columns) + " |"
        rule = "|" + "|".join("---:" if c.right else "---" for c in table.columns) + "|"
        lines = ["| " + " | ".join(table.cells(row)) + " |" for row in table.rows]
        blocks += [*filter(None, table.head), "\n".join([heading, rule, *lines]), *table.foot]
    return "\n\n".join(blocks) + "\n"


def as_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Full precision; the keys of the first row are the columns."""
    stream = io.StringIO()
    write_csv(stream, rows)
    return stream.getvalue()


def write_csv(stream: IO[str], rows: Iterable[dict[str, Any]]) -> None:
    """Raw values as they come; unknown ones empty, nested ones as JSON."""
    import csv  # only for this rendering

    writer = csv.writer(stream, lineterminator="\n")
    for index, row in enumerate(rows):
        if index == 0:
            writer.writerow(row)
        writer.writerow([_cell(value) for value in row.values()])


def write_csv_blocks(stream: IO[str], blocks: Iterable[dict[str, list[Any]]]) -> None:
    """Blocks of columns as they come; unknown values empty."""
    import csv

    writer = csv.writer(stream, lineterminator="\n")
    for index, columns in enumerate(blocks):
        if index == 0:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return msgspec.json.encode(value).decode()
    return value


def _as_text(table: Table) -> str:
    from rich import box
    from rich.console import Console  # 50 ms, only for this rendering
    from rich.table import Table as RichTable

    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    for column in table.columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        grid.add_column(column.heading, justify=justify, no_wrap=True)
    for row in table.rows:
        grid.add_row(*table.cells(row), style="red" if row.get("fits") is False else None)
    drawn = io.StringIO()
    Console(
        file=drawn,
        force_terminal=sys.stdout.isatty(),
        width=WIDEST,
        highlight=False,
        markup=False,
    ).print(grid)
    lines = [*table.head, *(line.rstrip() for line in drawn.getvalue().splitlines())]
    return "\n".join([*lines, *(["", *table.foot] if table.foot else [])]) + "\n"
