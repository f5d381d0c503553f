"""Rows into the probe files of a home: each question once, the files replaced whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from daemon import probes
from daemon.config import Config, ConfigError
from daemon.probe_packs import Kind
from state import durable

_NEW_MODE: Final = 0o600
"""Of a probe file that was not there: like the batches it is for the service's user alone."""


@dataclass(frozen=True)
class Added:
    """What became of the rows of one kind."""

    path: Path
    num_added: int
    num_known: int
    """Rows whose question the file has already, or an earlier row has."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"path": str(self.path), "num_added": self.num_added, "num_known": self.num_known}


def add(home: Path, config: Config, rows: Mapping[Kind, Sequence[dict[str, Any]]]) -> dict[Kind, Added]:
    """Append rows to the probe files that the settings name; all that is there stays as it is.

    Raises:
        ConfigError: a file that is there cannot be read as probes, or the settings name none.
        OSError: a file cannot be written.
    """
    wanted = {kind: found for kind, found in rows.items() if found}
    prepared = {kind: _prepare(_path(home, config, kind), found) for kind, found in wanted.items()}
    for path, data, mode, added in prepared.values():
        if added.num_added:
            if not path.parent.is_dir():
                durable.make_folder(path.parent)
            durable.write_file(path, data, mode)
    return {kind: added for kind, (_, _, _, added) in prepared.items()}


def _path(home: Path, config: Config, kind: Kind) -> Path:
    name: str = getattr(config.probes, kind)
    if not name:
        raise ConfigError(f"probes.{kind} names no file; name one, such as 'probes/{kind}.jsonl'")
    return (home / name).resolve()


def _prepare(path: Path, rows: Sequence[dict[str, Any]]) -> tuple[Path, bytes, int, Added]:
    data, mode = (path.read_bytes(), path.stat().st_mode & 0o777) if path.exists() else (b"", _NEW_MODE)
    known = {row.key for row in probes.read(path)[0]} if data else set[str]()
    new: list[bytes] = []
    for row in rows:
        key = _key(row)
        if key not in known:
            known.add(key)
            new.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    head = data if not data or data.endswith(b"\n") else data + b"\n"
    return path, head + b"".join(new), mode, Added(path, len(new), len(rows) - len(new))


def _key(row: Mapping[str, Any]) -> str:
    return probes.key_of(row.get("messages") or [{"role": "user", "content": row["prompt"]}])
