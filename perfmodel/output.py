"""Results to the terminal or to a file; a file appears whole or not at all."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from perfmodel.errors import OutputError, UsageError
from perfmodel.show.tables import Table, as_csv, as_markdown, as_text

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
Rendering = Literal["text", "json", "csv", "markdown", "parquet"]

_BY_SUFFIX: dict[str, Rendering] = {
    ".json": "json",
    ".csv": "csv",
    ".md": "markdown",
    ".parquet": "parquet",
}


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What a command has to say; each of the three is made only when it is asked for."""

    document: Callable[[], Any]  # for JSON
    rows: Callable[[], list[dict[str, Any]]]  # flat, for CSV
    tables: Callable[[], list[Table]]  # for people
    missed: tuple[str, ...] = ()  # bars of the command line that the result misses


def rendering_of(flag: Rendering | None, path: Path | None, default: Rendering) -> Rendering:
    """The flag if there is one, else what the file's suffix says, else the default."""
    if flag is not None:
        return flag
    return _BY_SUFFIX.get(path.suffix.lower(), default) if path else default


def render(output: Output, rendering: Rendering) -> str:
    """The output as text.

    Raises: UsageError for a rendering that only `sweep -o FILE` has.
    """
    if rendering == "json":
        return as_json(output.document())
    if rendering == "csv":
        return as_csv(output.rows())
    if rendering == "markdown":
        return as_markdown(output.tables())
    if rendering == "parquet":
        raise UsageError("only sweep writes Parquet; use .json, .csv or .md")
    return as_text(output.tables())


def write_output(output: Output, flag: Rendering | None, path: Path | None) -> None:
    """A command's output as its flags say: text unless `flag` or the suffix of `path` differ.

    Raises: UsageError, OutputError.
    """
    rendering = rendering_of(flag, path, "text")
    with text_sink(path) as stream:
        stream.write(render(output, rendering))


def save_figure(path: Path, draw: "Callable[[], Figure]") -> None:
    """Draw and write a figure, as its suffix says.

    Raises: UsageError for a suffix that is no picture; OutputError.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"-o {path}: expected a name ending in {', '.join(PICTURES)}")
    figure = draw()
    with whole_file(path) as temporary:
        figure.savefig(temporary)
    sys.stdout.write(f"wrote {path}\n")


def as_json(document: Any) -> str:
    """Indented JSON; unknown numbers are null."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


@contextmanager
def text_sink(path: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a text file that replaces an older one when it is complete.

    Raises: OutputError.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # where its encoding has no lines to rule with
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            discard_output()  # or Python would try it again when it ends
            raise OutputError(f"standard output: cannot be written: {error.strerror}") from None
        return
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        yield stream


def discard_output() -> None:
    """Let whatever is still buffered for standard output go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    Raises: OutputError if the place cannot be written.
    """
    import tempfile  # only where a file is written

    with _writing(str(path)):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder, expected a file to write")
        if path.exists() and not path.is_file():
            yield path  # a device such as /dev/stdout is written, not replaced
            return
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-"[:40], suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing(name: str) -> Iterator[None]:
    """Name what could not be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{name}: cannot be written: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
