"""A report in the abstract: titled sections of prose, tables and figures, in reading order."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perfmodel.show.tables import Table

if TYPE_CHECKING:  # matplotlib takes a second to import: only where a picture is drawn
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure with the words that a reader who cannot see it gets, and those on its points."""

    figure: "Figure"
    caption: str
    tooltips: dict[str, str] = field(default_factory=dict)  # gid of an artist -> its text


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One heading of the report and what stands under it."""

    key: str  # anchor in the page, column in the CSV
    title: str
    prose: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page, the Markdown and the CSV say."""

    title: str
    subtitle: str
    command: str  # that measured it
    sections: tuple[Section, ...]
