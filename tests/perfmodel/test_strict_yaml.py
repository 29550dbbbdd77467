"""The strict reader: what it accepts means the same to every YAML reader, the rest is refused."""

import random
import string
import time
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import hardware
from perfmodel.errors import SpecError
from perfmodel.hardware import HardwareFile, HardwareSpec, load_hardware
from perfmodel.records import field_paths, to_record
from perfmodel.strict_yaml import MAX_DEPTH, Document, parse_yaml, plain_scalar, read_text

GOOD = (Path(hardware.__file__).parent / "a6000.yaml").read_bytes()
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None)
SLOWEST_S = 5.0  # a file of a few KiB takes 0.02 s; this is a hang, on any machine


class Chip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A nested group of the toy record."""

    cores: Annotated[int, msgspec.Meta(gt=0)]
    clock: float | None = None


class Board(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A toy record."""

    name: str
    chip: Chip
    spare: Chip | None = None
    tags: tuple[str, ...] = ()
    steps: list[Chip] = []


BOARD = """\
name: toy
chip: {cores: 4, clock: 1.5}
tags: [a, b]
steps:
  - cores: 1
  - cores: 2
"""


def parse(text: str) -> Document:
    return parse_yaml(text, source="toy.yaml")


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        to_record(parse(text), Board)
    return str(caught.value)


# Scalars

PLAIN = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "false": False,
    "0": 0,
    "-7": -7,
    "+7": 7,
    "9" * 40: int("9" * 40),
    "0.5": 0.5,
    "-0.25": -0.25,
    "1.0e+3": 1000.0,
    "2.5E-3": 0.0025,
    "GA102": "GA102",
    "8x": "8x",
    "1.2.3": "1.2.3",
    "e5": "e5",
    "nobody": "nobody",
    "a:b": "a:b",
    "3rd": "3rd",
}


@pytest.mark.parametrize("text", PLAIN, ids=[text or "nothing" for text in PLAIN])
def test_a_plain_scalar_has_the_value_that_it_looks_like(text):
    value = plain_scalar(text)
    assert (type(value), value) == (type(PLAIN[text]), PLAIN[text])


# PyYAML (YAML 1.1) against YAML 1.2: 08.5, 1_0.5 and 1._ are floats in 1.1 alone, 1.0e3 is text.
AMBIGUOUS = ["y", "n", "Y", "yes", "No", "on", "OFF", "True", "NULL", "Null"]
AMBIGUOUS += ["010", "08", "0x10", "0b1", "0o7", "1_000", "4:20", "4:20.5", "=", "<<"]
AMBIGUOUS += [".5", "5.", "1e3", "1E3", "1.e3", ".5e3", "1.0e3", "1.0E3"]
AMBIGUOUS += ["00.5", "08.5", "-01.5", "+00.0", "1.5_0", "1._", "1_0.5", ".5_"]
AMBIGUOUS += [".inf", "-.INF", "+.inf", ".NaN", "2001-01-01", "2001-1-1T0:0:0Z"]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_a_scalar_that_readers_take_differently_is_refused(text):
    with pytest.raises(SpecError, match=r"found .*; expected "):
        plain_scalar(text)


@pytest.mark.parametrize("text", ["9" * 41, "-" + "9" * 40, "0." + "3" * 39, "9" * 5000])
def test_a_number_of_more_than_40_characters_is_refused(text):
    with pytest.raises(SpecError, match="expected at most 40"):
        plain_scalar(text)


@pytest.mark.parametrize("text", ["1.0e+999", "-1.0e+999"])
def test_a_number_that_overflows_is_refused(text):
    with pytest.raises(SpecError, match="expected a finite number"):
        plain_scalar(text)


def is_plain(text: str) -> bool:
    """Whether the whole text is one unquoted scalar, as a value in a file would be."""
    try:
        events = list(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return False
    scalars = [event.value for event in events if isinstance(event, yaml.ScalarEvent)]
    return len(events) == 5 and scalars == [text] and events[2].implicit[0]


NUMBER_LIKE = st.text("0123456789.eE+-_:xobinfa", min_size=1, max_size=9)
WORD_LIKE = st.text("yesnotrufalTRUENFOS~<=", min_size=1, max_size=5)
ANY = st.text(string.printable, min_size=1, max_size=12)


@FUZZ
@given(NUMBER_LIKE | WORD_LIKE | ANY)
@example("1.0e3")
@example("08.5")
@example("1.5_0")
@example("1:30")
def test_an_accepted_scalar_is_the_same_in_yaml_1_1(text):
    assume(is_plain(text))
    try:
        ours = plain_scalar(text)
    except SpecError:
        return
    theirs = yaml.safe_load(text)
    assert (type(ours), ours) == (type(theirs), theirs)


# Documents


def test_values_keep_their_places():
    document = parse(BOARD)
    assert document.marks["chip", "clock"] == (2, 25)


def test_keys_keep_their_places():
    assert parse(BOARD).key_marks["steps", 1, "cores"] == (6, 5)


def test_quoted_values_are_text():
    assert parse("a: '768'\nb: \"no\"").value == {"a": "768", "b": "no"}


def test_folded_text_is_one_line():
    assert parse("a: >-\n  one\n  two\n").value == {"a": "one two"}


@pytest.mark.parametrize(("extra", "good"), [(0, True), (1, False)], ids=["deepest", "too-deep"])
def test_nesting_is_bounded(extra, good):
    depth = MAX_DEPTH + extra
    text = "a: " + "[" * (depth - 1) + "1" + "]" * (depth - 1)
    if good:
        assert parse(text).value
    else:
        with pytest.raises(SpecError, match=f"more than {MAX_DEPTH} levels"):
            parse(text)


def test_an_error_names_field_and_place():
    error = parse(BOARD).error(("steps", 1, "cores"), "found 2, expected 3")
    assert str(error) == "toy.yaml:6:12: steps[1].cores: found 2, expected 3"


def test_a_bad_byte_is_placed_by_characters(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_bytes("name: é".encode() + b"\xff\n")
    with pytest.raises(SpecError, match=r":1:8: found byte 0xff"):
        read_text(file)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root
    with pytest.raises(SpecError, match=r"toy\.yaml: cannot be read: Permission denied"):
        read_text(tmp_path / "toy.yaml")


LOADS = {
    "as-it-is": GOOD,
    "byte-order-mark": b"\xef\xbb\xbf" + GOOD,
    "windows-line-ends": GOOD.replace(b"\n", b"\r\n"),
    "document-marks": b"---\n" + GOOD + b"...\n",
    "no-last-line-end": GOOD.rstrip(),
}


@pytest.mark.parametrize("content", LOADS.values(), ids=LOADS)
def test_a_good_file_loads_however_it_was_saved(content, tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_bytes(content)
    assert load_hardware(str(file)).dram_bytes_per_s == 768e9


# Records


def test_a_record_has_the_values_of_its_document():
    assert to_record(parse(BOARD), Board).chip == Chip(cores=4, clock=1.5)


def test_a_whole_number_is_a_float_where_one_is_wanted():
    assert to_record(parse("name: a\nchip: {cores: 4, clock: 2}"), Board).chip.clock == 2.0


def test_field_paths_are_dotted():
    paths = list(field_paths(HardwareFile))
    assert {"name", "memory.bandwidth_gb_per_s", "interconnect.gb_per_s"} < set(paths)


WRONG = {
    "unknown-key": (BOARD + "tag: c\n", "7:1: tag: found an unknown key; did you mean tags"),
    "unknown-key-in-list": (BOARD + "    core: 3\n", "7:5: steps[1].core: found an unknown key"),
    "no-key-in-list": (BOARD + "  - clock: 1.0\n", "7:5: steps[2]: found no key cores, expected"),
    "bound-in-list": (BOARD + "  - cores: 0\n", "7:12: steps[2].cores: found 0, expected"),
    "no-key-in-optional": (BOARD + "spare: {}\n", "7:8: spare: found no key cores, expected it"),
    "number": (BOARD.replace("1.5", "fast"), 'chip.clock: found "fast", expected a number'),
    "whole-number": (BOARD.replace("4,", "4.5,"), "found 4.5, expected a whole number"),
    "above-0": (BOARD.replace("4,", "-4,"), "chip.cores: found -4, expected a whole number"),
    "text": (BOARD.replace("toy", "1000"), "name: found 1000, expected text"),
    "list": (BOARD.replace("[a, b]", "a"), 'tags: found "a", expected a list'),
    "mapping": (BOARD.replace("{cores: 4, clock: 1.5}", "4"), "found 4, expected a mapping"),
    "long-value": (BOARD.replace("1.5", "x" * 99), f'found "{"x" * 56}..., expected'),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_record_is_explained_in_plain_words(text, words):
    said = refusal(text)
    assert said.startswith("toy.yaml:")
    assert words in said


# Fuzzing: a file loads or is refused, and soon.

PIECES = [b"[", b"{", b'"', b"'", b"&a ", b"*a", b"!!int ", b"!<a%0ab> ", b"\n", b"\t", b"? "]
PIECES += [
    b": ",
    b"- ",
    b"|\n",
    b">\n",
    b"---\n",
    b"...\n",
    b"%YAML 1.1\n",
    b"<<: ",
    b"\xff",
    b"\0",
]
PIECES += [rb'"\U00110000"', rb'"\UFFFFFFFF"', rb'"\ud800"', rb'"\x"', rb'"\n"', b"\xc2\x85", b"#"]


def mutated(good: bytes, seed: int) -> bytes:
    """The file with up to five cuts, wrong bytes or inserted pieces of syntax."""
    rng, content = random.Random(seed), bytearray(good)  # noqa: S311
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(content) + 1)
        piece = rng.choice([rng.choice(PIECES), rng.randbytes(1), b""])
        content[at : at + rng.choice([0, 1, len(piece), 20])] = piece
    return bytes(content)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "toy.yaml"


def loads_or_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    started_s, said = time.monotonic(), f"{file}:"
    try:
        assert isinstance(load_hardware(str(file)), HardwareSpec)
    except SpecError as error:
        said = str(error)
    assert said.startswith(f"{file}:")
    assert time.monotonic() - started_s < SLOWEST_S


@FUZZ
@given(st.integers(0, 2**32))
def test_a_mutated_file_loads_or_is_refused(scratch, seed):
    loads_or_is_refused(scratch, mutated(GOOD, seed))


@FUZZ
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_random_bytes_and_text_are_refused(scratch, content):
    loads_or_is_refused(scratch, content)


@FUZZ
@given(st.text("{}[]:-,#&*!|>'\"%@`? \n\tab01.~<\\U\r\x85\u2028", max_size=40))
@example(r'a: "\U00110000"')
@example(r'a: "\UFFFFFFFF"')
def test_random_syntax_is_refused(scratch, text):
    loads_or_is_refused(scratch, text.encode())
