"""A version on its way out: made beside its place, checked against its record, then there by one rename."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from daemon.rebuilt import model_folder
from daemon.views import View
from state import durable, lock, materialize, overlay
from state.digests import is_of_file
from state.errors import StoreCorruptError
from state.remedy import remedy
from state.rows import VersionRow
from state.scratch import private_folder
from state.store import Store

CARD, BILL = "README.md", "bom.cdx.json"
OVERLAY, MANIFEST, SCRIPT = "overlay.safetensors", "overlay.json", "apply.py"
MANIFEST_FORMAT: Final = "alignd-overlay"
MANIFEST_VERSION: Final = 2
"""In 1 no list of an overlay was packed."""
_PURPOSE: Final = "export"
_STAGING: Final = re.compile(re.escape(f"{durable.TEMPORARY_PREFIX}{_PURPOSE}-") + "[0-9a-f]{16}")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Where to write what becomes `target`, which must be free, when the block ends well; else nothing is left.

    What an export that was killed left beside it is removed first.
    """
    _sweep(target.parent)
    with private_folder(target.parent, _PURPOSE) as scratch:
        staging = scratch / target.name
        yield staging
        _make_ordinary(staging)
        durable.publish_folder(staging, target)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{durable.TEMPORARY_PREFIX}{_PURPOSE}-*"):
        is_ours = _STAGING.fullmatch(path.name) is not None and path.lstat().st_uid == os.geteuid()
        if is_ours and path.is_dir() and not path.is_symlink():
            with lock.taken(path) as is_dead:
                if is_dead:
                    durable.remove_tree(path)


@contextmanager
def checked_model(store: Store, row: VersionRow) -> Iterator[Path]:
    """The version's model folder until the block ends, each file compared with its digest; rebuilt if it was collected.

    Raises:
        StoreCorruptError: names the first file that is not what was written.
    """
    with model_folder(store, row) as folder:
        for name, digest in store.version_record(row.id)["files"].items():
            _check(store, folder / name, folder / name, digest)
        yield folder


def write_model(store: Store, row: VersionRow, staging: Path) -> None:
    """A complete model folder at `staging` (must not exist), every file what the version's record says.

    Raises:
        StoreCorruptError: names the first file that is not.
    """
    with lock.kept(store.model_path(row.id)) as is_there:
        if not is_there:
            materialize.rebuild(store, row.id, staging)
            return
        for name, digest in store.version_record(row.id)["files"].items():
            source, copy = store.model_path(row.id) / name, staging / name
            durable.make_folder(copy.parent, 0o755)
            durable.copy_file(source, copy, 0o644)
            _check(store, source, copy, digest)


def write_overlay(store: Store, row: VersionRow, path: Path) -> tuple[str, dict[str, str]]:
    """What the version changes of v0, in one file: equal versions give equal bytes.

    Returns:
        Its SHA-256, and that of each file of the version as it was published.

    Raises:
        StoreCorruptError: with it, v0 would not become what was published.
    """
    edits, files = materialize.edits_on_base(store, row.id)
    with overlay.OverlayWriter(path, {"parent": "v0"}) as out:
        for name in edits:
            edit = edits[name]
            if len(edit.indices):
                out.add(name, edit)
    return out.digest, files


def manifest(version: View, digest: str, files: dict[str, str]) -> dict[str, Any]:
    """What stands beside an overlay: the base it is for, what comes out, and what is told of the version.

    Args:
        version: as `provenance.gather` gives it.
        digest: SHA-256 of the overlay.
        files: SHA-256 of each file of the version.
    """
    told = {key: value for key, value in version.items() if key != "base"}
    return {
        "format": MANIFEST_FORMAT,
        "format_version": MANIFEST_VERSION,
        "overlay": {"file": OVERLAY, "sha256": digest},
        "base": version["base"],
        "result": {"files": files},
        "version": told,
    }


def _check(store: Store, source: Path, copy: Path, digest: str) -> None:
    if not copy.is_file() or not is_of_file(copy, digest):
        raise StoreCorruptError(f"{source} is not what was written", remedy(store, source))


def _make_ordinary(folder: Path) -> None:
    """Give an exported folder ordinary permissions."""
    durable.set_mode(folder, 0o755)
    for path in folder.rglob("*"):
        durable.set_mode(path, 0o755 if path.is_dir() else 0o644)


def set_aside(path: Path) -> None:
    """Call what the base brought under the name of one of our papers `README.base.md`, or likewise."""
    if path.exists():
        aside = path
        while aside.exists():
            stem, _, ending = aside.name.partition(".")
            aside = aside.with_name(f"{stem}.base.{ending}")
        durable.move(path, aside)


def folder_bytes(folder: Path) -> int:
    """Size of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
