"""A rollback works whatever else goes on, holds until somebody resumes, and no reader ever sees half a switch."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon import exitcodes
from daemon.service import Service
from state import gc
from state.filesystem import FileSystem, use
from state.store import Store
from state.verify import verify
from tests.disks import fill, in_memory, mounted
from tests.fakes_service import FakeWorker, Running, drop, fast_config, wait_until
from tests.state_world import NOW, content, make_store, make_version

ROOT = Path(__file__).resolve().parent.parent
WHO: Any = {"actor": "tester", "now": NOW}
NUM_SWITCHES = 1000
TRAINING = ({"event": "progress", "step": "derive", "fraction": 0.5, "loss": None}, {"sleep": 60})
ROLLBACK = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"torch", "transformers", "numpy"}: raise ImportError(name)
sys.meta_path.insert(0, Block())
from daemon.cli import main
sys.exit(main(["-c", sys.argv[1], "rollback", "--reason", "bad"]))
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """In memory: the ledger really flushes, thousands of times."""
    with in_memory(tmp_path) as folder:
        yield folder


def _digest(folder: Path) -> str:
    """Of every name and byte that a reader who enters the folder once gets from it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = hashlib.sha256()
        for name in sorted(os.listdir(fd)):  # noqa: PTH208 - of the descriptor, not of the name
            file = os.open(name, os.O_RDONLY, dir_fd=fd)
            with os.fdopen(file, "rb") as opened:
                found.update(name.encode() + hashlib.sha256(opened.read()).digest())
        return found.hexdigest()
    finally:
        os.close(fd)


@contextmanager
def _set_at_end(event: threading.Event) -> Iterator[None]:
    """However the block ends, whoever waits for the event ends too."""
    try:
        yield
    finally:
        event.set()


def test_a_reader_sees_one_whole_version_at_each_moment_of_a_thousand_switches(place: Path) -> None:
    with make_store(place) as store:
        for seed in (1, 2):
            make_version(store, seed, names=("layer.0.weight", "embed.weight"))
        whole = {_digest(store.model_path(number)): number for number in (0, 1, 2)}
        seen: list[str] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.append(_digest(store.current_link))

        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(read) for _ in range(2)]
            with _set_at_end(done):
                for number in range(NUM_SWITCHES // 2):
                    store.rollback(reason="", **WHO)
                    store.promote(f"v{2 - number % 2}", force=True, reason="", **WHO)
            assert [task.exception() for task in reading] == [None, None]
        assert set(seen) <= whole.keys() and len(set(seen)) == 3 and len(seen) > 100
        assert verify(store) == []


def test_a_rollback_beside_garbage_collection_never_loses_its_version(place: Path) -> None:
    with make_store(place) as store:
        for seed in range(1, 5):
            make_version(store, seed)
        bytes_of = {number: content(store.model_path(number)) for number in range(5)}
        done = threading.Event()

        def collect() -> None:
            with Store.open(store.home) as other:
                while not done.is_set():
                    gc.run(other, keep_materialized=0, **WHO)

        with ThreadPoolExecutor(1) as pool:
            collecting = pool.submit(collect)
            with _set_at_end(done):
                for number in (3, 1, 2):
                    for ref in (f"v{number}", "v4", "v0"):
                        store.promote(ref, force=True, reason="", **WHO)
                    wait_until(lambda number=number: not store.is_materialized(number))  # type: ignore[misc]
                    store.promote("v4", force=True, reason="", **WHO)
                    store.rollback(f"v{number}", reason="", **WHO)
                    assert content(store.current_link.resolve()) == bytes_of[number]
                    time.sleep(0.05)
                    assert content(store.current_link.resolve()) == bytes_of[number]
            collecting.result()
        assert verify(store, deep=True) == []


def _service(home: Path, worker: FakeWorker, *, once: bool = False) -> Service:
    return Service(home, fast_config(), once=once, argv=worker.argv, tick_s=0.1)


def _roll_back(home: Path) -> subprocess.CompletedProcess[str]:
    """The command itself, where neither torch nor numpy can be imported."""
    command = [sys.executable, "-c", ROLLBACK, str(home)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def _current(home: Path) -> str:
    return (home / "models" / "current").readlink().name


def _published(home: Path, worker: FakeWorker, *names: str) -> None:
    for name in names:
        drop(home, f"{name}.jsonl", f"{name}\n")
        assert _service(home, worker, once=True).run() == exitcodes.OK


def test_a_rollback_by_the_command_while_a_round_trains_and_it_holds_against_batch_restart_and_second_service(
    home: Path, worker: FakeWorker
) -> None:
    _published(home, worker, "a", "b")
    worker.script("round-3", *TRAINING)
    drop(home, "c.jsonl", "c\n")
    with Running(_service(home, worker)), Store.open(home) as store:
        wait_until(lambda: len(worker.starts("round")) == 3)
        done = _roll_back(home)
        assert done.returncode == exitcodes.OK, done.stderr
        assert _current(home) == "v1"
        wait_until(lambda: store.ledger.rounds()[-1].state == "superseded")
        drop(home, "d.jsonl", "d\n")
        wait_until(lambda: len(store.ledger.batches("queued")) == 2)
        assert _service(home, worker, once=True).run() == exitcodes.LOCKED
        time.sleep(0.5)
        assert _current(home) == "v1" and len(worker.starts("round")) == 3
    for _ in range(2):  # restarts
        assert _service(home, worker, once=True).run() == exitcodes.DEGRADED
        assert _current(home) == "v1" and len(worker.starts("round")) == 3
    with Store.open(home) as store:
        assert store.held is not None and store.version(2).blocked
        store.resume(actor="tester", now=NOW)
    assert _service(home, worker, once=True).run() == exitcodes.OK
    with Store.open(home) as store:
        made = [(row.id, row.parent) for row in store.ledger.versions()]
        assert made == [(0, None), (1, 0), (2, 1), (3, 1), (4, 3)] and _current(home) == "v4"
        assert verify(store, deep=True) == []


def test_a_rollback_by_the_command_on_a_full_disk_with_the_service_dead(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 6) as disk:
        with make_store(disk) as store:
            make_version(store, 1)
            home = store.home
        filler = fill(disk)
        done = _roll_back(home)
        assert done.returncode == exitcodes.OK, done.stderr
        assert _current(home) == "v0"
        filler.unlink()
        with Store.open(home) as store:
            store.recover(NOW)
            assert store.held is not None and verify(store, deep=True) == []


class _Stuck(FileSystem):
    """The link cannot be moved while `is_on`."""

    is_on = True

    def symlink(self, target: str, link: Path) -> None:
        if self.is_on:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().symlink(target, link)


def test_a_rollback_that_a_fault_cut_short_is_finished_by_its_repeat_and_goes_back_no_further(place: Path) -> None:
    with make_store(place) as store, use(_Stuck()) as disk:
        disk.is_on = False
        for seed in (1, 2, 3):
            make_version(store, seed)
        disk.is_on = True
        for _ in range(2):
            with pytest.raises(OSError):
                store.rollback(reason="bad", **WHO)
        disk.is_on = False
        assert store.rollback(reason="bad", **WHO).id == 2
        assert _current(store.home) == "v2" and not store.version(2).blocked
        assert store.rollback(reason="bad", **WHO).id == 1
