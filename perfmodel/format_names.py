"""Names of weight formats: parse "squeezellm-w3-s0.45", refuse what does not exist.

fp16 bf16 fp32                   plain
w3, w4.85                        ideal: exactly so many bits, nothing else
rtn-w4[-g128]                    uniform: scale and zero per row or group; 2 to 8 bits
gptq-w4[-g128][-act]             the same, -act with the activation order stored
awq-w4-g128
kmeans-w4, squeezellm-w3[-s0.45] codebook per row, 2 to 8 bits; -s: sparse share in percent
    [-int8|-u7|-sym]             codebook entries: int8 or 7 bit with a scale, or sign-symmetric
    [-balanced|-hybrid]          start rows, or the ten densest rows apart
spqr-w3-g16[-s1][-act]           3-bit statistics per group, FP16 statistics per block
gptvq-2d-w2[-g2048][-n64]        vector codebook of int8 entries per group of weights; -n: a 4-bit
                                 scale per so many weights of a row (normalised sub-rows)
NAME@paper                       bits as the papers count them
squeezellm-...@released          bits as SqueezeLLM's released code stores them
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from perfmodel.errors import UsageError
from perfmodel.formats import Codebook, Scales, Sparse, WeightFormat

K_MULTIPLE = 128  # codes per 128-bit load of each 3-bit word plane; rows are padded to it
DENSEST_ROWS = 10  # SqueezeLLM, section 4.3: "10 densest rows"
NONZEROS_PER_START_ROW = 256  # chunk of one program of the balanced kernel
MAX_IDEAL_BITS = 32
MAX_NAME_CHARS = 64

_TOKEN = re.compile(
    r"w(?P<bits>[0-9]+(\.[0-9]+)?)|g(?P<group>[0-9]+)|n(?P<subrow>[0-9]+)"
    r"|s(?P<sparsity>[0-9]+(\.[0-9]+)?)|(?P<dim>[124])d|(?P<act>act)|(?P<entry>int8|u7|sym)|(?P<layout>balanced|hybrid)"
)

EXAMPLES = (
    "fp16",
    "bf16",
    "w8",
    "w4",
    "w3",
    "w2",
    "rtn-w4",
    "rtn-w4-g128",
    "gptq-w4",
    "gptq-w3",
    "gptq-w4-g128",
    "gptq-w3-g128-act",
    "awq-w4-g128",
    "kmeans-w4",
    "squeezellm-w4",
    "squeezellm-w4-u7",
    "squeezellm-w3",
    "squeezellm-w3-s0.05",
    "squeezellm-w3-s0.45",
    "squeezellm-w3-s0.45-balanced",
    "squeezellm-w3-s0.45-hybrid",
    "spqr-w3-g16-s1",
    "gptvq-1d-w2",
    "gptvq-2d-w2",
    "gptvq-2d-w2-n64",
    "gptvq-4d-w2",
)


class _Words(msgspec.Struct, frozen=True, kw_only=True):
    """The words of a format name, each given once or not at all."""

    method: str
    bits: Fraction | None = None
    group: int | None = None
    subrow: int | None = None
    sparsity: Fraction | None = None  # share, not percent
    dim: int | None = None
    act: str | None = None
    entry: str | None = None
    layout: str | None = None


@lru_cache(maxsize=1024)
def parse_format(text: str) -> WeightFormat:
    """The format of that name.

    Raises: UsageError saying which word is wrong and what was expected.
    """
    name = text.strip().lower()
    if len(name) > MAX_NAME_CHARS:
        raise UsageError(f"weight format of {len(name)} characters, expected at most 64")
    base, at, accounting = name.partition("@")
    words = _words(name, base)
    _check(name, words)
    stored = _METHODS[words.method][0](words)
    if at:
        stored = _accounted(name, words, stored, accounting)
    return replace(stored, name=name)


def bits_format(bits: str) -> WeightFormat:
    """Format for `--bits`: 16 is fp16, any other number is the ideal format of so many bits.

    Raises: UsageError.
    """
    number = bits.strip()
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", number):
        raise UsageError(f"--bits: found {number!r}, expected a number such as 4 or 3.5")
    return parse_format("fp16" if number == "16" else f"w{number}")


def _words(name: str, base: str) -> _Words:
    first, *rest = base.split("-")
    if re.fullmatch(r"w[0-9].*", first):
        first, rest = "ideal", [first, *rest]
    if first not in _METHODS:
        raise UsageError(f"no weight format {name!r}; {_near(base)}")
    found: dict[str, str] = {}
    for token in rest:
        match = _TOKEN.fullmatch(token)
        if match is None or match.lastgroup is None:
            raise UsageError(f"weight format {name!r}: unknown word {token!r}; {_near(base)}")
        key, value = next((k, v) for k, v in match.groupdict().items() if v is not None)
        if key in found:
            raise UsageError(f"weight format {name!r}: {token!r} is a second {key}, expected one")
        found[key] = value
    return _Words(
        method=first,
        bits=Fraction(found["bits"]) if "bits" in found else None,
        group=int(found["group"]) if "group" in found else None,
        subrow=int(found["subrow"]) if "subrow" in found else None,
        sparsity=Fraction(found["sparsity"]) / 100 if "sparsity" in found else None,
        dim=int(found["dim"]) if "dim" in found else None,
        act=found.get("act"),
        entry=found.get("entry"),
        layout=found.get("layout"),
    )


def _near(base: str) -> str:
    import difflib  # only needed for an error message

    near = difflib.get_close_matches(base, EXAMPLES, n=2, cutoff=0.6)
    methods = "fp16, bf16, fp32, w<bits>, rtn-, gptq-, awq-, kmeans-, squeezellm-, spqr-, gptvq-"
    return f"did you mean {' or '.join(near)}?" if near else f"have: {methods}"


def _check(name: str, words: _Words) -> None:
    """Every word given must belong to the method, every word it needs must be given."""
    _, allowed, needed, widths = _METHODS[words.method]
    for key in ("bits", "group", "subrow", "sparsity", "dim", "act", "entry", "layout"):
        given = getattr(words, key) is not None
        if given and key not in allowed:
            raise UsageError(f"weight format {name!r}: {words.method} takes no {key}")
        if not given and key in needed:
            example = next(e for e in EXAMPLES if e.startswith(words.method))
            raise UsageError(f"weight format {name!r}: {key} is missing, as in {example}")
    if widths and words.bits not in widths:
        have = ", ".join(str(float(w)).removesuffix(".0") for w in widths)
        raise UsageError(
            f"weight format {name!r}: found {float(words.bits or 0):g} bits, expected one of {have}"
        )
    if words.bits is not None and not 0 < words.bits <= MAX_IDEAL_BITS:
        raise UsageError(f"weight format {name!r}: bits must be above 0 and at most 32")
    if words.group == 0:
        raise UsageError(f"weight format {name!r}: found group size 0, expected at least 1")
    if words.sparsity is not None and not 0 < words.sparsity < 1:
        raise UsageError(f"weight format {name!r}: sparse percent must be above 0 and below 100")
    if words.entry and words.bits not in _ENTRY_BITS[words.entry]:
        have = " or ".join(str(bits) for bits in _ENTRY_BITS[words.entry])
        raise UsageError(f"weight format {name!r}: {words.entry} codebooks have {have} bits")
    if words.layout and words.sparsity is None:
        raise UsageError(f"weight format {name!r}: {words.layout} needs a sparse share, as -s0.45")


def _plain(words: _Words) -> WeightFormat:
    return WeightFormat(name=words.method, code_bits=Fraction(32 if words.method == "fp32" else 16))


def _ideal(words: _Words) -> WeightFormat:
    return WeightFormat(name="ideal", code_bits=words.bits or Fraction(0))


def _uniform(words: _Words) -> WeightFormat:
    """FP16 scale and FP16 zero per row or group; the order is one int32 per column."""
    return WeightFormat(
        name=words.method,
        code_bits=words.bits or Fraction(0),
        k_multiple=K_MULTIPLE,
        scales=Scales(bits_per_group=32, group=words.group),
        order_bits=32 if words.act else 0,
    )


def _lookup(words: _Words) -> WeightFormat:
    """One table of 2^bits entries per row, and compressed sparse rows beside it."""
    bits = int(words.bits or 0)
    entries = 2**bits
    codebook = {
        None: Codebook(entries=entries, entry_bits=16),
        "int8": Codebook(entries=entries, entry_bits=8, scale_bits=16),
        "u7": Codebook(entries=entries, entry_bits=8, scale_bits=32),
        "sym": Codebook(entries=entries // 2, entry_bits=16),
    }[words.entry]
    return WeightFormat(
        name=words.method,
        code_bits=Fraction(bits),
        k_multiple=K_MULTIPLE,
        codebook=codebook,
        sparse=None if words.sparsity is None else _csr(words),
    )


def _csr(words: _Words) -> Sparse:
    return Sparse(
        density=words.sparsity or Fraction(0),
        nonzeros_per_start_row=NONZEROS_PER_START_ROW if words.layout == "balanced" else None,
        dense_rows=DENSEST_ROWS if words.layout == "hybrid" else 0,
    )


def _spqr(words: _Words) -> WeightFormat:
    """SpQR, arXiv 2306.03078, section 4: 3-bit scale and zero per group, 64 bits per 16 groups."""
    statistics_bits = 2 * 3
    return WeightFormat(
        name=words.method,
        code_bits=words.bits or Fraction(0),
        k_multiple=K_MULTIPLE,
        scales=Scales(
            bits_per_group=statistics_bits,
            group=words.group,
            row_multiple=4,
            k_multiple=K_MULTIPLE,
            block_rows=16,
            bits_per_block=64,
        ),
        order_bits=32 if words.act else 0,
        sparse=None if words.sparsity is None else _csr(words),
    )


def _gptvq(words: _Words) -> WeightFormat:
    """GPTVQ, arXiv 2402.15319: int8 codebooks of 2^(bits dim) vectors, one FP16 scale each.

    A codebook serves `group` weights: rows of 256 columns, or of 128 where 256 do not divide it;
    by default as many as make the codebook cost 0.125 bits per weight, the paper's main setting.
    Blockwise scales are 4-bit codes per sub-row, those of four rows together (section 3.2).
    """
    dim, bits = words.dim or 1, words.bits or Fraction(0)
    index_bits = bits * dim
    if index_bits.denominator != 1:
        raise UsageError(
            f"gptvq: {dim}d needs bits x {dim} to be whole, found {float(bits):g} bits"
        )
    entries = 2 ** int(index_bits)
    group = words.group or entries * dim * 64
    if group % K_MULTIPLE:
        raise UsageError(f"gptvq: found groups of {group}, expected a multiple of {K_MULTIPLE}")
    columns = K_MULTIPLE * (1 if group % (2 * K_MULTIPLE) else 2)
    if words.subrow is not None and words.subrow not in (16, 32, 64, 128, columns):
        have = f"16, 32, 64, 128 and the columns of a codebook, {columns}"
        raise UsageError(f"gptvq: found sub-rows of {words.subrow} weights; have: {have}")
    return WeightFormat(
        name=words.method,
        code_bits=bits,
        k_multiple=K_MULTIPLE,
        codebook=Codebook(
            entries=entries,
            entry_bits=8,
            dim=dim,
            scale_bits=16,
            rows=group // columns,
            columns=columns,
        ),
        scales=None
        if words.subrow is None
        else Scales(bits_per_group=4, group=words.subrow, row_multiple=4, k_multiple=K_MULTIPLE),
    )


def _accounted(name: str, words: _Words, stored: WeightFormat, accounting: str) -> WeightFormat:
    """The same format with the bits that somebody else counts."""
    if accounting == "paper":
        return _as_papers_count(stored, index_bits=16 if words.method == "spqr" else 32)
    if accounting == "released" and words.method == "squeezellm" and not words.entry:
        return _as_released(stored)
    raise UsageError(
        f"weight format {name!r}: unknown accounting {accounting!r}; have: paper, released"
    )


def _as_papers_count(stored: WeightFormat, *, index_bits: int) -> WeightFormat:
    """Table 1 of SqueezeLLM: b + 16 2^b / K + 48 s, and 32 / G for groups; nothing per row.

    The formula gives every average bit width of that table (tests/data/table1_bits.csv): 16-bit
    table entries, 16-bit values and 32-bit columns, 16-bit scale and zero per group, none for
    ungrouped methods. SpQR, section 4.4, counts 32 bits per outlier.
    """
    scales, sparse, codebook = stored.scales, stored.sparse, stored.codebook
    apart = (
        Sparse(density=sparse.density, index_bits=index_bits, row_pointers=False)
        if sparse
        else None
    )
    return replace(
        stored,
        k_multiple=1,
        codebook=replace(codebook, scale_bits=0) if codebook else None,
        scales=replace(scales, row_multiple=1, k_multiple=1) if scales and scales.group else None,
        sparse=apart,
        order_bits=0,
    )


def _as_released(stored: WeightFormat) -> WeightFormat:
    """SqueezeLLM's quant.py: float32 tables and values, int32 columns, ten float32 rows."""
    entries = stored.codebook.entries if stored.codebook else 0
    sparse = stored.sparse
    return replace(
        stored,
        k_multiple=32,
        codebook=Codebook(entries=entries, entry_bits=32),
        sparse=Sparse(
            density=sparse.density,
            value_bits=32,
            index_bits=32,
            nonzeros_per_start_row=sparse.nonzeros_per_start_row,
            dense_rows=DENSEST_ROWS,
            dense_value_bits=32,
        )
        if sparse
        else None,
    )


_Builder = Callable[[_Words], WeightFormat]
_WHOLE = tuple(Fraction(bits) for bits in range(2, 9))
_SPQR = tuple(Fraction(bits) for bits in (2, 3, 4))
_GPTVQ = tuple(Fraction(text) for text in ("1", "1.5", "2", "2.5", "3", "3.5", "4"))

_ENTRY_BITS = {"int8": (2, 3, 4), "u7": (4,), "sym": (4,)}

# method: builder, words it takes, words it needs, bit widths (none: any)
_METHODS: dict[str, tuple[_Builder, set[str], set[str], tuple[Fraction, ...]]] = {
    "fp16": (_plain, set(), set(), ()),
    "bf16": (_plain, set(), set(), ()),
    "fp32": (_plain, set(), set(), ()),
    "ideal": (_ideal, {"bits"}, {"bits"}, ()),
    "rtn": (_uniform, {"bits", "group"}, {"bits"}, _WHOLE),
    "gptq": (_uniform, {"bits", "group", "act"}, {"bits"}, _WHOLE),
    "awq": (_uniform, {"bits", "group"}, {"bits", "group"}, _WHOLE),
    "kmeans": (_lookup, {"bits", "sparsity", "entry", "layout"}, {"bits"}, _WHOLE),
    "squeezellm": (_lookup, {"bits", "sparsity", "entry", "layout"}, {"bits"}, _WHOLE),
    "spqr": (_spqr, {"bits", "group", "sparsity", "act"}, {"bits", "group"}, _SPQR),
    "gptvq": (_gptvq, {"bits", "group", "subrow", "dim"}, {"bits", "dim"}, _GPTVQ),
}
