"""Versions come in: commit; and get names: pins and tags."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from state import durable
from state.batches import file_sha256
from state.errors import NotFoundError, RefusedError, StoreError
from state.rows import RoundRow, TagRow, VersionRow
from state.switch import Switch

RESERVED_TAG = re.compile(r"current|previous|candidate|base|v[0-9]+")
"""What a selector means something else by."""
TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
NEEDED = ("files", "tensors", "touched", "metrics")


class Versions(Switch):
    """Immutable versions and the names they carry."""

    def commit_version(
        self,
        round_id: str,
        staging_model: Path,
        *,
        overlay: Path,
        patch: Path | None = None,
        record: dict[str, Any],
        state: Literal["awaiting_approval", "published"],
        now: str,
        actor: str = "service",
    ) -> VersionRow:
        """Turn a finished candidate into a version; with `published` it becomes current in the same transaction.

        Safe to repeat after a crash with the same arguments, also when `staging_model` was already moved.

        Args:
            staging_model: complete model folder (`build_folder`) on the file system of `models`; moved away.
            overlay: overlay file against the round's parent, on the same file system.
            patch: the patch file that `record` names, likewise; moved away. None where the store has it or there is none.
            record: becomes VERSION.json. Must hold `files` and `tensors` (digests), `touched` (`num_entries`,
                `fraction`, `per_tensor`), `metrics`; may hold `patch` (digest), `gates`, `lineage`, `config`, `seeds`, …
                `id, parent, batch, round, created_at, overlay` are filled in here.
        Raises:
            RefusedError: (published only) held, or the round's parent is no longer current. Nothing was changed.
        """
        _check_record(record)
        with self._changing(f"commit {round_id}"):
            round_ = self.round(round_id)
            if round_.version is not None:
                self._follow()  # a fault may have kept the link from it
                return self.version(round_.version)
            if round_.state != "running":
                raise RefusedError(f"round {round_id} is {round_.state}, not running")
            if state == "published":
                self.check_publishable(round_.parent)
            if patch is not None:
                self._place_patch(patch, record["patch"])
            row = self._place(round_, staging_model, overlay, record=record, now=now)
            return self._enroll(row, round_, publish=state == "published", actor=actor, now=now)

    def import_version(
        self, staging_model: Path, *, overlay: Path, record: dict[str, Any], actor: str, now: str
    ) -> VersionRow:
        """Take in a version that another home made; it stands on v0 and awaits approval, and nothing is published.

        Safe to repeat: where a version has these bytes already, that one is returned and nothing is changed.

        Args:
            staging_model: complete model folder on the file system of `models`; moved away.
            overlay: overlay file against v0, on the same file system.
            record: as for `commit_version`, with `imported`: where it came from.
        """
        _check_record(record)
        with self._changing("import"):
            for row in self.ledger.versions():
                if self.version_record(row.id)["files"] == record["files"]:
                    return row
            number = self.ledger.next_number(VersionRow)
            origin = {"parent": 0, "batch": None, "round": None}
            whole = _identified(record, number, origin, overlay=overlay, now=now)
            self._place_files(number, staging_model, overlay, whole)
            row = self._row_of(number)
            source = {key: record["imported"][key] for key in ("path", "id", "overlay")}
            details = {
                **source,
                "record": row.record,
                "published": False,
                "reason": f"{source['id']} from {source['path']}",
            }
            with self._transaction("version_imported", row.name, actor=actor, now=now, details=details):
                self.ledger.save(row)
        return row

    def pin(self, ref: str, *, actor: str, now: str) -> VersionRow:
        """Keep a version's model folder for good."""
        return self._set_pinned(ref, True, actor=actor, now=now)

    def unpin(self, ref: str, *, actor: str, now: str) -> VersionRow:
        """Let garbage collection take a version's model folder again."""
        return self._set_pinned(ref, False, actor=actor, now=now)

    def tag(self, name: str, ref: str, *, actor: str, now: str) -> VersionRow:
        """Give a version a name (`@name`); a name that is taken moves.

        Raises:
            ValueError: not a name: a letter, then letters, digits, `.`, `_` or `-`, at most 64 in all; or a selector.
        """
        if TAG.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no tag: a letter, then letters, digits, '.', '_' or '-', at most 64 in all")
        if RESERVED_TAG.fullmatch(name) is not None:
            words = "any name but current, previous, candidate, base, v and a number"
            raise ValueError(f"{name!r} is no tag: as a selector it means another version; allowed is {words}")
        with self._changing(f"tag {name}"):
            row = self.resolve(ref)
            with self._transaction("tagged", row.name, actor=actor, now=now, details={"tag": name}):
                self.ledger.save(TagRow(name, row.id, now))
        return row

    def untag(self, name: str, *, actor: str, now: str) -> None:
        """Take a name away.

        Raises:
            NotFoundError: there is no such tag.
        """
        with self._changing(f"untag {name}"):
            tag = self.ledger.tag(name)
            if tag is None:
                known = ", ".join(row.name for row in self.ledger.tags()) or "none"
                raise NotFoundError(f"there is no tag {name!r}", f"known tags: {known}")
            with self._transaction("untagged", f"v{tag.version}", actor=actor, now=now, details={"tag": name}):
                self.ledger.remove(TagRow, name)

    def _set_pinned(self, ref: str, pinned: bool, *, actor: str, now: str) -> VersionRow:
        with self._changing(f"pin {ref}"):
            row = replace(self.resolve(ref), pinned=pinned)
            with self._transaction("pinned" if pinned else "unpinned", row.name, actor=actor, now=now):
                return self.ledger.save(row)

    def is_placed(self, round_id: str) -> bool:
        """True when a commit of this round died after it had moved everything: committing again adopts it."""
        return self._is_placed(self.ledger.next_number(VersionRow), round_id)

    def _place_patch(self, patch: Path, digest: str) -> None:
        """Put the patch of a candidate among the store's; until a version refers to it, `gc` takes it again."""
        if not self.patch_path(digest).exists():
            if not patch.exists():
                raise StoreError(f"{patch}: the patch of the candidate is gone", "run the round again")
            durable.move(patch, self.patch_path(digest))

    def _place(
        self, round_: RoundRow, staging_model: Path, overlay: Path, *, record: dict[str, Any], now: str
    ) -> VersionRow:
        """Put record, overlay and model under the next number; nothing refers to them yet."""
        number = self.ledger.next_number(VersionRow)
        if staging_model.exists():
            origin = {"parent": round_.parent, "batch": round_.batch, "round": round_.id}
            whole = _identified(record, number, origin, overlay=overlay, now=now)
            self._place_files(number, staging_model, overlay, whole)
        elif not self._is_placed(number, round_.id):
            raise StoreError(f"{staging_model}: the candidate of {round_.id} is gone", "run the round again")
        return self._row_of(number)

    def _place_files(self, number: int, staging_model: Path, overlay: Path, record: dict[str, Any]) -> None:
        missing = [name for name in record["files"] if not (staging_model / name).is_file()]
        if missing:
            raise StoreError(f"{staging_model}: incomplete, lacks {missing[0]}", "run the round again")
        staging = self.versions / f"{durable.TEMPORARY_PREFIX}v{number}"
        for stale in (staging, self.version_path(number), self.model_path(number)):
            durable.remove_tree(stale)  # left by a commit that died before its row
        durable.make_folder(staging)
        durable.set_mode(overlay, 0o444)
        durable.link_file(overlay, staging / "overlay.safetensors")
        durable.write_json(staging / "VERSION.json", record, 0o444)
        durable.publish_folder(staging, self.version_path(number))
        durable.publish_folder(staging_model, self.model_path(number))

    def _is_placed(self, number: int, round_id: str) -> bool:
        """True when an earlier attempt of the same round got as far as moving everything."""
        path = self.record_path(number)
        return (
            path.exists() and self.is_materialized(number) and bool(json.loads(path.read_bytes())["round"] == round_id)
        )

    def _row_of(self, number: int) -> VersionRow:
        record = json.loads(self.record_path(number).read_bytes())
        return VersionRow(
            id=number,
            parent=record["parent"],
            state="awaiting_approval",
            batch=record["batch"],
            round=record["round"],
            created_at=record["created_at"],
            metrics=record["metrics"],
            touched_fraction=float(record["touched"]["fraction"]),
            overlay=record["overlay"],
            patch=record.get("patch"),
            record=file_sha256(self.record_path(number)),
        )

    def _enroll(self, row: VersionRow, round_: RoundRow, *, publish: bool, actor: str, now: str) -> VersionRow:
        details = {"round": round_.id, "batch": round_.batch, "published": publish, "record": row.record}
        with self._transaction("version_committed", row.name, actor=actor, now=now, details=details):
            self.ledger.save(row)
            self.ledger.save(replace(round_, state="awaiting_approval", version=row.id, ended_at=now))
            self._note_batch(row.batch, "awaiting_approval", "")
            return self._enter(row, "publish", actor=actor, now=now, reason="") if publish else row


def _identified(
    record: dict[str, Any], number: int, origin: dict[str, Any], *, overlay: Path, now: str
) -> dict[str, Any]:
    """A version's record with what says which version it is."""
    return {**record, **origin, "format": 1, "id": number, "created_at": now, "overlay": file_sha256(overlay)}


def _check_record(record: dict[str, Any]) -> None:
    missing = [key for key in NEEDED if key not in record]
    if missing or "fraction" not in record["touched"]:
        raise ValueError(f"record of a version lacks {', '.join(missing) or 'touched.fraction'}")
