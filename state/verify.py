"""Is everything on disk what was written?"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from state import audit, batches, digests, durable, lock, materialize, signed
from state.errors import ModelFormatError, RefusedError, StoreCorruptError
from state.quarantine import DROPPED
from state.remedy import remedy
from state.rows import BatchRow, VersionRow
from state.store import Store
from state.tensors import ModelFolder
from state.verified import Finding

ALWAYS = ("ledger", "signatures", "audit", "current")
"""Parts that change all the time, and are small: looked at in every check."""
NEEDED_STATES = ("queued", "running", "quarantined")
"""Of batches whose files must be there also when no version was made with them."""


def verify(
    store: Store,
    *,
    deep: bool = False,
    passed_over: Collection[str] = (),
    seen: Callable[[str, list[Finding]], None] = lambda part, findings: None,
) -> list[Finding]:
    """Everything wrong with the store; empty when all is well.

    Checks the ledger (SQLite's own check and a seal per row), VERSION.json, overlays, patches, batches, model
    folders by the digests of their files, the audit chain, and the `current` link. With `deep` each tensor's digest
    too; a damaged shard is always looked at by tensor, so that the finding names it.

    Args:
        passed_over: parts that are left out; see `parts`.
        seen: told of each part when it was checked, with what is wrong with it.
    """
    everything = []
    for part, check in _checks(store, deep=deep).items():
        if part not in passed_over:
            findings = [replace(found, remedy=found.remedy or remedy(store, found.path)) for found in check()]
            seen(part, findings)
            everything += findings
    return everything


def check_version(store: Store, row: VersionRow) -> None:
    """Reads every file of one version, as `verify` does; its model folder need not be there.

    Raises:
        StoreCorruptError: something is not what was written; says what, and how it is mended.
    """
    found = _version(store, row, deep=False)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise StoreCorruptError(f"{found[0].path}: {found[0].what}{more}", remedy(store, found[0].path))


def parts(store: Store) -> list[str]:
    """What there is to check, by name, in order: the ledger, each version, each batch, the audit file, `current`."""
    return list(_checks(store, deep=False))


def drawn(store: Store, share: float, draw: random.Random) -> list[str]:
    """The parts that a sample leaves out: of the versions, and of the batches, all but this share, at least one of each.

    Args:
        share: in (0, 1].
    """
    left_out = []
    for names in ([row.name for row in store.ledger.versions()], [_name(row) for row in store.ledger.batches()]):
        left_out += draw.sample(names, len(names) - math.ceil(share * len(names)))
    return left_out


def _checks(store: Store, *, deep: bool) -> dict[str, Callable[[], list[Finding]]]:
    checks: dict[str, Callable[[], list[Finding]]] = {
        "ledger": lambda: [Finding(store.ledger_path, what) for what in store.ledger.damage()]
    }
    for row in store.ledger.versions():
        checks[row.name] = partial(_version, store, row, deep=deep)
    for batch in store.ledger.batches():
        checks[_name(batch)] = partial(_at_rest, store, partial(_batch, store, batch.sha256))
    checks["signatures"] = lambda: [Finding(path, "is not the signature that came") for path in signed.damaged(store)]
    checks["audit"] = lambda: [Finding(store.audit_path, what) for what in audit.verify(store)]
    checks["current"] = partial(_at_rest, store, partial(_link, store))
    return checks


def _name(batch: BatchRow) -> str:
    return f"batch {batch.sha256}"


def _at_rest(store: Store, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds also while nobody changes the store: a service, or a command, may be at work."""
    try:
        found = check()
    except FileNotFoundError:  # moved or removed under its hands
        found = None
    if found is not None and (not found or durable.is_read_only(store.root)):  # nobody changes that under its hands
        return found
    with store._changing("verify"):
        return check()


def drill(store: Store, versions: Iterable[int], scratch: Path) -> list[Finding]:
    """Rebuild versions from base and overlays under `scratch` (emptied again) and compare bit for bit with the record."""
    durable.make_folder(scratch)
    with lock.taken(scratch):  # no sweep takes it away meanwhile
        return [finding for number in versions for finding in _rehearse(store, number, scratch / f"drill-v{number}")]


def _rehearse(store: Store, number: int, staging: Path) -> list[Finding]:
    durable.remove_tree(staging)
    try:
        materialize.rebuild(store, number, staging)
    except (StoreCorruptError, ModelFormatError, ValueError, OSError) as err:
        return [Finding(store.version_path(number), f"cannot be rebuilt: {err}", getattr(err, "hint", ""))]
    finally:
        durable.remove_tree(staging)
    return []


def _version(store: Store, row: VersionRow, *, deep: bool) -> list[Finding]:
    return list(_wrong_with_version(store, row, deep=deep))


def _wrong_with_version(store: Store, row: VersionRow, *, deep: bool) -> Iterator[Finding]:
    try:
        record = store.version_record(row.id)
    except StoreCorruptError as err:
        yield Finding(store.record_path(row.id), str(err))
        return
    if row.overlay is not None:
        yield from _digest(store.overlay_path(row.id), row.overlay)
    if row.patch is not None:
        yield from _digest(store.patch_path(row.patch), row.patch)
    with lock.kept(store.model_path(row.id)) as is_there:  # garbage collection passes it over meanwhile
        if is_there:
            yield from _model(store.model_path(row.id), record, deep=deep)
        elif row.id == 0:
            yield Finding(store.model_path(0), "the base is missing: no other version can be rebuilt")


def _digest(path: Path, expected: str) -> Iterator[Finding]:
    if not path.exists():
        yield Finding(path, "is missing")
    elif not digests.is_of_file(path, expected):
        yield Finding(path, "is not what was written")


def _model(folder: Path, record: dict[str, Any], *, deep: bool) -> Iterator[Finding]:
    damaged = False
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(here | record["files"].keys()):
        if name not in record["files"]:
            yield Finding(folder / name, "does not belong to the version", f"remove {folder / name}")
            continue
        for finding in _digest(folder / name, record["files"][name]):
            damaged = damaged or name.endswith(".safetensors")
            yield finding
    if damaged or deep:
        yield from _tensors(folder, record)


def _tensors(folder: Path, record: dict[str, Any]) -> Iterator[Finding]:
    try:
        model = ModelFolder.open(folder)
    except ModelFormatError as err:
        yield Finding(folder, str(err))
        return
    for name in model.tensors:
        if not digests.is_of_bytes(model.read_raw(name).view("u1"), record["tensors"].get(name, "")):
            yield Finding(model.files[model.tensors[name].file], f"tensor {name} is not what was written")


def _batch(store: Store, sha256: str) -> list[Finding]:
    row, path = store.ledger.batch(sha256), store.batch_content(sha256)
    assert row is not None  # a batch of the ledger stays there
    if row.reason.startswith(DROPPED):
        return []  # its files were deleted; a fault may have left some of them to the next start
    if not path.exists():
        is_needed = row.state in NEEDED_STATES or any(made.batch == sha256 for made in store.ledger.versions())
        return [Finding(path, f"batch {row.name} is missing")] if is_needed else []
    try:
        is_same = batches.identity(path) == sha256
    except RefusedError as err:
        return [Finding(path, str(err))]
    return [] if is_same else [Finding(path, f"batch {row.name} is not what was received")]


def _link(store: Store) -> list[Finding]:
    link, expected = store.current_link, store.current().name
    if not link.is_symlink():
        return [Finding(link, f"is no link; expected one to {expected}")]
    target = str(link.readlink())
    if target != expected:
        return [Finding(link, f"leads to {target}; the ledger says {expected}")]
    folder = store.model_path(store.current().id)
    return [] if link.is_dir() else [Finding(link, f"{expected} has no model folder", remedy(store, folder))]
