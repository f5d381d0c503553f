"""A version that another home made, taken into this one: same base, same bytes, and nothing published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from daemon.compare import touched
from daemon.exporting import MANIFEST, MANIFEST_FORMAT, MANIFEST_VERSION, OVERLAY, manifest, write_overlay
from daemon.views import plain
from state import durable, overlay
from state.batches import file_sha256
from state.digests import Digests, Kinds
from state.errors import ModelFormatError, NotFoundError, RefusedError, StoreCorruptError
from state.materialize import build_folder
from state.rows import VersionRow
from state.scratch import private_folder
from state.store import Store
from state.tensors import ModelFolder, check_finite, read_object

_AGAIN = "copy the folder again, or export the version again"


@dataclass(frozen=True)
class Import:
    """What became of it."""

    row: VersionRow
    is_new: bool
    """False: a version has these bytes already."""
    source: dict[str, Any]
    """Where it came from, as VERSION.json keeps it."""


class _Share(msgspec.Struct):
    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_samples: int | None = None


class _Axis(msgspec.Struct):
    axis: str
    this: _Share


class _Gate(msgspec.Struct):
    name: str
    verdict: str
    value: float | None = None


class _Ancestor(msgspec.Struct):
    id: str
    came_by: str = ""
    batch: str | None = None
    created: str = ""


class _Version(msgspec.Struct):
    """What is taken over of what the other home says of it; other keys are passed over."""

    id: str
    created: str = ""
    alignd: str = ""
    axes: list[_Axis] = []
    gates: list[_Gate] = []
    lineage: list[_Ancestor] = []


class _Overlay(msgspec.Struct):
    sha256: str


class _Files(msgspec.Struct):
    files: dict[str, str]


class _Manifest(msgspec.Struct):
    format: str
    format_version: int
    overlay: _Overlay
    base: _Files
    result: _Files
    version: _Version


def bring_in(store: Store, path: Path, ref: str, *, actor: str, now: str) -> Import:
    """Take a version in, every byte of it compared with its digest; it awaits approval.

    Args:
        path: a folder that `export --to overlay` wrote, or another home.
        ref: which version of another home.
    Raises:
        NotFoundError: `path` is neither.
        RefusedError: it was made for another base; names the first file that differs.
        StoreCorruptError: something is not what it should be by its digest.
        ModelFormatError: the manifest is none, or the weights hold NaN or infinity.
    """
    path = Path(path).resolve()
    record: dict[str, Any]
    with private_folder(store.home, "import") as scratch:
        _collect(path, ref, scratch)
        found = _read(scratch / MANIFEST, path)
        _check_base(store, found)
        digests, changed = _build(store, found, scratch, path)
        record = {
            "kind": "import",
            **digests.to_record(),
            "touched": changed,
            "metrics": {},  # measured by others on other prompts: not to be compared with what is measured here
            "imported": _source(found, path),
        }
        known = {row.id for row in store.ledger.versions()}
        row = store.import_version(scratch / "model", overlay=scratch / OVERLAY, record=record, actor=actor, now=now)
    return Import(row, row.id not in known, record["imported"])


def _collect(path: Path, ref: str, scratch: Path) -> None:
    """Put overlay and manifest into the private folder, where nobody changes them any more."""
    if (path / "store").is_dir():
        return _export(path, ref, scratch)
    if not (path / MANIFEST).is_file():
        raise NotFoundError(
            f"{path} is neither a home nor an exported overlay: there is no {MANIFEST} in it",
            "`alignd export REF DIR --to overlay` writes one",
        )
    for name in (MANIFEST, OVERLAY):
        durable.copy_file(path / name, scratch / name)
    return None


def _export(home: Path, ref: str, scratch: Path) -> None:
    from daemon import provenance
    from daemon.commands_explain import version_view

    with Store.open(home) as other:
        row = other.resolve(ref)
        version = provenance.gather(other, row, version_view(other, row), base_name="base")
        digest, files = write_overlay(other, row, scratch / OVERLAY)
    durable.write_json(scratch / MANIFEST, manifest(version, digest, files))


def _read(path: Path, source: Path) -> _Manifest:
    try:
        found = msgspec.convert(read_object(path), _Manifest)
    except msgspec.ValidationError as err:
        raise ModelFormatError(f"{source / MANIFEST} is no manifest of an overlay: {err}", _AGAIN) from err
    if found.format != MANIFEST_FORMAT or not 1 <= found.format_version <= MANIFEST_VERSION:
        what = f"{found.format} {found.format_version}, expected {MANIFEST_FORMAT} 1 to {MANIFEST_VERSION}"
        raise ModelFormatError(f"{source / MANIFEST} is of format {what}", "export it with the alignd of this home")
    return found


def _check_base(store: Store, found: _Manifest) -> None:
    ours = Digests.of_record(store.version_record(0)).sha256
    for name in sorted(ours.keys() | found.base.files.keys()):
        if ours.get(name) != found.base.files.get(name):
            raise RefusedError(
                f"{found.version.id} was made for another base: {name} is not that of this home's v0",
                "import it into a home whose base has the same files, byte for byte",
            )


def _build(store: Store, found: _Manifest, scratch: Path, source: Path) -> tuple[Digests, dict[str, Any]]:
    """The model folder in `scratch`, its digests, and what it changes of v0."""
    if file_sha256(scratch / OVERLAY) != found.overlay.sha256:
        raise StoreCorruptError(f"{source / OVERLAY} is not what {MANIFEST} says", _AGAIN)
    known, base = Digests.of_record(store.version_record(0)), ModelFolder.open(store.model_path(0))
    kinds = Kinds.of(known, with_sha256=True)
    edits = overlay.read(scratch / OVERLAY)
    try:
        digests = build_folder(base, edits, scratch / "model", known=known, link=True, kinds=kinds)
    except ValueError as err:
        raise StoreCorruptError(f"{source / OVERLAY} does not fit the base: {err}", _AGAIN) from err
    for name in sorted(digests.sha256.keys() | found.result.files.keys()):
        if digests.sha256.get(name) != found.result.files.get(name):
            hint = f"{_AGAIN}; `alignd verify` tells whether v0 is damaged here"
            raise StoreCorruptError(f"{source}: {name} does not come out as {MANIFEST} says", hint)
    check_finite(ModelFolder.open(scratch / "model"))
    return digests, touched(base, {name: len(edits[name].indices) for name in edits})


def _source(found: _Manifest, path: Path) -> dict[str, Any]:
    told = found.version
    return {
        "path": str(path),
        "id": told.id,
        "overlay": found.overlay.sha256,
        "created": told.created,
        "alignd": told.alignd,
        "axes": [{"axis": axis.axis, **plain(msgspec.structs.asdict(axis.this))} for axis in told.axes],
        "gates": [plain(msgspec.structs.asdict(gate)) for gate in told.gates],
        "lineage": [msgspec.structs.asdict(ancestor) for ancestor in told.lineage],
    }
