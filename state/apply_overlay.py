"""Rebuilds a model bit for bit out of its base and an overlay that `alignd export --to overlay` wrote.

    python apply.py BASE OUT

BASE is the model folder that overlay.json was made for, OUT a new folder. Every file of BASE is compared with its SHA-256
before, and every file of OUT after; OUT appears whole, or not at all. `alignd` copies this file as it stands: it needs
Python 3.9 or newer and numpy, and nothing else of ours.

The overlay is a safetensors file. For each tensor that differs it holds `NAME.values`, the new raw entries as unsigned
integers of the tensor's item size, and `NAME.steps`, their flat positions as bytes: a byte below 255 goes that many
entries further and names the one it lands on (then steps past it); 255 goes 255 further and names none. Where that is
smaller, uint8 `NAME.steps.zlib` and `NAME.values.U16.zlib` (or another width) stand for them: zlib streams behind one
another, the first of the lowest bytes of all entries, the next of the next ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

MANIFEST, OVERLAY = "overlay.json", "overlay.safetensors"
STEPS, VALUES, PACKED = ".steps", ".values", ".zlib"
SKIP = 255
READ_BYTES = 1 << 20


class ApplyError(Exception):
    """The model cannot be rebuilt; the message says why."""


def main(words: list[str] | None = None) -> int:
    """Rebuilds the model; the exit code."""
    parser = argparse.ArgumentParser(description="Rebuild a model bit for bit out of its base and this overlay.")
    parser.add_argument("base", metavar="BASE", type=Path, help="the model folder that the overlay was made for")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder; nothing is overwritten")
    parser.add_argument(
        "--overlay",
        metavar="DIR",
        type=Path,
        default=Path(__file__).resolve().parent,
        help=f"folder with {MANIFEST} and {OVERLAY} (default: this script's)",
    )
    args = parser.parse_args(words)
    try:
        num_files = apply(args.base, args.overlay, args.out)
    except (ApplyError, OSError) as err:
        print(f"apply: {err}", file=sys.stderr)
        return 1
    print(f"{args.out}: {num_files} files, each with the SHA-256 that {MANIFEST} names")
    return 0


def apply(base: Path, folder: Path, out: Path) -> int:
    """Write the model at `out`, which must be free, and return how many files it has.

    Raises:
        ApplyError: base, overlay or result are not what the manifest says, or `out` is taken.
    """
    if os.path.lexists(out):
        raise ApplyError(f"{out} exists; nothing is overwritten")
    manifest = _manifest(folder / MANIFEST)
    _check(folder / OVERLAY, manifest["overlay"]["sha256"], "the overlay")
    staging = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        _build(base, folder / OVERLAY, staging, manifest)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(manifest["result"]["files"])


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        names = [*manifest["base"]["files"], *manifest["result"]["files"]]
        number, _ = manifest["format_version"], manifest["overlay"]["sha256"]
    except (ValueError, KeyError, TypeError) as err:
        raise ApplyError(f"{path} is no manifest of an overlay: {err!r}") from err
    if number not in (1, 2):
        raise ApplyError(f"{path} has format_version {number}; this script knows 1 and 2")
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise ApplyError(f"{path} names {name!r}, which is no file inside a model folder")
    return manifest


def _build(base: Path, overlay: Path, staging: Path, manifest: dict[str, Any]) -> None:
    edits = _parts(overlay)
    names = {key[: -len(STEPS)] for key in edits if key.endswith(STEPS)}
    for name in sorted(manifest["result"]["files"]):
        source, target = base / name, staging / name
        _check(source, manifest["base"]["files"].get(name), "the base")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if name.endswith(".safetensors"):
            names -= _patch(target, overlay, edits, names)
        _check(target, manifest["result"]["files"][name], "the result")
    if names:
        raise ApplyError(f"the base has no tensor {sorted(names)[0]}")


def _patch(shard: Path, overlay: Path, edits: dict[str, Any], names: set[str]) -> set[str]:
    """Assign the new values of the tensors that lie in this shard; their names."""
    here = {name: found for name, found in _lists(shard).items() if name in names}
    for name, (dtype, start, num_bytes) in here.items():
        positions = _positions(_load(overlay, edits[name + STEPS]))
        values = _load(overlay, edits[name + VALUES])
        if len(positions) != len(values) or (len(positions) and positions[-1] * values.itemsize >= num_bytes):
            raise ApplyError(f"tensor {name}: {len(values)} values do not fit its {num_bytes} bytes of {dtype}")
        if len(values):
            whole = np.memmap(shard, values.dtype, "r+", offset=start, shape=(num_bytes // values.itemsize,))
            whole[positions] = values
            whole.flush()
    return set(here)


def _lists(path: Path) -> dict[str, tuple[str, int, int]]:
    """Of a safetensors file: name -> dtype, first byte, number of bytes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        found[name] = (entry["dtype"], 8 + length + start, end - start)
    return found


def _parts(overlay: Path) -> dict[str, tuple[str, int, int, bool]]:
    """Of an overlay: NAME.steps or NAME.values -> dtype of its entries, first byte, number of bytes, whether it is packed."""
    found = {}
    for key, (dtype, start, num_bytes) in _lists(overlay).items():
        plain = key[: -len(PACKED)] if key.endswith(PACKED) else key
        if plain != key and not plain.endswith(STEPS):
            plain, dtype = plain.rsplit(".", 1)
        found[plain] = (dtype, start, num_bytes, plain != key)
    return found


def _load(path: Path, part: tuple[str, int, int, bool]) -> np.ndarray[Any, Any]:
    dtype, start, num_bytes, is_packed = part
    item = np.dtype({"U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}[dtype])
    if not is_packed:
        return np.fromfile(path, item, num_bytes // item.itemsize, offset=start)
    rest, planes = np.fromfile(path, "u1", num_bytes, offset=start).tobytes(), []
    for _ in range(item.itemsize):
        unpacker = zlib.decompressobj()
        planes.append(np.frombuffer(unpacker.decompress(rest), "u1"))
        rest = unpacker.unused_data
    return np.ascontiguousarray(np.stack(planes, axis=1)).view(item).reshape(-1)


def _positions(stream: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Flat positions, rising, int64 (n,), of a stream of steps."""
    named = stream != SKIP
    positions: np.ndarray[Any, Any] = np.cumsum(stream.astype(np.int64) + named)[named] - 1
    return positions


def _check(path: Path, expected: str | None, what: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ApplyError(f"{path} is not {what} of this overlay: SHA-256 {digest.hexdigest()}, expected {expected}")


if __name__ == "__main__":
    sys.exit(main())
