"""What goes wrong under a running service: a read-only disk, a locked or broken ledger, a clock that is set."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, exitcodes
from daemon.config import Config
from daemon.service import Service, utc_now
from state import lock
from state.checked import Checked, verify_on
from state.errors import StoreError
from state.filesystem import FileSystem, use
from state.layout import PROGRESS_FILE
from state.store import Store
from state.verify import verify
from tests import state_world
from tests.fakes_service import NOW, FakeWorker, Running, drop, fast_config, make_home, wait_until

ROOT = Path(__file__).resolve().parent.parent


def _forever(home: Path, worker: FakeWorker, config: Config | None = None, **more: Any) -> Running:
    return Running(Service(home, config or fast_config(), once=False, argv=worker.argv, tick_s=0.1, **more))


def _shown(home: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((home / PROGRESS_FILE).read_text())
    except FileNotFoundError:
        return {}
    return content


def _states(store: Store) -> list[str]:
    return [row.state for row in store.ledger.batches()]


# -- a disk that is mounted read-only ------------------------------------------------------------------------------


NAMESPACE = ["unshare", "--mount", "--propagation", "private"]


class _Manager:
    """A service manager's ear: the status lines that it was sent."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.env = {"NOTIFY_SOCKET": str(path)}
        self.status = ""

    def says(self, words: str) -> bool:
        """Whether the latest status has these words."""
        self._socket.setblocking(False)
        try:
            while True:
                line = self._socket.recv(8192).decode()
                self.status = line.removeprefix("STATUS=") if line.startswith("STATUS=") else self.status
        except BlockingIOError:
            return words in self.status


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Everybody who opens something by its path finds the folder's file system read-only; for root, in a namespace."""
    for options in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        subprocess.run(["mount", *options], check=True)
    yield
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def play_read_only(root: Path, part: str) -> None:
    """The whole story, in a mount namespace of its own: see the test that starts it."""
    inbox = root / "inbox"
    inbox.mkdir()
    home = make_home(root / "disk")
    worker, manager = FakeWorker(root / "worker", home), _Manager(root / "notify")
    config = fast_config(inbox={"path": str(inbox)})
    with _forever(home, worker, config, env=manager.env) as running, Store.open(home) as store:
        (inbox / "a.jsonl").write_text("one\n")
        wait_until(lambda: _states(store) == ["published"])
        wait_until(lambda: manager.says("idle"))
        with _read_only(home / part):
            (inbox / "b.jsonl").write_text("two\n")
            wait_until(lambda: manager.says("nothing is claimed: Read-only file system"))
            if part == "store":
                wait_until(lambda: "Read-only file system" in _shown(home)["message"])
            with pytest.raises(OSError) as caught, Store.open(home) as other:
                other.rollback(reason="", actor="test", now=NOW)
            assert caught.value.errno == errno.EROFS
            with pytest.raises(OSError) as caught, Store.open(home) as other:
                other.note_at_work("r000009")  # a change of the ledger alone
            assert caught.value.errno == errno.EROFS
            time.sleep(0.5)
            assert running.code is None and _states(store) == ["published"] and (inbox / "b.jsonl").exists()
        wait_until(lambda: _states(store) == ["published"] * 2)
        wait_until(lambda: manager.says("idle") and _shown(home)["message"] == "")
        assert verify(store, deep=True) == [] and len(worker.starts("round")) == 2


def play_snapshot(root: Path, part: str) -> None:
    """What an auditor does with a home that is mounted read-only, its service elsewhere at work or not."""
    made = state_world.make_store(root / "disk")
    made.close()
    home = made.home
    with Store.open(home) as store:
        state_world.make_version(store, 1)
        sha256 = store.claim_batch(state_world.drop(store, "zorp", "a"), name="a", actor="test", now=NOW).batch.sha256
    Checked(home, deep=False).add("v0")  # by a check that the snapshot was taken in the midst of
    with Store.open(home) if part == "live" else nullcontext(), _read_only(home):
        with Store.open(home) as snapshot:
            (file,) = (row[2] for row in snapshot.ledger._run("PRAGMA database_list"))
            assert bool(file) == (part == "live"), "a copy beside a writer may be torn"
            assert verify(snapshot, deep=True) == []
            told: list[float] = []
            assert verify_on(snapshot, deep=False, progress=told.append, anew=True) == []
            assert told[0] == 1 / len(told), "what an earlier check found was passed over"
            assert [row.sha256 for row in snapshot.ledger.batches()][-1] == sha256
        commands = (
            "verify",
            "verify --deep --resume",
            "verify --sample 50",
            "drill",
            "diff v0 v1",
            "history",
            "audit --verify",
        )
        for words in map(str.split, commands):
            assert cli.main(["-c", str(home), *words]) == exitcodes.OK, words
    (kept,) = (home / "store" / "batches" / sha256).iterdir()
    kept.chmod(0o600)
    kept.write_text("zorq")
    with _read_only(home), Store.open(home) as snapshot:
        (finding,) = verify(snapshot)
        assert "is not what was received" in finding.what


def _in_a_namespace(play: str, tmp_path: Path, part: str) -> None:
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("needs root and unshare")
    (tmp_path / "disk").mkdir()
    code = f"import sys; from pathlib import Path; from tests.test_daemon_faults import {play} as play;"
    code += "play(Path(sys.argv[1]), sys.argv[2])"
    script = f'mount -t tmpfs tmpfs "{tmp_path}/disk" && exec "$@"'
    command = [*NAMESPACE, "sh", "-c", script, "sh", sys.executable, "-c", code, str(tmp_path), part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("part", ["store", "."])
def test_a_store_that_is_mounted_read_only_stops_claiming_and_goes_on_when_it_is_writable(
    tmp_path: Path, part: str
) -> None:
    _in_a_namespace("play_read_only", tmp_path, part)


@pytest.mark.parametrize("part", ["closed", "live"])
def test_a_home_that_is_mounted_read_only_is_read_checked_and_rebuilt(tmp_path: Path, part: str) -> None:
    _in_a_namespace("play_snapshot", tmp_path, part)


# -- the ledger ----------------------------------------------------------------------------------------------------


@contextmanager
def _written_by_another(store: Store) -> Iterator[None]:
    with sqlite3.connect(store.ledger_path, isolation_level=None, check_same_thread=False) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    other.close()


@contextmanager
def _locked_by_another(store: Store) -> Iterator[None]:
    with lock.hold(store.store_lock, "a long merge"):
        yield


@pytest.mark.parametrize(
    ("locked", "said"),
    [(_written_by_another, "is busy with another process"), (_locked_by_another, "a long merge")],
    ids=["ledger", "store"],
)
def test_a_store_that_another_process_locks_for_long_is_told_and_waited_for(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, locked: Any, said: str
) -> None:
    monkeypatch.setattr("state.connection.BUSY_MS", 100)
    monkeypatch.setattr("state.core.LOCK_WAIT_S", 0.1)
    worker.script("round-1", {"event": "progress", "step": "derive", "fraction": 0.5, "loss": None}, {"sleep": 60})
    drop(home, "a.jsonl", "one\n")
    config = fast_config(inbox={"rescan_s": 60.0})
    with _forever(home, worker, config) as running, Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "derive")
        with locked(store):
            drop(home, "b.jsonl", "two\n")
            wait_until(lambda: said in _shown(home)["message"])
            assert _shown(home)["step"] == "derive", "a lock that others hold ended the round"
            time.sleep(1)
            assert running.code is None and len(store.ledger.batches()) == 1
        wait_until(lambda: len(store.ledger.batches()) == 2)
        wait_until(lambda: _shown(home)["message"] == "")


def test_a_ledger_that_breaks_under_the_service_ends_it_with_its_code_and_its_worker_with_it(
    home: Path, worker: FakeWorker
) -> None:
    worker.script("round-1", {"event": "progress", "step": "derive", "fraction": 0.5, "loss": None}, {"sleep": 60})
    drop(home, "a.jsonl", "one\n")
    with _forever(home, worker) as running, Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "derive")
        (child,) = _children()
        store.tag("before", "base", actor="test", now=NOW)  # so that it writes from what it remembers
        for path in (store.ledger_path, store.ledger_path.with_name("ledger.db-wal")):
            with path.open("r+b") as file:
                file.write(b"\xa5" * path.stat().st_size)
        with contextlib.suppress(StoreError):
            store.tag("after", "base", actor="test", now=NOW)  # what SQLite has in memory is no longer valid
        wait_until(lambda: running.code is not None)
    assert running.code == exitcodes.INTEGRITY
    assert child not in _children()


def _children() -> list[int]:
    """Of this thread and all others of the process, fake workers only."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for path in found for pid in path.read_text().split()]


@pytest.mark.parametrize("call", ["symlink", "rename", "open_append", "write", "fsync"])
def test_what_a_fault_kept_from_link_and_audit_file_is_told_and_done_once_it_has_passed(
    home: Path, worker: FakeWorker, call: str
) -> None:
    drop(home, "a.jsonl", "one\n")
    broken = _Broken(call)
    with use(broken), _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _states(store) == ["published"] and not store.scratch("r000001").exists())
        wait_until(lambda: _shown(home).get("state") == "idle" and verify(store) == [])
        broken.is_on = True
        with pytest.raises(OSError):
            store.rollback(reason="bad", actor="test", now=NOW)
        wait_until(lambda: "Input/output error" in _shown(home)["message"])
        assert store.current().id == 0
        broken.is_on = False
        wait_until(lambda: (home / "models" / "current").readlink().name == "v0" and verify(store) == [])
        wait_until(lambda: "Input/output error" not in _shown(home)["message"])


def test_a_round_that_is_committed_does_not_wait_for_the_rest_of_its_writes(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.commit_version

    def torn(self: Store, *arguments: Any, **more: Any) -> None:
        real(self, *arguments, **more)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Store, "commit_version", torn)
    drop(home, "a.jsonl", "one\n")
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _states(store) == ["published"] and not store.scratch("r000001").exists())
        drop(home, "b.jsonl", "two\n")
        wait_until(lambda: _states(store) == ["published", "published"])
        assert "waits" not in _shown(home)["message"] and verify(store) == []


class _Broken(FileSystem):
    """One call fails while `is_on`."""

    def __init__(self, call: str) -> None:
        self.is_on = False
        self._call = call

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name == "is_on" or not (self.is_on and name == self._call):
            return super().__getattribute__(name)
        return self._fail

    def _fail(self, *_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


# -- the clock -----------------------------------------------------------------------------------------------------


class _Clock:
    """The time, as somebody sets it."""

    def __init__(self) -> None:
        self.off = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.off


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_delays_no_retry(home: Path, worker: FakeWorker, hours: int) -> None:
    worker.script("round-1", {"exit": 7})
    drop(home, "a.jsonl")
    clock = _Clock()
    with _forever(home, worker, fast_config(schedule={"retry_s": 1.5}), now=clock), Store.open(home) as store:
        wait_until(lambda: "the last attempt failed" in _shown(home).get("message", ""))
        failed = time.monotonic()
        clock.off = timedelta(hours=hours)
        wait_until(lambda: _states(store) == ["published"])
        assert time.monotonic() - failed > 0.5


def test_a_clock_that_is_set_forward_makes_no_drop_complete(home: Path, worker: FakeWorker) -> None:
    clock, path = _Clock(), home / "inbox" / "a.jsonl"
    with _forever(home, worker, fast_config(inbox={"settle_s": 1.5}), now=clock), Store.open(home) as store:
        wait_until(lambda: bool(_shown(home)))
        for hours in (3, -4, 9, 0):
            with path.open("a") as file:  # a writer that closes the file after each row
                file.write(f"row {hours}\n")
            wait_until(lambda: bool(_shown(home)["inbox"]["waiting"]))
            clock.off = timedelta(hours=hours)
            time.sleep(0.4)
            assert path.exists() and _states(store) == []
        wait_until(lambda: _states(store) == ["published"])
        (row,) = store.ledger.batches()
        assert row.num_bytes == len("row 3\nrow -4\nrow 9\nrow 0\n")


def test_a_clock_that_is_set_back_delays_no_rescan(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.watcher._Wake.on_any_event", lambda wake, event: None)
    clock = _Clock()
    with _forever(home, worker, fast_config(inbox={"rescan_s": 0.5}), now=clock), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("state") == "idle")
        for hours, name in ((-7, "a"), (6, "b"), (-2, "c")):
            clock.off = timedelta(hours=hours)
            drop(home, f"{name}.jsonl", f"{name}\n")
            wait_until(lambda: name in [row.name[0] for row in store.ledger.batches()])  # noqa: B023
