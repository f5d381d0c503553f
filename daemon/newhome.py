"""A new home: settings, folders, the probes that were given, and a store whose v0 is the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from state import durable

_SERVICE_TOML: Final = """\
# Settings of alignd. What is not here has a default: `alignd config show` prints all of them.
# Paths are relative to this file.

[model]
base = {base}    # imported once, as v0; for another base make another home

[inbox]
settle_s = 5    # a drop is taken once nothing about it has changed for this many seconds

[publish]
approval = {approval}    # true: a version that passed its gates waits for `alignd approve`

[web]
listen = {listen}    # "8420": a page for browsers at http://127.0.0.1:8420/; changing something there needs HOME/web-token
"""
_FOLDERS: Final = {"inbox": 0o770, "probes": 0o755, "quarantine": 0o700}
ROWS: Final = {
    "over_safety": "probes/over_safety.jsonl",
    "utility": "probes/utility.jsonl",
    "retain": "retain.jsonl",
    "harm": "probes/harm.jsonl",
}
"""What rows a home needs or wants -> where they lie in it."""


@dataclass(frozen=True)
class Wishes:
    """What a home is to be like."""

    home: Path
    base: Path
    rows: Mapping[str, Path] = field(default_factory=dict)
    """Files to copy in, by the keys of `ROWS`."""
    approval: bool = False
    listen: str = ""


def make_home(wishes: Wishes, *, actor: str, now: str) -> None:
    """Everything, or nothing when it fails: what was there before is left as it was."""
    from state.store import Store

    home = wishes.home
    first_new = _first_missing(home)
    copies = {home / ROWS[name]: source for name, source in wishes.rows.items()}
    harmful = home / ROWS["harm"]
    made = [home / name for name in (*_FOLDERS, "store", "models", "service.toml")] + list(copies)
    new = [path for path in made if not path.exists()]
    try:
        durable.make_folder(home, 0o755)
        for name, mode in _FOLDERS.items():
            durable.make_folder(home / name, mode)
        for target, source in copies.items():
            durable.write_file(target, source.read_bytes(), 0o600 if target == harmful else 0o644)
        # settings first: when the power fails before the store is there, `alignd run` makes it from them
        durable.write_file(home / "service.toml", _service_toml(wishes).encode(), 0o644)
        Store.create(home, wishes.base, actor=actor, now=now).close()
    except BaseException:
        for path in [first_new] if first_new else new:
            durable.remove_tree(path)
        raise


def _first_missing(path: Path) -> Path | None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    return missing[-1] if missing else None


def nearest_folder(path: Path) -> Path:
    """The folder that is there, of a path and those above it."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _service_toml(wishes: Wishes) -> str:
    shown = wishes.base.relative_to(wishes.home) if wishes.base.is_relative_to(wishes.home) else wishes.base
    return _SERVICE_TOML.format(
        base=json.dumps(str(shown), ensure_ascii=False),
        approval=json.dumps(wishes.approval),
        listen=json.dumps(wishes.listen),
    )
