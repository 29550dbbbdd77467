"""Text beside points of a log-log figure, placed so that no two labels overlap."""

from collections.abc import Iterable, Iterator, Sequence
from math import atan2, degrees
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec.structs import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text
    from matplotlib.transforms import Bbox

FONT_SIZE = 7.5
NAMES_PER_LINE = 4
MARKER_RADIUS_PX = 8


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """Names that share one point, in data coordinates."""

    x: float
    y: float
    names: tuple[str, ...]
    group: str
    colour: str

    @property
    def text(self) -> str:
        lines = [
            ", ".join(self.names[i : i + NAMES_PER_LINE])
            for i in range(0, len(self.names), NAMES_PER_LINE)
        ]
        return (f"{self.group}: " if self.group else "") + ",\n".join(lines)

    def joined(self, other: "Label") -> "Label":
        """This label with the other's names too."""
        return replace(self, names=self.names + other.names)


def place_labels(axes: "Axes", labels: Sequence[Label]) -> None:
    """Annotate every label, below and right of its point, with a line back to it.

    Greedy: from the rightmost point on, the first offset whose box is free of points and of the
    labels placed before; the last offset tried is kept if none is free.
    """
    renderer = _laid_out(axes)
    written = [text for text in axes.texts if text.get_text()]
    taken = [*_marker_boxes(axes, labels), *(_text_box(text, renderer) for text in written)]
    for label in sorted(labels, key=lambda label: (-label.x, label.y)):
        for offset in _offsets():
            annotation = _annotate(axes, label, offset)
            box = _text_box(annotation, renderer)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
            annotation.remove()
        else:
            annotation = _annotate(axes, label, offset)
            box = _text_box(annotation, renderer)
        taken.append(box)


def label_line(axes: "Axes", text: str, at: tuple[float, float]) -> None:
    """Text above a line of slope one through `at` (data coordinates), turned along it."""
    _laid_out(axes)
    x, y = axes.transData.transform(at)
    x_end, y_end = axes.transData.transform((10 * at[0], 10 * at[1]))
    axes.annotate(
        text,
        at,
        (-3, 4),
        textcoords="offset points",
        fontsize=FONT_SIZE,
        rotation=degrees(atan2(y_end - y, x_end - x)),
        rotation_mode="anchor",
        ha="center",
    )


def _laid_out(axes: "Axes") -> Any:
    """Renderer of the figure after its layout is final, so that pixels can be compared."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = cast("Figure", axes.figure)
    renderer = cast(Any, FigureCanvasAgg(figure)).get_renderer()
    figure.draw(renderer)
    return renderer


def _text_box(text: "Text", renderer: Any) -> "Bbox":
    """Pixels of the text alone: an annotation's own extent has the line to its point in it."""
    from matplotlib.text import Text as PlainText

    text.get_window_extent(renderer)  # moves an annotation's text to where its offset puts it
    return PlainText.get_window_extent(text, renderer).padded(2)


def _offsets() -> Iterator[tuple[int, int]]:
    """Offsets in points, nearest first: right of the point, then lower and further out."""
    for distance in range(12, 260, 12):
        for dx, dy in (
            (1.0, -0.25),
            (0.8, -0.8),
            (1.0, -0.5),
            (0.4, -1.0),
            (-1.6, 0.5),
            (-1.2, 1.0),
        ):
            yield round(distance * dx), round(distance * dy)


def _marker_boxes(axes: "Axes", labels: Iterable[Label]) -> "Iterator[Bbox]":
    from matplotlib.transforms import Bbox

    for label in labels:
        x, y = axes.transData.transform((label.x, label.y))
        r = MARKER_RADIUS_PX
        yield Bbox.from_extents(x - r, y - r, x + r, y + r)


def _annotate(axes: "Axes", label: Label, offset: tuple[int, int]) -> "Annotation":
    annotation = axes.annotate(
        label.text,
        (label.x, label.y),
        offset,
        textcoords="offset points",
        fontsize=FONT_SIZE,
        color=label.colour,
        va="center",
        arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "alpha": 0.7},
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
    )
    annotation.set_in_layout(False)
    return annotation
