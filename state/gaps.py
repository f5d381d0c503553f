"""Rising positions as one byte per small gap; and files of several such lists with their values."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from state import durable
from state.errors import ModelFormatError, StoreCorruptError
from state.header import TensorInfo, header_bytes, read_header, read_metadata
from state.packing import pack, unpack

SKIP = 255
STEPS, VALUES, PACKED = ".steps", ".values", ".zlib"
_NAMES: dict[np.dtype[Any], str] = {np.dtype(np.uint8): "U8", np.dtype(np.uint16): "U16", np.dtype(np.uint32): "U32",
          np.dtype(np.uint64): "U64", np.dtype(np.float32): "F32"}  # fmt: skip
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_PACKED_KEY = re.compile(rf"(.*)(\.steps|\.values\.({'|'.join(_TYPES)}))\.zlib", re.DOTALL)
Pair = tuple[NDArray[np.int64], NDArray[Any]]


def encode(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The gap stream of strictly rising positions >= 0.

    A byte below 255 goes that many entries further and names the one it lands on (then steps past it); 255 goes 255
    further and names none.

    Raises:
        ValueError: positions that do not rise, or below 0.
    """
    gaps = np.diff(indices, prepend=-1) - 1
    if gaps.size and int(gaps.min()) < 0:
        raise ValueError("positions must be 0 or more and strictly rising")
    wide = np.flatnonzero(gaps >= SKIP)  # few, where positions are not sparse: the rest is a byte each
    skips, gaps[wide] = np.divmod(gaps[wide], SKIP)
    return np.insert(gaps.astype(np.uint8), np.repeat(wide, skips), SKIP)


def decode(stream: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The positions of a gap stream.

    Raises:
        ValueError: the stream ends in the middle of a gap.
    """
    if stream.size and stream[-1] == SKIP:
        raise ValueError("the stream of positions ends in the middle of a gap")
    named = stream != SKIP
    ends = np.cumsum(stream.astype(np.int64) + named)
    indices: NDArray[np.int64] = ends[named] - 1
    return indices


class GapWriter:
    """Writes lists of positions with values to one file, holding one list in memory.

    The file is a safetensors file with `<name>.steps` (uint8) and `<name>.values`; equal content gives equal bytes,
    in whatever order it was added. Use as a context manager: complete at its end, or absent.

    Where it is packed, and only where that is smaller, uint8 `<name>.steps.zlib` and `<name>.values.U16.zlib` (or another
    width) stand for them. Other builds of zlib may give other bytes, which say the same.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], *, packed: bool = False) -> None:
        self.path = path
        self.digest = ""
        """SHA-256 of the file; set when the block has ended."""
        self._metadata = metadata
        self._packed = packed
        self._names: set[str] = set()
        self._parts: dict[str, tuple[str, int, int, int]] = {}  # name -> dtype, entries, start, bytes
        self._spill = path.with_name(f"{durable.TEMPORARY_PREFIX}{path.name}.spill.{os.urandom(4).hex()}")
        self._out = durable.Writer(self._spill)
        self._lock = threading.Lock()

    def add(self, name: str, indices: NDArray[np.int64], values: NDArray[np.generic]) -> None:
        """Add one list of strictly rising positions, shape (n,), with its values, shape (n,); from any thread.

        Raises:
            ValueError: shapes or order are wrong, or the name was added before.
        """
        if indices.ndim != 1 or indices.shape != values.shape:
            raise ValueError(f"{name}: shapes {indices.shape} and {values.shape}, expected (n,) twice")
        with self._lock:
            if name in self._names:
                raise ValueError(f"{name} was added before")
            self._names.add(name)
        self._append(name + STEPS, encode(indices))
        self._append(name + VALUES, np.ascontiguousarray(values))

    def __enter__(self) -> GapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._assemble()
        finally:
            self._out.abandon()

    def _append(self, key: str, data: NDArray[Any]) -> None:
        packed = np.frombuffer(pack(data), np.uint8) if self._packed else data
        if packed.nbytes < data.nbytes:
            key = f"{key}{PACKED}" if key.endswith(STEPS) else f"{key}.{_NAMES[data.dtype]}{PACKED}"
            data = packed
        with self._lock:
            self._parts[key] = (_NAMES[data.dtype], data.size, self._out.num_bytes, data.nbytes)
            self._out.write(data.tobytes())

    def _assemble(self) -> None:
        # widest items first, as safetensors itself does: every list is then aligned
        order = sorted(self._parts, key=lambda key: (-_TYPES[self._parts[key][0]].itemsize, key))
        header = header_bytes([(key, *self._parts[key][:2]) for key in order], self._metadata)
        digest = hashlib.sha256(header)
        with self._out.reading() as source, durable.writing(self.path, 0o444) as out:
            out.write(header)
            for key in order:
                for chunk in _pieces(source, *self._parts[key][2:]):
                    digest.update(chunk)
                    out.write(chunk)
        self.digest = digest.hexdigest()


class GapFile(Mapping[str, Pair]):
    """The lists of a file written by `GapWriter`, each read when it is looked up."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            StoreCorruptError: it is no such file; names it.
        """
        self.path = path
        self._steps: dict[str, _Part] = {}
        self._values: dict[str, _Part] = {}
        try:
            for info in read_header(path, path.name):
                self._file_part(info)
            self.metadata = read_metadata(path)
        except (ModelFormatError, OSError) as err:
            raise StoreCorruptError(f"{path}: {err}", "`alignd verify` tells what else is damaged") from err
        if self._steps.keys() != self._values.keys():
            raise StoreCorruptError(f"{path}: positions and values do not pair up")

    def __getitem__(self, name: str) -> Pair:
        steps, part = self._steps[name], self._values[name]
        try:
            if steps.dtype != np.uint8:
                raise ValueError(f"positions are {steps.dtype}, expected uint8")
            indices = decode(self._load(steps, None))
            values = self._load(part, len(indices))
        except ValueError as err:
            raise StoreCorruptError(f"{self.path}: {name}: {err}") from err
        if len(indices) != len(values):
            raise StoreCorruptError(f"{self.path}: {name}: {len(indices)} positions, {len(values)} values")
        return indices, values

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def _file_part(self, info: TensorInfo) -> None:
        packed = _PACKED_KEY.fullmatch(info.name)
        if packed is None:
            name, end, dtype = info.name, STEPS if info.name.endswith(STEPS) else VALUES, info.dtype
            name = name.removesuffix(end)
        else:
            name, end, dtype = packed[1], STEPS if packed[2] == STEPS else VALUES, packed[3] or "U8"
        if dtype not in _TYPES or (packed is not None and info.dtype != "U8"):
            raise StoreCorruptError(f"{self.path}: {info.name} has dtype {info.dtype}")
        parts = self._steps if end == STEPS else self._values
        if name == info.name or name in parts:
            raise StoreCorruptError(f"{self.path}: positions and values do not pair up")
        parts[name] = _Part(info, _TYPES[dtype], packed is not None)

    def _load(self, part: _Part, num_items: int | None) -> NDArray[Any]:
        with self.path.open("rb") as file:
            if not part.is_packed:
                return np.fromfile(file, part.dtype, part.info.num_entries, offset=part.info.start)
            file.seek(part.info.start)
            return unpack(file.read(part.info.num_bytes), part.dtype, num_items)


@dataclass(frozen=True)
class _Part:
    """Positions or values of one name in a file."""

    info: TensorInfo
    dtype: np.dtype[Any]
    """Of the items when they are unpacked."""
    is_packed: bool


@contextmanager
def named_by_content(folder: Path, metadata: Mapping[str, str]) -> Iterator[GapWriter]:
    """A `GapWriter` whose file ends up in `folder` as `<digest>.safetensors`."""
    path = folder / f"{durable.TEMPORARY_PREFIX}{os.urandom(8).hex()}"
    with GapWriter(path, metadata) as writer:
        yield writer
    final = folder / f"{writer.digest}.safetensors"
    if final.exists():
        durable.remove_tree(path)
    else:
        durable.move(path, final)


def _pieces(fd: int, start: int, num_bytes: int) -> Iterator[bytes]:
    for offset in range(start, start + num_bytes, durable.READ_BYTES):
        yield os.pread(fd, min(durable.READ_BYTES, start + num_bytes - offset), offset)
