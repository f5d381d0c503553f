"""The header of a safetensors file, read with suspicion and written canonically. Needs no numpy."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from state.errors import ModelFormatError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 64
_TOO_BIG = 1 << 63


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies."""

    name: str
    dtype: str
    """safetensors name, e.g. `BF16`, `F32`."""
    shape: tuple[int, ...]
    file: str
    """Shard, relative to the folder."""
    start: int
    """First byte in the shard."""
    num_bytes: int

    @property
    def num_entries(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path, file: str) -> list[TensorInfo]:
    """The tensors of a safetensors file, by position; they cover everything after the header, without overlap.

    Raises:
        ModelFormatError: names the file (and the tensor) and says what is wrong.
    """
    header, data_start, size = _read(path)
    infos = [
        _info(path, name, entry, file=file, data_start=data_start)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    infos.sort(key=lambda info: (info.start, info.num_bytes))
    end = data_start
    for info in infos:
        if info.start != end:
            raise ModelFormatError(f"{path}: tensor {info.name} starts at {info.start}, expected {end}")
        end += info.num_bytes
    if end != size:
        raise ModelFormatError(f"{path}: {size} bytes long, its header speaks of {end}", "get the file again")
    return infos


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form metadata of a safetensors file."""
    metadata = _read(path)[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ModelFormatError(f"{path}: its metadata is no object of texts")
    return metadata


def header_bytes(tensors: Sequence[tuple[str, str, int]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file that holds these flat tensors (name, dtype, number of entries) in this order."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, dtype, num_entries in tensors:
        start, end = end, end + num_entries * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": [num_entries], "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read(path: Path) -> tuple[dict[str, Any], int, int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelFormatError(f"{path}: is no safetensors file, or is cut short", "get the file again")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise ModelFormatError(f"{path}: its header is no JSON: {err}", "get the file again") from err
    if not isinstance(header, dict):
        raise ModelFormatError(f"{path}: its header is no object", "get the file again")
    return header, 8 + length, size


def _info(path: Path, name: str, entry: Any, *, file: str, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if any(type(number) is not int or not 0 <= number < _TOO_BIG for number in (*shape, start, end)):
            raise TypeError("a size or offset that is no natural number")
        if len(shape) > _MAX_DIMENSIONS:
            raise TypeError(f"a shape of {len(shape)} dimensions")
        item_bytes = ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError) as err:
        raise ModelFormatError(f"{path}: header of tensor {name}: {err!r} is wrong or missing") from err
    if end - start != math.prod(shape) * item_bytes:
        raise ModelFormatError(f"{path}: tensor {name}: {end - start} bytes do not fit {dtype} {list(shape)}")
    return TensorInfo(name, dtype, shape, file, data_start + start, end - start)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value
