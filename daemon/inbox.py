"""The watched folder: which drops are complete, and how one is taken out without losing or halving it."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from daemon.arrival import (
    MARKERS,
    UNSEEN,
    is_ignored,
    is_open_for_writing,
    manifest_matches,
    marker_of,
    snapshot,
)
from daemon.config import Config
from daemon.drops import ITS_SIGNATURE, ITS_WRITER, Drop
from daemon.faults import UNFIT, cause, stops_all
from daemon.job import ACTOR
from daemon.log import (
    BATCH_CLAIMED,
    BATCH_DUPLICATED,
    BATCH_QUARANTINED,
    BATCH_RETURNED,
    BATCH_SEEN,
    INBOX_PROBLEM_FOUND,
    INBOX_RECREATED,
)
from daemon.spool import ChangedError, entry_name, spooled_name, take_out
from state import durable, signed
from state.batches import identity
from state.queue import Claim
from state.store import Store
from state.text import printable

_MAX_SIGNATURE_BYTES: Final = 4096

_log = structlog.get_logger()


class Inbox:
    """Finds complete drops and moves them into the store.

    Between any two steps of `claim` a drop is in the inbox or in the spool, whole; `recover` finishes the rest.
    """

    def __init__(self, config: Config, home: Path, store: Store) -> None:
        self._store = store
        self._home = home
        self._known: dict[str, Drop] = {}
        self._reported: dict[str, str] = {}
        self._refused: dict[str, Drop] = {}
        self.num_set_aside = 0
        """Drops that went to quarantine without becoming a batch."""
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Takes its settings from ``config``, also after a reload."""
        self._settings = config.inbox
        self.root = self._home / config.inbox.path

    @property
    def problems(self) -> list[str]:
        """What a person has to mend, as of the latest scan; names, no content."""
        return [f"{drop.label}: {drop.problem}" for drop in self._known.values() if drop.problem]

    @property
    def waiting(self) -> list[Drop]:
        """Drops of the latest scan that are, or will be, claimed."""
        return [drop for drop in self._known.values() if not drop.problem]

    def scan(self, now: datetime) -> list[Drop]:
        """Every drop in the inbox, complete or not, by name; compares each with what the last scan saw.

        Raises:
            OSError: the inbox itself cannot be looked at, or the machine is in trouble.
        """
        self._ensure_root()
        names = {entry.name for entry in os.scandir(self.root)}
        found: dict[str, Drop] = {}
        for name in sorted(names):
            if not is_ignored(name) and not marker_of(name, names):
                drop = self._try_to_look(name, names, now)
                if drop is not None:
                    found[name] = drop
        found |= self._lonely_signatures(names, now)
        self._known = found
        self._report_problems()
        return list(found.values())

    def claim(self, drop: Drop, now: str) -> Claim | None:
        """Takes a complete drop into the store; None when it was put back or set aside.

        Raises:
            OSError: no space, or the disk failed; the drop is still in the inbox or the spool, whole.
        """
        entry = self._store.spool / entry_name(drop.name)
        if drop.signature is not None:
            self._keep_signature(drop.signature, entry.name)
        if not self._try_take_out(drop, entry):
            signed.forget(self._store, entry.name)
            return None
        self._known.pop(drop.name, None)
        if drop.snapshot.is_regular and not self._stood_still(drop, entry):
            self._put_back(drop, entry)
            signed.forget(self._store, entry.name)
            return None
        for sibling in (drop.marker, drop.signature):
            if sibling is not None:
                _remove_marker(sibling)  # while the spool still tells `recover` of it
        return self._register(entry, now)

    def recover(self, now: str) -> list[Claim]:
        """Claims what lies in the spool: drops of an interrupted `claim`, and ones released from quarantine."""
        claims = []
        for entry in sorted(self._store.spool.iterdir()) if self._store.spool.is_dir() else ():
            if entry.name.startswith(durable.TEMPORARY_PREFIX):
                durable.remove_tree(entry)  # a copy that was cut short; its source is still in the inbox
            else:
                self._remove_markers(entry)
                claims.append(self._register(entry, now))
        return [claim for claim in claims if claim is not None]

    def _ensure_root(self) -> None:
        if not self.root.is_dir():
            durable.make_folder(self.root, 0o770)
            _log.warning(INBOX_RECREATED, inbox=str(self.root))

    def _try_to_look(self, name: str, names: set[str], now: datetime) -> Drop | None:
        try:
            return self._look(name, names, now)
        except FileNotFoundError:
            return None  # its owner took it away
        except UNFIT as err:
            if stops_all(err, self.root / name):
                raise
            return Drop(name, self.root / name, UNSEEN, now, problem=f"it cannot be looked at: {cause(err)}")

    def _look(self, name: str, names: set[str], now: datetime) -> Drop:
        path = self.root / name
        seen = snapshot(path)
        before = self._known.get(name)
        if before is None:
            _log.info(BATCH_SEEN, batch_name=printable(name), num_bytes=seen.num_bytes)
        if before is None or before.snapshot != seen or before.since > now:
            drop = Drop(name, path, seen, now)
        else:
            drop = replace(before, seen_times=before.seen_times + 1)
        marker = next((self.root / (name + end) for end in MARKERS if name + end in names), None)
        signature = self.root / (name + signed.ENDING) if name + signed.ENDING in names else None
        still_s = (now - drop.since).total_seconds()
        settled = drop.seen_times > 1 and still_s >= self._settings.settle_s
        drop = replace(drop, marker=marker, signature=signature, problem=self._problem(drop), is_settled=settled)
        return replace(drop, lacks=self._lacks(drop) or self._lacks_signature(drop, still_s))

    def _problem(self, drop: Drop) -> str:
        refused = self._refused.get(drop.name)
        if refused is not None and refused.snapshot == drop.snapshot:
            return refused.problem
        if drop.snapshot.unreadable:
            return f"no permission to read {drop.snapshot.unreadable}; let the service's user read it"
        if drop.snapshot.is_folder and not drop.snapshot.members:
            return "the folder is empty; put files in it or remove it"
        if not os.access(self.root, os.W_OK | os.X_OK):
            return "the service may not move files out of the inbox; give its user write permission"
        if drop.seen_times > 1 and self._settings.completion == "manifest" and not drop.snapshot.is_folder:
            return 'inbox.completion is "manifest": drop a folder with a manifest.json'
        return ""

    def _lacks(self, drop: Drop) -> str:
        if not drop.snapshot.is_regular:
            return ""  # a link or a device never becomes a batch; claiming sets it aside
        if drop.snapshot.partial:
            return f"the end of the copy of {drop.snapshot.partial}"
        if drop.marker is not None:
            return ""
        if self._settings.completion == "marker":
            return f"its marker {drop.label}.done"
        if not drop.is_settled:
            return "to stand still"
        if self._settings.completion == "manifest" and not manifest_matches(drop.path):
            return "a manifest.json that matches"
        is_written = any(map(is_open_for_writing, drop.snapshot.paths(drop.path)))
        return ITS_WRITER if is_written else ""

    def _lacks_signature(self, drop: Drop, still_s: float) -> str:
        """Its signature, for a while; then it is claimed without, and intake quarantines it with the reason."""
        is_wanted = self._settings.require_signature and drop.snapshot.is_regular and not drop.is_signed
        is_waited_for = is_wanted and still_s < max(self._settings.signature_wait_s, self._settings.settle_s)
        return f"{ITS_SIGNATURE} {drop.label}{signed.ENDING}" if is_waited_for else ""

    def _lonely_signatures(self, names: set[str], now: datetime) -> dict[str, Drop]:
        """Those whose drop does not come, or was claimed without them: told, so that a person mends it."""
        found = {}
        for name in sorted(names):
            if not name.endswith(signed.ENDING) or name.startswith(".") or name.removesuffix(signed.ENDING) in names:
                continue
            path = self.root / name
            with contextlib.suppress(OSError):
                age_s = now.timestamp() - path.lstat().st_mtime
                if age_s > self._settings.signature_wait_s:
                    problem = (
                        f"it is a signature, and {printable(name.removesuffix(signed.ENDING))} is not here; drop both"
                    )
                    found[name] = Drop(name, path, UNSEEN, now, problem=problem)
        return found

    def _keep_signature(self, path: Path, entry: str) -> None:
        """Copies it into the store, whatever it is; a link is none, and more than any signature has is cut."""
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                signed.keep(self._store, entry, file.read(_MAX_SIGNATURE_BYTES))
        except UNFIT as err:
            if stops_all(err, path):
                raise

    def _report_problems(self) -> None:
        current = {drop.name: drop.problem for drop in self._known.values() if drop.problem}
        for name, problem in current.items():
            if self._reported.get(name) != problem:
                _log.warning(INBOX_PROBLEM_FOUND, batch_name=printable(name), problem=problem)
        self._reported = current

    def _try_take_out(self, drop: Drop, entry: Path) -> bool:
        try:
            take_out(drop.path, entry, drop.snapshot)
        except (FileNotFoundError, ChangedError):
            return False  # its owner took it away, or still works on it
        except UNFIT as err:
            if stops_all(err, drop.path):
                raise
            problem = f"it cannot be moved out of the inbox: {cause(err)}"
            self._refused[drop.name] = replace(drop, problem=problem)
            self._known[drop.name] = self._refused[drop.name]
            self._report_problems()
            return False
        return True

    def _stood_still(self, drop: Drop, entry: Path) -> bool:
        """Hashing takes time in which a writer that kept its descriptor would show."""
        try:
            before = snapshot(entry)
            was_moved = before.top.inode == drop.snapshot.top.inode  # a copy was compared when it was made
            if was_moved and not before.same_content_as(drop.snapshot):
                return False
            identity(entry)
            return snapshot(entry) == before and not any(map(is_open_for_writing, before.paths(entry)))
        except UNFIT:
            return True  # `_register` finds the same, and does what there is to do

    def _remove_markers(self, entry: Path) -> None:
        """The markers that a claim left behind which died: they were there before, and their drop is not any more."""
        path = self.root / spooled_name(entry.name)
        if os.path.lexists(path):
            return
        for marker in (path.with_name(path.name + end) for end in (*MARKERS, signed.ENDING)):
            if os.path.lexists(marker) and marker.lstat().st_ctime_ns <= entry.lstat().st_ctime_ns:
                _remove_marker(marker)

    def _put_back(self, drop: Drop, entry: Path) -> None:
        target = drop.path
        while os.path.lexists(target):
            target = target.with_name(f"{uuid.uuid4().hex[:8]}-{spooled_name(entry.name)}")
        durable.move(entry, target)
        _log.warning(BATCH_RETURNED, batch_name=drop.label, cause="it changed while it was claimed")

    def _register(self, entry: Path, now: str) -> Claim | None:
        name = spooled_name(entry.name)
        is_signed = signed.came_with(self._store, entry.name)
        try:
            claim = self._store.claim_batch(entry, name=name, actor=ACTOR, now=now)
        except UNFIT as err:
            if stops_all(err, entry):
                raise
            self._set_aside(entry, name, cause(err).replace(printable(entry.name), printable(name)), now)
            return None
        batch = claim.batch
        if is_signed and batch.state == "quarantined" and batch.reason.startswith(signed.NOT_VOUCHED):
            self._store.release(batch.sha256, actor=ACTOR, now=now)  # intake looks whether this one holds
        known_as = {"known_as": claim.batch.name} if claim.is_duplicate else {}
        event = BATCH_DUPLICATED if claim.is_duplicate else BATCH_CLAIMED
        _log.info(event, batch_name=name, batch=claim.batch.sha256, **known_as)
        return claim

    def _set_aside(self, entry: Path, name: str, reason: str, now: str) -> None:
        self._store.set_aside(entry, name=name, reason=reason, actor=ACTOR, now=now)
        self.num_set_aside += 1
        _log.warning(BATCH_QUARANTINED, batch_name=name, reason=reason)


def _remove_marker(marker: Path) -> None:
    with contextlib.suppress(PermissionError):  # then it is told as what lies in the inbox
        if not marker.is_dir():
            durable.remove_tree(marker)
