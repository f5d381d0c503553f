"""Puts a file or folder into the inbox so that nobody ever sees half of it, and follows what becomes of it."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from daemon import exitcodes
from daemon.arrival import MANIFEST, is_ignored
from daemon.command import CommandError, service_pid
from daemon.spool import entry_name, spooled_name
from state import durable, signed
from state.batches import file_sha256, identity, members
from state.errors import RefusedError

if TYPE_CHECKING:
    from daemon.config import InboxSection
    from state.store import Store

# The inbox belongs to a group: droppers and service read and move each other's files.
_FILE_MODE: Final = 0o660
_FOLDER_MODE: Final = 0o770
UNFINISHED: Final = ("queued", "running")
"""States of a batch that has not come to an end."""
_POLL_S: Final = 0.25


@dataclass(frozen=True)
class Submitted:
    """One drop that was put into the inbox, or was not because its content is known."""

    name: str
    batch: str
    """SHA-256 of its content."""
    known_as: str = ""
    """State of the batch with this content that the store had already."""


@dataclass(frozen=True)
class Fate:
    """What became of a drop."""

    state: str
    reason: str = ""

    @property
    def code(self) -> int:
        """The exit code that says so."""
        codes = {"published": exitcodes.OK, "quarantined": exitcodes.DEGRADED, "no_service": exitcodes.NO_SERVICE}
        return codes.get(self.state, exitcodes.TRY_AGAIN if self.state == "timeout" else exitcodes.REFUSED)


def submit(
    source: Path,
    inbox: Path,
    settings: InboxSection,
    *,
    known: Callable[[str], str],
    sign: Callable[[Path], bytes] | None = None,
) -> Submitted:
    """Copy a file or folder into the inbox under a hidden name, flush it, and give it its name by one rename.

    Args:
        known: state of the batch with this sha256, or "" for a new one; a known one is not dropped again.
        sign: makes the signature of the copy, which is put beside it before it gets its name.
    Raises:
        CommandError: it cannot be a drop, as `check` says.
    """
    path = check(source)
    staging = inbox / f".submit-{uuid.uuid4().hex}"
    durable.make_folder(staging, _FOLDER_MODE)
    try:
        staged = _stage(path, staging, with_manifest=settings.completion == "manifest")
        digest = identity(staged)
        state = known(digest)
        if state and not (sign is not None and state == "quarantined"):  # a signature may be what it lacks
            return Submitted(path.name, digest, state)
        target = _free_name(inbox, path.name, digest)
        if sign is not None:
            durable.write_file(target.with_name(target.name + signed.ENDING), sign(staged), _FILE_MODE)
        durable.publish_folder(staged, target) if staged.is_dir() else durable.move(staged, target)
    finally:
        durable.remove_tree(staging)
    if settings.completion == "marker":
        durable.write_file(target.with_name(target.name + ".done"), b"", _FILE_MODE)
    return Submitted(target.name, digest)


def check(source: Path) -> Path:
    """The path of what is to be dropped; nothing is copied yet.

    Raises:
        CommandError: it is missing, empty, has a name that the inbox passes over, or holds what is no regular file.
    """
    path = source.resolve()
    if not path.exists():
        raise CommandError(exitcodes.FAILED, f"{source} does not exist", "name a file or a folder of files")
    if is_ignored(path.name):
        raise CommandError(
            exitcodes.FAILED,
            f"the inbox passes over names like {path.name}",
            "rename it; names like that are of temporary files or signatures",
        )
    try:
        found = members(path)
    except RefusedError as err:  # no gate and no hold refused it: 5 would say that its round was turned down
        raise CommandError(exitcodes.FAILED, str(err), err.hint) from err
    if path.is_dir() and not found:
        raise CommandError(exitcodes.FAILED, f"{source} is an empty folder", "put the batch's files into it")
    return path


def _stage(path: Path, staging: Path, *, with_manifest: bool) -> Path:
    """A copy under `staging`; with a manifest a single file becomes a folder of one."""
    staged = staging / path.name
    if path.is_dir() or with_manifest:
        durable.make_folder(staged, _FOLDER_MODE)
    for name, member in members(path):
        relative = name or (path.name if with_manifest else "")
        copy = staged / relative if relative else staged
        durable.make_folder(copy.parent, _FOLDER_MODE)
        durable.copy_file(member, copy, _FILE_MODE)
    if with_manifest:
        _write_manifest(staged)
    return staged


def _write_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    entries = [
        {"name": name, "size": file.stat().st_size, "sha256": file_sha256(file)} for name, file in members(folder)
    ]
    durable.write_file(folder / MANIFEST, json.dumps({"files": entries}).encode(), _FILE_MODE)


def _free_name(inbox: Path, name: str, digest: str) -> Path:
    if not (inbox / name).exists():
        return inbox / name
    stem, dot, ending = name.partition(".")
    other = inbox / f"{stem}-{digest[:8]}{dot}{ending}"
    if other.exists():
        raise CommandError(exitcodes.FAILED, f"{other} is in the inbox already", "it is the same content; wait for it")
    return other


def follow(
    store: Store,
    drop: Submitted,
    inbox: Path,
    *,
    timeout_s: float | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Fate:
    """What became of a drop, once it is known: its batch's end, or why it does not come to one."""
    deadline = None if timeout_s is None else clock() + timeout_s
    while True:
        fate = _fate(store, drop, is_claimed=_is_claimed(store, drop, inbox))
        if fate is not None:
            return fate
        if deadline is not None and clock() >= deadline:
            return Fate("timeout", f"not finished after {timeout_s:g} s; it goes on")
        sleep(_POLL_S)


def _is_claimed(store: Store, drop: Submitted, inbox: Path) -> bool:
    """Whether the drop has left the inbox and the spool; the state of its batch may be that of an earlier one until then."""
    is_there = os.path.lexists(inbox / drop.name)  # first: it goes from here to there
    name = spooled_name(entry_name(drop.name))  # long ones are cut there
    return not is_there and name not in (spooled_name(entry.name) for entry in store.spool.iterdir())


def _fate(store: Store, drop: Submitted, *, is_claimed: bool) -> Fate | None:
    running = service_pid(store) is not None  # asked first: a service ends its batches before it goes
    row = store.ledger.batch(drop.batch)
    if row is not None and not drop.known_as and (not is_claimed or store.is_gone(row)):
        row = None  # of an earlier drop
    if row is not None and row.state not in UNFINISHED:
        return Fate(row.state, row.reason)
    for entry in store.quarantined():
        if row is None and entry.batch is None and entry.name == drop.name:
            return Fate("quarantined", entry.reason)
    person = waits_for(store) if row is None or row.state == "queued" else ""
    if person:
        return Fate("held_back", person)
    return None if running else Fate("no_service", "the batch waits; `alignd run` takes it")


def waits_for(store: Store) -> str:
    """The person that queued batches wait for; empty when they go on by themselves."""
    for control, words in ((store.held, "held"), (store.paused, "paused")):
        if control is not None:
            return f"{words} ({control.reason}); it goes on after `alignd resume`"
    waiting = store.ledger.versions("awaiting_approval")
    return f"{waiting[0].name} waits for `alignd approve` or `alignd reject`" if waiting else ""


def known_state(store: Store | None) -> Callable[[str], str]:
    """Looks up the state of a batch by its sha256; new is what has lost its files, and all where there is no store yet."""

    def state(sha256: str) -> str:
        row = store.ledger.batch(sha256) if store else None
        return row.state if store and row and not store.is_gone(row) else ""

    return state
