"""Stores that an older alignd made: as it left them, brought up to date, killed at any point, and refused where they must be.

The archives in tests/stores were made by those very programs; `make_schema_1.py` there says how.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from state import audit, durable, filesystem, lock, migrations
from state.connection import connect
from state.errors import SchemaError, StoreCorruptError, StoreError, StoreMissingError
from state.ledger import Ledger
from state.migrations import Run, Step
from state.schema import SCHEMA_NUMBER, TABLES
from state.store import Store
from state.verify import drill, verify
from tests.disks import DyingFileSystem, in_memory
from tests.old_stores import ARCHIVES, unpacked
from tests.state_world import NOW, make_store, make_version

WHO: Any = {"actor": "tester", "now": NOW}
COPY = Path("store", "ledger-schema-1.db")


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory: the ledger really flushes, hundreds of times."""
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A home as an older program left it, killed with a round under way."""
    return unpacked(tmp_path, request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return unpacked(tmp_path)


def tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of a ledger, without its seal and without what an upgrade or a flush of the audit changes."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = {}
        for table in set(TABLES.values()) - {"outbox"}:
            rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]
            found[table] = [{name: row[name] for name in row if name not in ("seal", "confirmed")} for row in rows]
        return found


def schema_of(path: Path) -> dict[str, Any]:
    """What SQLite knows of every table: columns, references, indices; however they were written down."""
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return {
            name: [
                sorted(connection.execute(f"PRAGMA {what}({name})").fetchall())
                for what in ("table_info", "foreign_key_list", "index_list")
            ]
            for name in names
        }


def number_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def in_use(home: Path) -> None:
    """The store is whole, and goes on."""
    with Store.open(home) as store:
        store.recover(NOW)
        assert verify(store, deep=True) == []
        scratch = store.root / "scratch" / "drill"
        assert drill(store, [row.id for row in store.ledger.versions()], scratch) == []
        assert audit.verify(store) == []
        shutil.rmtree(scratch, ignore_errors=True)


def test_the_archives_are_of_every_schema_before_this_one() -> None:
    numbers = {int(path.name.split("-")[1]) for path in ARCHIVES}
    assert numbers == set(range(1, SCHEMA_NUMBER))


def test_there_is_one_step_for_every_number() -> None:
    assert [step.to for step in migrations.STEPS] == list(range(2, SCHEMA_NUMBER + 1))


def test_an_upgraded_store_has_what_it_had_and_the_tables_of_a_new_one(old: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    shutil.copytree(old / "store", aside)
    before = tables(aside / "ledger.db")
    assert number_of(aside / "ledger.db") == 1 and before["versions"] and before["rounds"]
    done = Store.upgrade(old, **WHO)
    assert done is not None and (done.before, done.after, done.copy) == (1, SCHEMA_NUMBER, old / COPY)
    assert done.steps == tuple(step.what for step in migrations.STEPS)
    assert tables(old / "store" / "ledger.db") == before
    make_store(tmp_path / "new").close()
    assert schema_of(old / "store/ledger.db") == schema_of(tmp_path / "new/home/store/ledger.db")
    in_use(old)


def test_an_upgraded_store_goes_on_where_the_old_program_was_killed(old: Path) -> None:
    Store.upgrade(old, **WHO)
    with Store.open(old) as store:
        store.recover(NOW)
        newest = store.ledger.versions()[-1]
        assert newest.state == "awaiting_approval" and store.current().name == "v1"
        assert store.paused is not None and store.paused.reason == "lunch"
        assert [row.state for row in store.ledger.rounds()][-1] == "running"
        assert store.resolve("@good").name == "v1" and store.version(1).pinned
        assert sum(row.blocked for row in store.ledger.versions()) == 1  # what was rolled back
        store.end_round(store.ledger.rounds()[-1].id, "aborted", reason="", **WHO)
        store.resume(**WHO)
        store.approve(newest.name, **WHO)
        made = make_version(store, 77)
        assert (made.parent, store.current()) == (newest.id, made)
        store.rollback("v0", reason="all of it", **WHO)
        assert store.current().name == "v0"
    in_use(old)


def test_the_copy_is_the_old_ledger_whole_and_private_and_can_be_put_back(old: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    shutil.copytree(old / "store", aside)
    Store.upgrade(old, **WHO)
    assert stat.S_IMODE((old / COPY).stat().st_mode) == 0o600
    beside = sorted(path.name for path in (old / "store").glob("*ledger*"))
    assert [name for name in beside if "schema" in name] == [COPY.name]
    assert number_of(old / COPY) == 1
    assert tables(old / COPY) == tables(aside / "ledger.db")
    for path in (old / "store").glob("ledger.db*"):
        path.unlink()
    (old / COPY).rename(old / "store" / "ledger.db")
    assert Store.upgrade(old, **WHO) is not None
    in_use(old)


def test_who_upgraded_stands_in_the_audit_file(old: Path) -> None:
    Store.upgrade(old, **WHO)
    with Store.open(old) as store:
        store.catch_up()
        row = audit.read(store)[-1]
    assert (row.action, row.actor) == ("store_upgraded", "tester")
    assert row.details == {"from": 1, "to": SCHEMA_NUMBER, "copy": COPY.name}


def test_a_store_of_today_is_left_alone(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        before = store.ledger_path.read_bytes()
        assert Store.upgrade(store.home, **WHO) is None
        assert store.ledger_path.read_bytes() == before
        assert not (store.home / COPY).exists()


def test_an_old_store_is_not_opened_and_says_what_to_do(old: Path) -> None:
    with pytest.raises(SchemaError, match=f"has schema 1, and this alignd works with schema {SCHEMA_NUMBER}") as caught:
        Store.open(old)
    assert "`alignd upgrade`" in caught.value.hint and "a copy" in caught.value.hint
    assert number_of(old / "store" / "ledger.db") == 1


def test_a_newer_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        home = store.home
    with closing(sqlite3.connect(home / "store" / "ledger.db")) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_NUMBER + 1}")
    for act in (Store.open, lambda home: Store.upgrade(home, **WHO)):
        with pytest.raises(SchemaError, match=f"has schema {SCHEMA_NUMBER + 1}") as caught:
            act(home)
        assert "newer alignd" in caught.value.hint and "upgrade" not in caught.value.hint
    assert sorted(path.name for path in (home / "store").glob("ledger-*")) == []


def test_a_file_without_a_number_is_no_ledger(home: Path) -> None:
    with closing(sqlite3.connect(home / "store" / "ledger.db")) as connection:
        connection.execute("PRAGMA user_version = 0")
    for act in (Store.open, lambda home: Store.upgrade(home, **WHO)):
        with pytest.raises(StoreCorruptError, match="is no ledger of alignd"):
            act(home)


def test_no_home_is_upgraded_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError, match="has no store"):
        Store.upgrade(tmp_path, **WHO)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_row_is_named_and_not_sealed_anew(home: Path) -> None:
    with closing(sqlite3.connect(home / "store" / "ledger.db")) as connection:
        connection.execute("UPDATE versions SET created_at = 'another day' WHERE id = 2")
        connection.commit()
    before = tables(home / "store" / "ledger.db")
    with pytest.raises(StoreCorruptError, match="table versions: row 2 is not what was written; nothing was changed"):
        Store.upgrade(home, **WHO)
    assert number_of(home / "store" / "ledger.db") == 1
    assert tables(home / "store" / "ledger.db") == before


def test_a_broken_reference_stops_the_upgrade(home: Path) -> None:
    with closing(sqlite3.connect(home / "store" / "ledger.db")) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("UPDATE tags SET version = 99")
        connection.commit()
    with pytest.raises(StoreCorruptError, match="table tags: broken reference; nothing was changed"):
        Store.upgrade(home, **WHO)
    assert number_of(home / "store" / "ledger.db") == 1


def test_a_full_disk_is_told_beforehand_and_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.durable.free_bytes", lambda path: 1000)
    with pytest.raises(StoreError, match=r"needs [0-9,]+ free bytes, and 1,000 are; nothing was changed") as caught:
        Store.upgrade(home, **WHO)
    assert "make room" in caught.value.hint
    assert number_of(home / "store" / "ledger.db") == 1 and not (home / COPY).exists()


def test_on_a_read_only_disk_it_says_that_it_cannot(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.durable.is_read_only", lambda path: True)
    with pytest.raises(SchemaError, match="mounted read-only"):
        Store.upgrade(home, **WHO)


def test_an_upgrade_waits_for_the_store_s_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.upgrade.LOCK_WAIT_S", 0.05)
    with lock.hold(home / "store" / "store.lock", "a long merge"), pytest.raises(StoreError, match="a long merge"):
        Store.upgrade(home, **WHO)


def two_steps(monkeypatch: pytest.MonkeyPatch, second: Callable[[Run, Path], None]) -> None:
    """As if there were a schema 3 already."""
    monkeypatch.setattr("state.migrations.STEPS", (*migrations.STEPS, Step(SCHEMA_NUMBER + 1, "second", second)))
    for module in ("upgrade", "ledger"):
        monkeypatch.setattr(f"state.{module}.SCHEMA_NUMBER", SCHEMA_NUMBER + 1)


def test_several_steps_run_in_order_in_one_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(run: Run, path: Path) -> None:
        assert "confirmed" not in [row[1] for row in run("PRAGMA table_info(versions)")]
        run("ALTER TABLE notes RENAME TO remarks")
        run("CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        run("INSERT INTO notes SELECT * FROM remarks")

    two_steps(monkeypatch, second)
    done = Store.upgrade(home, **WHO)
    assert done is not None and (done.before, done.after, len(done.steps)) == (1, SCHEMA_NUMBER + 1, 2)
    assert number_of(home / "store" / "ledger.db") == SCHEMA_NUMBER + 1


def test_a_step_that_fails_takes_the_ones_before_it_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(run: Run, path: Path) -> None:
        raise StoreCorruptError("no")

    two_steps(monkeypatch, second)
    before = schema_of(home / "store" / "ledger.db")
    with pytest.raises(StoreCorruptError):
        Store.upgrade(home, **WHO)
    assert number_of(home / "store" / "ledger.db") == 1 and schema_of(home / "store" / "ledger.db") == before
    assert audit_actions(home).count("store_upgraded") == 0


def audit_actions(home: Path) -> list[str]:
    return [line.split('"action":"')[1].split('"')[0] for line in (home / "store/audit.jsonl").read_text().splitlines()]


def check_after_kill(work: Path, at: str) -> bool:
    """Old or new and nothing between; the repeat succeeds. Whether it was old."""
    number = number_of(work / "store" / "ledger.db")
    assert number in (1, SCHEMA_NUMBER), at
    columns = [row[1] for row in schema_of(work / "store" / "ledger.db")["versions"][0]]
    assert ("confirmed" in columns) == (number == 1), at
    if number == SCHEMA_NUMBER:
        assert number_of(work / COPY) == 1, at
    done = Store.upgrade(work, **WHO)
    assert (done is not None) == (number == 1), at
    in_use(work)
    assert audit_actions(work).count("store_upgraded") == 1, at
    assert number_of(work / COPY) == 1, at
    assert list(work.rglob(f"{durable.TEMPORARY_PREFIX}*")) == [], at
    return number == 1


def test_killed_at_any_change_of_the_disk_it_leaves_the_old_store_or_the_new_one(home: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for num_calls in range(100):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(home, work, symlinks=True)
        disk = DyingFileSystem(num_calls, Killed)
        try:
            with filesystem.use(disk):
                Store.upgrade(work, **WHO)
        except Killed:
            pass
        check_after_kill(work, f"change {num_calls}")
        if disk.left >= 0:
            break
    assert 4 < num_calls < 100


def test_killed_at_any_statement_it_leaves_the_old_store_or_the_new_one(home: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    was_old = []
    for number in range(500):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(home, work, symlinks=True)
        if not is_killed_upgrading(work, number):
            break
        was_old.append(check_after_kill(work, f"statement {number}"))
    # what comes after the commit is the switch back of the references only
    assert len(was_old) > 20 and was_old == sorted(was_old, reverse=True) and was_old.count(False) <= 2


def is_killed_upgrading(work: Path, number: int) -> bool:
    """Upgrade in a process of its own, which is killed before the statement of this number; False when it got through."""
    pid = os.fork()
    if pid == 0:
        statements = iter(range(number, -1, -1))

        def count(sql: str) -> None:
            if next(statements, -1) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def traced(path: Path, mode: str) -> sqlite3.Connection:
            connection = connect(path, mode)
            connection.set_trace_callback(count)
            return connection

        try:
            with mock.patch("state.upgrade.connect", traced):
                Store.upgrade(work, **WHO)
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def test_a_copy_that_a_killed_attempt_left_is_replaced_by_what_is_there_now(home: Path) -> None:
    (home / COPY).write_bytes(b"of an attempt long ago")
    Store.upgrade(home, **WHO)
    assert number_of(home / COPY) == 1


def test_the_ledger_of_today_says_its_number(tmp_path: Path) -> None:
    with make_store(tmp_path) as store, closing(Ledger.open(store.ledger_path)) as ledger:
        assert ledger.schema == SCHEMA_NUMBER
