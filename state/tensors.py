"""A raw, torch-free view of a model folder in Hugging Face layout, and bytes <-> float32."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from state.errors import ModelFormatError
from state.header import ITEM_BYTES, MAX_HEADER_BYTES, TensorInfo, read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
FOREIGN_SUFFIXES = {
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".msgpack", ".gguf", ".npz",
}  # fmt: skip
CHUNK_BYTES = 4 << 20
_RAW: dict[int, np.dtype[Any]] = {num_bytes: np.dtype(f"u{num_bytes}") for num_bytes in (1, 2, 4, 8)}
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}


@dataclass(frozen=True)
class ModelFolder:
    """A validated model folder."""

    path: Path
    tensors: dict[str, TensorInfo]
    """By name, in the order of shard and position."""
    files: dict[str, Path]
    """Every file that belongs to the model: name relative to the folder -> where its bytes are."""

    @classmethod
    def open(cls, path: Path, *, follow_links: bool = False) -> ModelFolder:
        """Validate a folder: config without remote code, safetensors only, shards and index that agree.

        Args:
            follow_links: allow the symbolic links of a Hugging Face cache (only for importing a base).
        Raises:
            ModelFormatError: names the file and says what is wrong.
        """
        path = Path(path)
        if not path.is_dir():
            raise ModelFormatError(f"{path}: there is no such folder", "give a model in Hugging Face layout")
        files = dict(sorted(_files(path, follow_links=follow_links)))
        _check_config(path, files)
        _check_suffixes(path, files)
        weight_map = _weight_map(path, files)
        tensors: dict[str, TensorInfo] = {}
        for shard in sorted(name for name in files if name.endswith(".safetensors")):
            tensors |= _shard_tensors(path, shard, files, weight_map=weight_map, seen=tensors)
        _check_complete(path, tensors, weight_map)
        return cls(path, tensors, files)

    @property
    def shards(self) -> list[str]:
        """The safetensors files that hold the tensors, in order."""
        return list(dict.fromkeys(info.file for info in self.tensors.values()))

    def tensors_of(self, shard: str) -> list[TensorInfo]:
        """The tensors of one shard, in the order of their position."""
        return [info for info in self.tensors.values() if info.file == shard]

    def read_raw(self, name: str) -> NDArray[np.unsignedinteger]:
        """The entries of a tensor as a flat read-only memmap of unsigned integers of the item's size."""
        info = self.tensors[name]
        dtype = raw_dtype(info.dtype)
        if info.num_bytes == 0:
            return np.empty(0, dtype)
        return np.memmap(self.files[info.file], dtype=dtype, mode="r", offset=info.start, shape=(info.num_entries,))


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """The unsigned integer type of the same item size as a safetensors dtype."""
    return _RAW[ITEM_BYTES[dtype]]


def to_float32(raw: NDArray[np.unsignedinteger], dtype: str) -> NDArray[np.float32]:
    """float32 values, shape of `raw`, of raw entries (unsigned integers) of `F32`, `BF16` or `F16`.

    Raises:
        ValueError: another dtype.
    """
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    raise ValueError(f"dtype {dtype!r}; only F32, BF16 and F16 weights can be patched")


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[np.unsignedinteger]:
    """Raw entries (unsigned integers), shape of `values`, rounded to nearest even as torch does.

    Raises:
        ValueError: another dtype.
    """
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    raise ValueError(f"dtype {dtype!r}; only F32, BF16 and F16 weights can be patched")


def check_finite(folder: ModelFolder) -> None:
    """Raise `ModelFormatError` naming the first tensor that holds a NaN or an infinity; reads all, streamed."""
    for info in folder.tensors.values():
        mask = _EXPONENT.get(info.dtype)
        if mask is None:
            continue
        for chunk in read_chunks(folder.files[info.file], info):
            raw = chunk.view(raw_dtype(info.dtype))
            if bool(((raw & raw.dtype.type(mask)) == mask).any()):
                raise ModelFormatError(
                    f"{folder.files[info.file]}: tensor {info.name} holds NaN or infinity",
                    "the weights are damaged; get them again",
                )


def read_chunks(path: Path, info: TensorInfo, num_buffers: int = 1) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor, in pieces of at most `CHUNK_BYTES`.

    A piece may be changed, and is valid until `num_buffers` more are asked for.
    """
    buffers = cycle([np.empty(min(CHUNK_BYTES, info.num_bytes), np.uint8) for _ in range(num_buffers)])
    with path.open("rb", buffering=0) as file:
        file.seek(info.start)
        left = info.num_bytes
        while left:
            view = next(buffers)[:left]
            fill(file.fileno(), view)
            left -= len(view)
            yield view


def fill(fd: int, buffer: NDArray[np.uint8]) -> None:
    """Read until the buffer is full.

    Raises:
        OSError: the file ended before.
    """
    view = buffer.data
    while view:
        done = os.readv(fd, [view])
        if done == 0:
            raise OSError(f"a weights file ended {len(view)} bytes early")
        view = view[done:]


def _files(folder: Path, *, follow_links: bool) -> Iterator[tuple[str, Path]]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.is_symlink() and not follow_links:
                raise ModelFormatError(f"{path}: is a symbolic link", "a version holds files of its own")
            if not path.is_file():
                raise ModelFormatError(f"{path}: is no regular file", "remove it from the model folder")
            yield path.relative_to(folder).as_posix(), path.resolve()


def _check_config(folder: Path, files: dict[str, Path]) -> None:
    if "config.json" not in files:
        raise ModelFormatError(f"{folder}: has no config.json", "give a model in Hugging Face layout")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json"):
        if name in files and "auto_map" in read_object(files[name]):
            raise ModelFormatError(
                f"{folder / name}: wants remote code (auto_map)",
                "alignd runs no code out of a model folder; use a model that transformers knows itself",
            )


def _check_suffixes(folder: Path, files: dict[str, Path]) -> None:
    foreign = [name for name in files if Path(name).suffix.lower() in FOREIGN_SUFFIXES]
    if foreign:
        raise ModelFormatError(
            f"{folder}: holds {', '.join(foreign)}; only safetensors are used",
            "convert the weights to safetensors, and remove these files: a pickle can run code, and a second "
            "copy of the weights would stay unpatched",
        )


def _weight_map(folder: Path, files: dict[str, Path]) -> dict[str, str]:
    """Tensor name -> shard, out of the index; empty when there is the one shard and no index."""
    shards = {name for name in files if name.endswith(".safetensors")}
    if INDEX_NAME not in files:
        if shards != {SINGLE_NAME}:
            what = f"holds {', '.join(sorted(shards))} without {INDEX_NAME}" if shards else "holds no safetensors"
            raise ModelFormatError(f"{folder}: {what}", f"expected {SINGLE_NAME}, or shards with their index")
        return {}
    weight_map = read_object(files[INDEX_NAME]).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise ModelFormatError(f"{folder / INDEX_NAME}: has no weight_map")
    if set(weight_map.values()) != shards:
        odd = ", ".join(sorted(set(weight_map.values()) ^ shards))
        raise ModelFormatError(f"{folder}: files and {INDEX_NAME} disagree about {odd}", "get the model again")
    return weight_map


def _shard_tensors(
    folder: Path,
    shard: str,
    files: dict[str, Path],
    *,
    weight_map: dict[str, str],
    seen: dict[str, TensorInfo],
) -> dict[str, TensorInfo]:
    found = {info.name: info for info in read_header(files[shard], shard)}
    for name in found:
        if name in seen or (weight_map and weight_map.get(name) != shard):
            raise ModelFormatError(f"{folder / shard}: tensor {name} does not belong here, says {INDEX_NAME}")
    return found


def _check_complete(folder: Path, tensors: dict[str, TensorInfo], weight_map: dict[str, str]) -> None:
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing or not tensors:
        what = f"tensor {missing[0]} is in no shard" if missing else "holds no tensors"
        raise ModelFormatError(f"{folder}: {what}", "get the model again")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder, such as its config.json.

    Raises:
        ModelFormatError: it is none, or too big to be one; names the file.
    """
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise ModelFormatError(f"{path}: is longer than {MAX_HEADER_BYTES} bytes", "get the file again")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise ModelFormatError(f"{path}: is no JSON: {err}", "get the file again") from err
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: is no JSON object")
    return value
