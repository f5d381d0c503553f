"""The disk fails under SQLite, at any single call that concerns the ledger's files, in any operation of the store; and for
good, from each third of these calls on.

`python -m tests.ledger_faults` builds a small library (tests/ledger_disk.c) that the process is started again with, sweeps
every operation, and prints what it tried; with `--every N` at each N-th of these calls only. A C compiler is needed.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from state.errors import StoreCorruptError
from state.store import Store
from state.verify import verify
from tests.old_stores import unpacked
from tests.state_world import NOW, make_store
from tests.test_state_faults import OPERATIONS, Operation, check, in_service

FAULTS: Final = [(errno.EIO, True, 1), (errno.EIO, False, 3)]
"""What fails, whether once only or from there on, and the stride from one call that it is tried at to the next: a disk that
stays broken stops all that comes after, so that neighbours differ less. A full disk is a real one in
`test_state_full_disk`."""
SOURCE: Final = Path(__file__).with_name("ledger_disk.c")
COMPILER: Final = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def main() -> int:
    """Sweeps all operations; 0 when nothing that was promised is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.ledger_faults", description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    every = parser.parse_args().every
    folder = os.environ.get("LEDGER_DISK")
    return _again(every) if folder is None else _sweep_all(Path(folder), every)


def _again(every: int) -> int:
    """This again, with the failing disk between SQLite and the system."""
    if COMPILER is None:
        print("no C compiler: install gcc", file=sys.stderr)
        return 2
    at = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=at) as folder:
        library = Path(folder, "ledger_disk.so")
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        env = os.environ | {"LD_PRELOAD": str(library), "LEDGER_DISK": folder}
        command = [sys.executable, "-m", "tests.ledger_faults", "--every", str(every)]
        return subprocess.run(command, env=env, check=False).returncode


def _sweep_all(folder: Path, every: int) -> int:
    disk = ctypes.CDLL(None)
    tried: Counter[str] = Counter()
    for name, operation in OPERATIONS.items():
        home = folder / name
        home.mkdir()
        with make_store(home) as store:
            operation.before(store)
        for code, once, stride in FAULTS:
            num = _sweep(disk, home / "home", folder / "work", operation, code, once, stride * every)
            tried[f"{errno.errorcode[code]} {'once' if once else 'from there on'}"] += num
            assert num * every >= 3, f"{name}: SQLite was not in the way"
    for code, once, stride in FAULTS:
        num = _sweep_upgrade(disk, folder / "old", code, once, stride * every)
        tried[f"{errno.errorcode[code]} while an old store is upgraded"] += num
        assert num * every >= 10, "SQLite was not in the way of the upgrade"
    for what, num in tried.items():
        print(f"{num:7,}  calls of SQLite refused with {what}")
    print(f"{len(OPERATIONS):7,}  operations, nothing broken")
    return 0


def _sweep(disk: Any, home: Path, work: Path, operation: Operation, code: int, once: bool, stride: int) -> int:
    for num_calls in range(0, 1000, stride):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(home, work, symlinks=True)
        at = f"{os.strerror(code)} at call {num_calls}"
        with Store.open(work) as store:
            published = in_service(store)
            disk.arm(num_calls, code, int(once))
            try:
                operation.act(store)
            except OSError as err:
                assert err.errno == code, f"{at}: {err!r}"
            except StoreCorruptError as err:
                assert disk.was_read(), f"{at}: {err!r}"
            finally:
                left = disk.disarm()
            assert store.is_materialized(int(store.current_link.readlink().name[1:])), at
            _finish(store, operation, published, at)
        with Store.open(work) as store:  # what another process finds
            check(store, published, at)
        if left >= 0:
            return num_calls // stride
    raise AssertionError("never finished")


def _sweep_upgrade(disk: Any, folder: Path, code: int, once: bool, stride: int) -> int:
    """The same for an upgrade: the old store stays, or the new one is whole; the repeat succeeds."""
    home, work = unpacked(folder), folder / "work"
    for num_calls in range(0, 1000, stride):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(home, work, symlinks=True)
        at = f"upgrade: {os.strerror(code)} at call {num_calls}"
        disk.arm(num_calls, code, int(once))
        try:
            Store.upgrade(work, actor="tester", now=NOW)
        except OSError as err:
            assert err.errno == code, f"{at}: {err!r}"
        except StoreCorruptError as err:
            assert disk.was_read(), f"{at}: {err!r}"
        finally:
            left = disk.disarm()
        Store.upgrade(work, actor="tester", now=NOW)
        with Store.open(work) as store:
            store.recover(NOW)
            assert (store.current().name, verify(store, deep=True)) == ("v1", []), at
        if left >= 0:
            return num_calls // stride
    raise AssertionError("never finished")


def _finish(store: Store, operation: Operation, published: Any, at: str) -> None:
    if not operation.is_done(store):
        operation.act(store)
    store.catch_up()  # as the service does all the time
    store.recover(NOW)
    assert operation.is_done(store), at
    check(store, published, at)


if __name__ == "__main__":
    raise SystemExit(main())
