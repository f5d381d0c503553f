"""Digests of model folders, as VERSION.json keeps them.

BLAKE3 (`b3sum` tells what stands behind `blake3:`), which takes a tenth of SHA-256's time where a processor has no
instructions for that. A bare digest is SHA-256. What a store was begun with is gone on with: where that was before the evening of
2026-11-28 files have SHA-256, and a day before tensors too. `headers` in some records of that day is not read any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Kind = Literal["sha256", "blake3"]
_BLAKE3: Final = "blake3:"
"""In front of such a digest."""
_READ_BYTES: Final = 1 << 20


class Hash(Protocol):
    """What takes bytes piece by piece."""

    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Digests:
    """Of a model folder."""

    files: dict[str, str] = field(default_factory=dict)
    """Of every file: all its bytes."""
    tensors: dict[str, str] = field(default_factory=dict)
    """Of every tensor, which tell where versions differ; empty where it was not asked for."""
    sha256: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file, by which others know it; empty where it was not asked for."""

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Digests:
        """From VERSION.json, or another record that was made with `to_record`."""
        files = dict(record["files"])
        own = files if kind_of(files) == "sha256" else {}
        return cls(files, dict(record["tensors"]), dict(record.get("sha256", own)))

    def to_record(self) -> dict[str, dict[str, str]]:
        """As VERSION.json has them."""
        known = {"files": self.files, "tensors": self.tensors}
        return known | ({"sha256": self.sha256} if self.sha256 and self.sha256 != self.files else {})


@dataclass(frozen=True)
class Kinds:
    """Which digests are taken."""

    files: Kind = "blake3"
    tensors: Kind | None = "blake3"
    """None: of tensors none."""
    with_sha256: bool = False
    """SHA-256 of the files too, for others."""

    @classmethod
    def of(cls, known: Digests, *, with_sha256: bool = False) -> Kinds:
        """Those that there are already."""
        return cls(kind_of(known.files), kind_of(known.tensors), with_sha256)

    @classmethod
    def of_files(cls, known: Mapping[str, str], *, with_sha256: bool = False) -> Kinds:
        """Of files those that there are already, and of tensors none."""
        return cls(kind_of(known), None, with_sha256)


def kind_of(digests: Mapping[str, str]) -> Kind:
    """The kind of digests by name, which are all of one; BLAKE3 where there are none yet."""
    return _kind(next(iter(digests.values()), _BLAKE3))


def _kind(digest: str) -> Kind:
    return "blake3" if digest.startswith(_BLAKE3) else "sha256"


def new_hash(kind: Kind) -> Hash:
    """Of no bytes yet."""
    if kind == "sha256":
        return hashlib.sha256()
    from blake3 import blake3  # not needed by commands that must start fast

    return blake3()


def recorded(kind: Kind, digest: Hash) -> str:
    """A digest as a record has it."""
    return f"{_BLAKE3 if kind == 'blake3' else ''}{digest.hexdigest()}"


def is_of_bytes(data: NDArray[np.uint8], digest: str) -> bool:
    """Whether it is the digest, of whichever kind, of these bytes."""
    return _is_of([data.data], digest)


def is_of_file(path: Path, digest: str) -> bool:
    """Likewise of a file."""
    with path.open("rb") as file:
        return _is_of(iter(lambda: memoryview(file.read(_READ_BYTES)), b""), digest)


def _is_of(pieces: Iterable[memoryview], digest: str) -> bool:
    kind = _kind(digest)
    found = new_hash(kind)
    for piece in pieces:
        found.update(piece)
    return recorded(kind, found) == digest
