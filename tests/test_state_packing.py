"""Packed lists: bit for bit the same after unpacking, smaller where there is something to save, and no bombs."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.packing import pack, unpack

U2 = np.dtype(np.uint16)


@given(
    st.sampled_from(["u1", "u2", "u4", "u8", "f4"]),
    st.binary(max_size=400),
    st.sampled_from([0, 1, 300]),
)
def test_what_is_packed_comes_back_bit_for_bit(dtype: str, data: bytes, times: int) -> None:
    width = np.dtype(dtype).itemsize
    items = np.frombuffer((data * times)[: len(data) * times // width * width], dtype)
    back = unpack(pack(items), items.dtype, len(items))
    assert back.dtype == items.dtype and back.tobytes() == items.tobytes()
    if width == 1:
        assert unpack(pack(items), items.dtype, None).tobytes() == items.tobytes()


def test_weights_take_less_than_plain_and_random_bytes_hardly_more() -> None:
    draw = np.random.default_rng(0)
    weights = (draw.normal(0, 0.02, 100_000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert len(pack(weights)) < 0.7 * weights.nbytes
    noise = draw.integers(0, 2**16, 100_000, np.uint16)
    assert len(pack(noise)) < 1.001 * noise.nbytes


def test_the_lowest_bytes_stand_first_in_a_stream_of_their_own() -> None:
    first = zlib.decompressobj()
    assert first.decompress(pack(np.array([0x0102, 0x0304], U2))) == b"\x02\x04"
    assert zlib.decompress(first.unused_data) == b"\x01\x03"


@pytest.mark.parametrize("num_items", [999, 1001, 0])
def test_another_number_of_items_is_refused(num_items: int) -> None:
    with pytest.raises(ValueError, match="packed list"):
        unpack(pack(np.arange(1000, dtype=U2)), U2, num_items)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:-5],
        lambda data: data + b"\0",
        lambda data: data[:40] + b"\xff" + data[41:],
        lambda data: b"",
        lambda data: b"zim",
    ],
)
@pytest.mark.parametrize("num_items", [None, 1000])
def test_what_is_cut_spoilt_or_longer_is_refused(spoil: object, num_items: int | None) -> None:
    items = np.arange(1000, dtype=np.uint8 if num_items is None else np.uint16)
    with pytest.raises(ValueError, match="packed list"):
        unpack(spoil(pack(items)), items.dtype, num_items)  # type: ignore[operator]


@pytest.mark.parametrize("num_items", [None, 10_000_000])
def test_a_bomb_is_refused_before_it_unpacks(num_items: int | None) -> None:
    """zlib itself goes up to a thousand times; a Huffman code alone to eight."""
    bomb = zlib.compress(bytes(10_000_000), 9)
    assert len(bomb) < 20_000
    with pytest.raises(ValueError, match="unpacks to more than it can"):
        unpack(bomb, np.dtype(np.uint8), num_items)


def test_one_value_again_and_again_is_no_bomb() -> None:
    """The most that a list can shrink."""
    items = np.zeros(1_000_000, np.uint8)
    packed = pack(items)
    assert len(packed) < len(items) / 7
    assert np.array_equal(unpack(packed, items.dtype, None), items)
