"""Lists of numbers as bytes by their place in the item, each place Huffman-coded: the zlib format, so that anybody can read it.

Of weights the first byte, sign and exponent, takes few values and the last any: apart, the one shrinks to a third.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng as zlib  # twice as fast as zlib at Huffman codes, in the same format

_SAMPLE_BYTES: Final = 1 << 16
_WORTH_IT: Final = 0.98
"""Share of itself that a sample must shrink to; what does not is stored, which is ten times as fast to read and to write."""
_MOST_TIMES: Final = 8
"""A Huffman code has one bit a byte at least. So nothing that was packed here unpacks to more than this, but for a few bytes."""


def pack(items: NDArray[Any]) -> bytes:
    """Shape (n,), of unsigned integers: first all lowest bytes, then all next ones…, a zlib stream each."""
    little = items.astype(items.dtype.newbyteorder("<"), copy=False)
    planes = np.ascontiguousarray(little.view(np.uint8).reshape(len(items), items.itemsize).T)
    return b"".join(_deflated(plane.data) for plane in planes)


def unpack(packed: bytes, dtype: np.dtype[Any], num_items: int | None) -> NDArray[Any]:
    """What was packed, shape (n,).

    Args:
        num_items: n; None where only the bytes say it, which is for items of one byte.
    Raises:
        ValueError: these are no such bytes, or unpack to more than they can.
    """
    most = _MOST_TIMES * len(packed) + 64
    if num_items is None:
        plane, rest = _inflated(packed, most)
        planes = [plane]
    else:
        planes, rest = [], packed
        for _ in range(dtype.itemsize):
            plane, rest = _inflated(rest, min(num_items, most))
            planes.append(plane)
    if rest or (num_items is not None and any(len(plane) != num_items for plane in planes)):
        raise ValueError("a packed list is longer or shorter than it must be")
    together = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1)
    return np.ascontiguousarray(together).view(dtype.newbyteorder("<")).reshape(-1).astype(dtype, copy=False)


def _deflated(plane: memoryview) -> bytes:
    is_worth_it = len(_huffman(plane[:_SAMPLE_BYTES], 1)) <= _WORTH_IT * len(plane[:_SAMPLE_BYTES])
    return _huffman(plane, 1 if is_worth_it else 0)


def _huffman(data: memoryview, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def _inflated(packed: bytes, most: int) -> tuple[bytes, bytes]:
    """One stream of at most so many bytes, and what stands behind it."""
    unpacker = zlib.decompressobj()
    try:
        # 0 would be no limit
        plane = unpacker.decompress(packed, max(1, most))
        more = unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as err:  # type: ignore[misc]  # its stub has a value, which is a class
        raise ValueError(f"a packed list is damaged: {err}") from err
    if more or not unpacker.eof:
        raise ValueError("a packed list ends too early, or unpacks to more than it can")
    return plane, unpacker.unused_data
