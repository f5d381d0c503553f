"""The disk fails at any single change of any operation: nothing is harmed, and the repeat succeeds."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from state import durable, filesystem, gc, patchfile
from state.errors import StoreMissingError
from state.store import Store
from state.verify import verify
from tests.disks import DyingFileSystem, in_memory
from tests.state_world import NOW, begin, content, drop, make_store, make_version, prepare, take_in, write_model

WHO: Any = {"actor": "tester", "now": NOW}
MOST_CHANGES = 1000
EVERY_CHANGE = "ALIGND_EVERY_CHANGE" in os.environ
"""As `make torture` has it: each fault at each change."""


@dataclass(frozen=True)
class Fault:
    """What fails, and where that is tried."""

    code: int
    once: bool
    """False: from there on, so that cleaning up fails as well."""
    start: int = 0
    stride: int = 1

    def changes(self) -> range:
        """At which changes of an operation, of as many as any can have."""
        return range(MOST_CHANGES) if EVERY_CHANGE else range(self.start, MOST_CHANGES, self.stride)


FAULTS = (Fault(errno.ENOSPC, True), Fault(errno.EIO, True, 1, 3),
          Fault(errno.EROFS, False, 0, 2), Fault(errno.EACCES, False, 1, 2))  # fmt: skip
"""At each change one that comes once and one that stays: the code seldom asks which error it was."""
BY_FAULT = pytest.mark.parametrize("fault", FAULTS, ids=[errno.errorcode[fault.code] for fault in FAULTS])


def _claim(store: Store, name: str) -> str:
    """A batch of this name in the store; its sha256."""
    return store.claim_batch(store.spool / f"{name}.drop", name=name, **WHO).batch.sha256


def _sha256(store: Store) -> str:
    return store.find_batch("fresh").sha256


def _furnish(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    make_version(store, 3, "awaiting_approval")
    drop(store, "zorp\n", "fresh")


def _make_queued(store: Store) -> None:
    _furnish(store)
    _claim(store, "fresh")


def _make_quarantined(store: Store) -> None:
    _make_queued(store)
    store.quarantine_batch(_sha256(store), reason="bad", **WHO)


def _make_set_aside(store: Store) -> None:
    _furnish(store)
    store.set_aside(store.spool / "fresh.drop", name="fresh", reason="bad", **WHO)


def _make_folder(store: Store) -> None:
    make_version(store, 1)
    (store.spool / "fresh.drop" / "deep").mkdir(parents=True)
    for name in ("a.jsonl", "deep/b.jsonl"):
        (store.spool / "fresh.drop" / name).write_text(f"zorp {name}\n")


def _make_known(store: Store) -> None:
    _make_queued(store)
    drop(store, "zorp\n", "again")


def _make_ready(store: Store) -> None:
    make_version(store, 1)
    round_id = begin(store, 2)
    prepare(store, round_id, 2)
    _save_patch(store, folder=store.scratch(round_id))


def _save_patch(store: Store, folder: Path | None = None) -> str:
    return patchfile.save(store, {"w": (np.array([1]), np.array([0.5], np.float32))}, {"round": "r1"}, folder=folder)


def _make_collected(store: Store) -> None:
    _furnish(store)
    shutil.rmtree(store.model_path(1))


def _make_litter(store: Store) -> None:
    for seed in (1, 2, 3):
        make_version(store, seed)
    _save_patch(store)


def _commit(record: dict[str, Any], store: Store) -> None:
    scratch = store.scratch("r000002")
    digest = next((path.stem for path in scratch.glob("*.safetensors") if path.stem != "overlay"), None)
    digest = digest or next(path.stem for path in store.patches.iterdir())
    store.commit_version(
        "r000002",
        scratch / "model",
        overlay=scratch / "overlay.safetensors",
        patch=scratch / f"{digest}.safetensors",
        record={**record, "patch": digest},
        state="published",
        now=NOW,
    )


def _is_queued(store: Store) -> bool:
    found = store.ledger.batches_named("fresh")
    return bool(found) and found[0].state == "queued" and store.batch_path(found[0].sha256).exists()


def _is_claimed(store: Store) -> bool:
    return _is_queued(store) and not (store.spool / "fresh.drop").exists()


def _is_quarantined(store: Store) -> bool:
    return _sha256_state(store) == "quarantined" and not store.batch_path(_sha256(store)).exists()


def _sha256_state(store: Store) -> str:
    return str(store.find_batch("fresh").state)


@dataclass(frozen=True)
class Operation:
    """One operation on a home that something was done to before."""

    before: Callable[[Store], None]
    act: Callable[[Store], object]
    is_done: Callable[[Store], bool]
    least: int
    """Changes of the disk that it makes at least."""


OPERATIONS = {
    "claim": Operation(_furnish, lambda store: _claim(store, "fresh"), _is_claimed, 8),
    "claim_folder": Operation(_make_folder, lambda store: _claim(store, "fresh"), _is_claimed, 12),
    "claim_duplicate": Operation(
        _make_known,
        lambda store: _claim(store, "again"),
        lambda store: len(store.ledger.duplicates()) == 1 and not list(store.spool.iterdir()),
        8,
    ),
    "publish": Operation(
        _furnish, lambda store: store.publish(3, **WHO), lambda store: store.current_link.readlink().name == "v3", 3
    ),
    "rollback": Operation(
        _furnish,
        lambda store: store.rollback(reason="", **WHO),
        lambda store: store.current_link.readlink().name == "v1",
        3,
    ),
    "rollback_to_collected": Operation(
        _make_collected,
        lambda store: store.rollback(reason="", **WHO),
        lambda store: store.current_link.readlink().name == "v1" and store.is_materialized(1),
        20,
    ),
    "gc": Operation(
        _make_litter,
        lambda store: gc.run(store, keep_materialized=1, **WHO),
        lambda store: not store.is_materialized(1) and not list(store.patches.iterdir()),
        8,
    ),
    "quarantine": Operation(
        _make_queued,
        lambda store: store.quarantine_batch(_sha256(store), reason="bad", **WHO),
        _is_quarantined,
        8,
    ),
    "release": Operation(
        _make_quarantined, lambda store: store.release(_sha256(store), **WHO), lambda store: not store.quarantined(), 5
    ),
    "delete": Operation(
        _make_quarantined,
        lambda store: store.drop(_sha256(store), **WHO),
        lambda store: not content(store.quarantine),
        3,
    ),
    "set_aside": Operation(
        _furnish,
        lambda store: store.set_aside(store.spool / "fresh.drop", name="fresh", reason="bad", **WHO),
        lambda store: bool(store.quarantined()) and not (store.spool / "fresh.drop").exists(),
        8,
    ),
    "import": Operation(
        _furnish,
        lambda store: take_in(store, 9),
        lambda store: store.ledger.version(4) is not None and store.is_materialized(4),
        20,
    ),
    "release_drop": Operation(
        _make_set_aside, lambda store: store.release("fresh", **WHO), lambda store: not store.quarantined(), 5
    ),
}


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory: the ledger really flushes, hundreds of times."""
    with in_memory(tmp_path) as folder:
        yield folder


def _fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _sweep(home: Path, work: Path, operation: Operation, fault: Fault) -> int:
    """The operation on a copy of a home, one of its changes failing, then another; each time repeated. How many it makes."""
    for num_calls in fault.changes():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(home, work, symlinks=True)
        at = f"{os.strerror(fault.code)} at change {num_calls}"
        fs = DyingFileSystem(num_calls, partial(_fail, fault.code), once=fault.once)
        with Store.open(work) as store:
            published = in_service(store)
            try:
                with filesystem.use(fs):
                    operation.act(store)
            except OSError as err:
                assert err.errno == fault.code, at
            assert store.is_materialized(int(store.current_link.readlink().name[1:])), at
            if not operation.is_done(store):
                operation.act(store)
            store.catch_up()  # as the service does all the time
            assert operation.is_done(store), at
            check(store, published, at)
            store.recover(NOW)
            assert operation.is_done(store), at
            check(store, published, at)
            assert list(work.rglob(f"{durable.TEMPORARY_PREFIX}*")) == [], at
        if fs.left >= 0:
            return num_calls - fs.left
    raise AssertionError("never finished")


def in_service(store: Store) -> dict[int, dict[str, bytes]]:
    """The files of the current version and of the one before it."""
    rows = (row for row in (store.current(), store.previous()) if row is not None and store.is_materialized(row.id))
    return {row.id: content(store.model_path(row.id)) for row in rows}


def check(store: Store, published: dict[int, dict[str, bytes]], at: str) -> None:
    """Nothing is damaged, and what was in service is what it was."""
    assert verify(store, deep=True) == [], at
    for number, files in published.items():
        assert content(store.model_path(number)) == files, at


@BY_FAULT
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_at_any_change_harms_nothing_and_the_repeat_succeeds(tmp_path: Path, name: str, fault: Fault) -> None:
    operation = OPERATIONS[name]
    with make_store(tmp_path) as store:
        operation.before(store)
    assert _sweep(tmp_path / "home", tmp_path / "work", operation, fault) >= operation.least


@BY_FAULT
def test_a_fault_at_any_change_of_a_commit_harms_nothing_and_the_repeat_succeeds(tmp_path: Path, fault: Fault) -> None:
    with make_store(tmp_path) as store:
        make_version(store, 1)
        record = prepare(store, begin(store, 2), 2)["record"]
        _save_patch(store, store.scratch("r000002"))
    operation = Operation(
        _make_ready,
        partial(_commit, record),
        lambda store: store.current_link.readlink().name == "v2" and len(list(store.patches.iterdir())) == 1,
        20,
    )
    assert _sweep(tmp_path / "home", tmp_path / "work", operation, fault) >= operation.least


@BY_FAULT
def test_a_fault_at_any_change_of_a_creation_leaves_no_half_store_and_the_repeat_succeeds(
    tmp_path: Path, fault: Fault
) -> None:
    base, home = write_model(tmp_path / "base"), tmp_path / "home"
    source = content(base)
    for num_calls in fault.changes():
        shutil.rmtree(home, ignore_errors=True)
        fs = DyingFileSystem(num_calls, partial(_fail, fault.code), once=fault.once)
        try:
            with filesystem.use(fs):
                Store.create(home, base, **WHO).close()
        except OSError as err:
            assert err.errno == fault.code
            try:
                Store.open(home).close()
            except StoreMissingError:
                Store.create(home, base, **WHO).close()
        with Store.open(home) as store:
            store.recover(NOW)
            assert verify(store, deep=True) == [], f"{os.strerror(fault.code)} at change {num_calls}"
            assert len(store.ledger.versions()) == 1 and content(base) == source == content(store.model_path(0))
        if fs.left >= 0:
            break
    assert num_calls - fs.left > 30
