"""What VERSION.json says of the bytes of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Digests:
    """Of a model folder, as VERSION.json keeps them."""

    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file, which any tool can check; empty where it was not asked for."""
    tensors: dict[str, str] = field(default_factory=dict)
    """Of every tensor, by `state/tensor_digest.py`."""
    headers: dict[str, str] = field(default_factory=dict)
    """Likewise of what stands before a file's first tensor, or of all of a file without: with `tensors` it tells all bytes.
    Empty in a store that was begun without them."""

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Digests:
        """From VERSION.json, or another record that was made with `to_record`."""
        return cls(dict(record["files"]), dict(record["tensors"]), dict(record.get("headers", {})))

    def to_record(self) -> dict[str, dict[str, str]]:
        """As VERSION.json has them."""
        return {"files": self.files, "tensors": self.tensors, "headers": self.headers}
