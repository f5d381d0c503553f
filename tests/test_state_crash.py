"""Killed before any single change of the disk: after a restart all is old or new, never half."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from state import audit, durable, filesystem, gc, lock, patchfile
from state.errors import StoreMissingError
from state.store import Store
from state.verify import verify
from tests.disks import DyingFileSystem, in_memory
from tests.state_world import NOW, begin, drop, make_store, make_version, prepare, rebuilt, take_in, write_model

WHO: Any = {"actor": "tester", "now": NOW}


class Killed(BaseException):
    """The process is gone."""


def sweep(home: Path, scratch: Path, act: Callable[[Store], object], check: Callable[[Store, bool], None]) -> int:
    """Run `act` on a copy of a home, killed at the first change, the second…; recover and check each. How many."""
    for num_calls in range(1000):
        work = scratch / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(home, work, symlinks=True)
        fs = DyingFileSystem(num_calls, Killed)
        finished = False
        with Store.open(work) as store, filesystem.use(fs):
            try:
                act(store)
                finished = True
            except Killed:
                pass
        with Store.open(work) as store:
            store.recover(NOW)
            assert verify(store, deep=True) == [], f"killed at change {num_calls}"
            leftovers = list(work.rglob(f"{durable.TEMPORARY_PREFIX}*"))
            assert leftovers == [], f"killed at change {num_calls}"
            check(store, finished)
        if finished:
            return num_calls
    raise AssertionError("never finished")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory: the ledger really flushes, hundreds of times."""
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with v1 published, v2 awaiting approval, and a batch waiting in the spool."""
    with make_store(tmp_path) as store:
        make_version(store, 1)
        make_version(store, 2, "awaiting_approval")
        drop(store, "zorp\n", "fresh")
        return store.home


def test_create_killed_anywhere_leaves_no_store_or_a_whole_one(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    home = tmp_path / "home"
    for num_calls in range(1000):
        shutil.rmtree(home, ignore_errors=True)
        fs = DyingFileSystem(num_calls, Killed)
        try:
            with filesystem.use(fs):
                Store.create(home, base, **WHO).close()
        except Killed:
            try:
                Store.open(home).close()
            except StoreMissingError:
                Store.create(home, base, **WHO).close()
        with Store.open(home) as store:
            store.recover(NOW)
            assert verify(store, deep=True) == [], f"killed at change {num_calls}"
            assert len(store.ledger.versions()) == 1
        if fs.left >= 0:
            break
    assert num_calls > 30


def test_claim_killed_anywhere_keeps_the_drop_once(home: Path, tmp_path: Path) -> None:
    def claim(store: Store) -> None:
        store.claim_batch(store.spool / "fresh.drop", name="fresh", **WHO)

    def check(store: Store, finished: bool) -> None:
        if (store.spool / "fresh.drop").exists():
            assert not finished
            claim(store)
        names = [row.name for row in store.ledger.batches()]
        assert names.count("fresh") == 1 and store.ledger.duplicates() == []
        assert verify(store) == [] and list(store.spool.iterdir()) == []

    assert sweep(home, tmp_path, claim, check) > 8


def test_commit_killed_anywhere_leaves_old_or_new_and_can_be_repeated(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        make_version(store, 1)
        round_id = begin(store, 2)
        record = prepare(store, round_id, 2)["record"]
        record["patch"] = save_patch(store, round_id)
        home = store.home

    def commit(store: Store) -> None:
        scratch = store.scratch(round_id)
        store.commit_version(
            round_id,
            scratch / "model",
            overlay=scratch / "overlay.safetensors",
            patch=scratch / store.patch_path(record["patch"]).name,
            record=record,
            state="published",
            now=NOW,
        )

    def check(store: Store, finished: bool) -> None:
        assert store.current().id == (2 if store.round(round_id).version == 2 else 1)
        assert not finished or store.current().id == 2
        commit(store)
        assert store.current().id == 2 and verify(store, deep=True) == []

    def check_given_up(store: Store, finished: bool) -> None:
        store.end_round(round_id, "superseded", reason="held", now=NOW)
        with lock.hold(store.service_lock, "alignd run"):
            gc.run(store, keep_materialized=3, **WHO)
        kept = [row.patch for row in store.ledger.versions() if row.patch]
        assert [path.stem for path in store.patches.iterdir()] == kept and len(kept) >= finished
        assert list(store.scratch_root.iterdir()) == [] and verify(store) == []

    assert sweep(home, tmp_path, commit, check) > 10
    sweep(home, tmp_path, commit, check_given_up)


def save_patch(store: Store, round_id: str) -> str:
    import numpy as np

    entries = {"w": (np.array([1]), np.array([0.5], np.float32))}
    return patchfile.save(store, entries, {"round": round_id}, folder=store.scratch(round_id))


def test_an_import_killed_anywhere_is_there_whole_or_not_at_all_and_can_be_repeated(home: Path, tmp_path: Path) -> None:
    def check(store: Store, finished: bool) -> None:
        assert len(store.ledger.versions()) in ((4,) if finished else (3, 4))
        row = take_in(store, 9)
        assert (row.name, row.state, store.current().id) == ("v3", "awaiting_approval", 1)
        lines = [line.subject for line in audit.read(store) if line.action == "version_imported"]
        assert lines == ["v3"] and verify(store, deep=True) == []

    assert sweep(home, tmp_path, lambda store: take_in(store, 9), check) > 20


def test_publish_killed_anywhere_leaves_the_old_version_or_the_new(home: Path, tmp_path: Path) -> None:
    def check(store: Store, finished: bool) -> None:
        row = store.version(2)
        assert (store.current().id == 2) == (row.state == "published")
        assert not finished or store.current().id == 2

    assert sweep(home, tmp_path, lambda store: store.publish(2, **WHO), check) > 3


def test_rollback_killed_anywhere_leaves_the_old_version_or_the_new_and_held(home: Path, tmp_path: Path) -> None:
    shutil.rmtree(home / "models" / "v0" / "nothing", ignore_errors=True)

    def check(store: Store, finished: bool) -> None:
        done = store.current().id == 0
        assert done == (store.held is not None) == store.version(1).blocked
        assert not finished or done

    assert sweep(home, tmp_path, lambda store: store.rollback(reason="", **WHO), check) > 3


def test_rollback_to_a_collected_version_killed_anywhere(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        make_version(store, 1)
        make_version(store, 2)
        shutil.rmtree(store.model_path(1))
        home = store.home

    def check(store: Store, finished: bool) -> None:
        assert store.current().id == (1 if store.held else 2)
        assert not finished or store.current().id == 1

    assert sweep(home, tmp_path, lambda store: store.rollback(reason="", **WHO), check) > 20


def test_quarantine_and_release_killed_anywhere_lose_nothing(home: Path, tmp_path: Path) -> None:
    with Store.open(home) as store:
        sha = store.claim_batch(store.spool / "fresh.drop", name="fresh", **WHO).batch.sha256

    def act(store: Store) -> None:
        store.quarantine_batch(sha, reason="bad", **WHO)
        store.release(sha, **WHO)
        store.quarantine_batch(sha, reason="bad", **WHO)
        store.drop(sha, **WHO)

    def check(store: Store, finished: bool) -> None:
        state = store.find_batch(sha).state
        assert len(store.quarantined()) == (state == "quarantined")
        assert store.batch_path(sha).exists() == (state == "queued")
        assert not finished or state == "rejected"

    assert sweep(home, tmp_path, act, check) > 15


def test_a_deleted_batch_that_is_dropped_again_killed_anywhere_comes_back(home: Path, tmp_path: Path) -> None:
    with Store.open(home) as store:
        sha = store.claim_batch(store.spool / "fresh.drop", name="fresh", **WHO).batch.sha256
        store.quarantine_batch(sha, reason="bad", **WHO)
        store.drop(sha, **WHO)
        drop(store, "zorp\n", "later")

    def claim(store: Store) -> None:
        store.claim_batch(store.spool / "later.drop", name="later", **WHO)

    def check(store: Store, finished: bool) -> None:
        if (store.spool / "later.drop").exists():
            assert not finished
            claim(store)
        assert store.find_batch(sha).state == "queued" and store.ledger.duplicates() == []
        assert store.batch_path(sha).exists() and verify(store) == [] and list(store.spool.iterdir()) == []

    assert sweep(home, tmp_path, claim, check) > 8


def test_set_aside_killed_anywhere_keeps_the_drop_in_one_place(home: Path, tmp_path: Path) -> None:
    def check(store: Store, finished: bool) -> None:
        assert len(store.quarantined()) + (store.spool / "fresh.drop").exists() == 1
        assert not finished or store.quarantined()

    def act(store: Store) -> None:
        store.set_aside(store.spool / "fresh.drop", name="fresh", reason="unreadable", **WHO)

    assert sweep(home, tmp_path, act, check) > 5


def test_gc_killed_anywhere_deletes_nothing_reachable(tmp_path: Path) -> None:
    import numpy as np

    with make_store(tmp_path) as store:
        for seed in (1, 2, 3):
            make_version(store, seed)
        patchfile.save(store, {"w": (np.array([1]), np.array([0.5], np.float32))}, {})
        home = store.home

    def check(store: Store, finished: bool) -> None:
        assert all(store.is_materialized(number) for number in (0, 2, 3))
        assert not finished or not store.is_materialized(1)
        rebuilt(store, 1)
        assert verify(store, deep=True) == []

    assert sweep(home, tmp_path, lambda s: gc.run(s, keep_materialized=1, **WHO), check) > 5


@pytest.mark.parametrize("is_zeroed", [False, True], ids=["half a line", "zeros after a power loss"])
def test_a_torn_audit_line_is_cut_and_written_again(home: Path, is_zeroed: bool) -> None:
    with Store.open(home) as store:
        before = store.audit_path.read_bytes()
        with filesystem.use(DyingFileSystem(1, Killed)), pytest.raises(Killed):  # opened, then torn while writing
            store.pause(reason="wait", **WHO)
        torn = store.audit_path.read_bytes()
        assert torn.startswith(before) and len(torn) > len(before)
        if is_zeroed:
            store.audit_path.write_bytes(before + bytes(len(torn) - len(before)))
        assert audit.verify(store) != []
        store.recover(NOW)
        assert audit.verify(store) == []
        assert audit.read(store)[-1].action == "paused" and store.audit_path.read_bytes().startswith(before)
