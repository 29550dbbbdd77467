"""Codes survive packing, cost exactly their bits, and stand where the documents say."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.checks import LayoutError
from kernels.layouts import DEFAULT_TILE_CODES, pack_codes, quad_slots, slot_fields, unpack_codes
from kernels.layouts.codes import BITS

ORDERS = [(bits, order) for bits in BITS for order in ("selector", "field")]
ORDERS.append((4, "signed"))
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "packed_codes.json").read_text())


def ramp(bits: int, rows: int, columns: int) -> torch.Tensor:
    """Codes that a reader can compute: (7 * column + 3 * row) mod 2**bits."""
    column, row = torch.arange(columns), torch.arange(rows)[:, None]
    return (7 * column + 3 * row) % 2**bits


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    packing=st.sampled_from(ORDERS),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5000),
    tile=st.integers(0, 2),
    seed=st.integers(0, 2**16),
)
def test_codes_survive_packing(packing, rows, columns, tile, seed):
    bits, order = packing
    codes = torch.randint(
        0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)
    )
    tile_codes = DEFAULT_TILE_CODES[bits] >> tile
    packed = pack_codes(codes, bits, tile_codes=tile_codes, order=order)
    assert torch.equal(unpack_codes(packed).long(), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [1, 128, 129, 4096, 11008])
def test_codes_cost_exactly_their_bits(bits, columns):
    packed = pack_codes(torch.zeros(3, columns, dtype=torch.uint8), bits)
    padded = -(-columns // 128) * 128
    assert packed.nbytes_by_item() == {"codes": 3 * padded * bits // 8}


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: f"{entry['bits']}-{entry['order']}")
def test_packed_words_are_those_on_file(entry):
    codes = ramp(entry["bits"], entry["rows"], entry["columns"])
    packed = pack_codes(codes, entry["bits"], order=entry["order"])
    words = [[f"{word & 0xFFFFFFFF:08x}" for word in row] for row in packed.words.tolist()]
    assert words == entry["words"]


@pytest.mark.parametrize(("bits", "order"), ORDERS)
def test_slots_fill_every_bit_once(bits, order):
    taken = [
        (word, start + bit)
        for slot in slot_fields(bits, order)
        for word, _, width, start in slot
        for bit in range(width)
    ]
    words = {3: 3, 5: 5, 6: 3, 7: 7}.get(bits, 1)
    assert sorted(taken) == [(word, bit) for word in range(words) for bit in range(32)]


@pytest.mark.parametrize(("bits", "order"), [pair for pair in ORDERS if pair[1] != "signed"])
def test_quads_hold_every_slot_once(bits, order):
    slots = [slot for quad in quad_slots(bits, order) for slot in quad]
    assert sorted(slots) == list(range(len(slot_fields(bits, order))))


def test_first_word_of_a_4_bit_tile_holds_pairs_a_quarter_tile_apart():
    codes = torch.zeros(1, 1024, dtype=torch.uint8)
    columns = [0, 1, 256, 257, 512, 513, 768, 769]
    codes[0, columns] = torch.arange(1, 9, dtype=torch.uint8)
    assert pack_codes(codes, 4).words[0, 0] == -0x789ABCDF  # 0x87654321


@pytest.mark.parametrize(
    ("codes", "arguments", "message"),
    [
        (torch.full((2, 4), 9), {"bits": 3}, r"range of codes is 9\.\.9, expected 0\.\.7"),
        (torch.zeros(4, dtype=torch.uint8), {"bits": 4}, r"shape of codes is \(4,\), expected"),
        (torch.zeros(2, 4), {"bits": 4}, "dtype of codes is torch.float32, expected torch.uint8"),
        (torch.zeros(0, 4).int(), {"bits": 4}, r"shape of codes is \(0, 4\), expected at least"),
        (torch.zeros(2, 4).int(), {"bits": 9}, "bits is 9, expected one of 2, 3, 4, 5, 6, 7, 8"),
        (torch.zeros(2, 4).int(), {"bits": 4, "tile_codes": 100}, "tile_codes is 100, expected"),
        (torch.zeros(2, 4).int(), {"bits": 3, "order": "signed"}, "order is 'signed', expected"),
        ([[1, 2]], {"bits": 4}, "codes is a list, expected a torch.Tensor"),
    ],
)
def test_bad_codes_are_named(codes, arguments, message):
    with pytest.raises(LayoutError, match=message):
        pack_codes(codes, **arguments)
