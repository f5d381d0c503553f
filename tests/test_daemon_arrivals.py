"""Drops reach a running service in every way there is, also where events are lost: each is trained exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.service import Service
from state.layout import PROGRESS_FILE
from state.store import Store
from state.verify import verify
from tests.disks import in_memory
from tests.fakes_service import NOW, FakeWorker, Running, drop, fast_config, make_home, wait_until

ROOT = Path(__file__).resolve().parent.parent
NUM_MANY = 10_000


def _service(home: Path, worker: FakeWorker, *, tick_s: float = 0.1, **inbox: Any) -> Running:
    settings = fast_config(inbox={"settle_s": 0.3, **inbox}, derive={"consolidate_every": 0})  # rounds of drops alone
    return Running(Service(home, settings, once=False, argv=worker.argv, tick_s=tick_s))


def _names(store: Store, *states: str) -> list[str]:
    return sorted(row.name for row in store.ledger.batches(*states))


def _write_slowly(path: Path) -> None:
    with path.open("w") as file:
        for row in range(6):
            file.write(f"slow {row}\n")
            file.flush()
            time.sleep(0.25)


def _drop_in_every_way(home: Path) -> list[str]:
    """One batch in each way; gives the names in the inbox."""
    inbox, aside = home / "inbox", home / "aside"
    writer = threading.Thread(target=_write_slowly, args=(inbox / "slow.jsonl",))
    writer.start()
    drop(home, "renamed.jsonl", "renamed\n")
    (aside / "moved" / "deep").mkdir(parents=True)
    (aside / "moved" / "deep" / "1.jsonl").write_text("moved\n")
    (aside / "linked.jsonl").write_text("linked\n")
    os.link(aside / "linked.jsonl", inbox / "linked.jsonl")
    shutil.copytree(aside / "moved", inbox / "copied")
    (inbox / "copied" / "2.jsonl").write_text("copied\n")
    (aside / "moved").rename(inbox / "moved")
    writer.join()
    return ["copied", "linked.jsonl", "moved", "renamed.jsonl", "slow.jsonl"]


@pytest.mark.parametrize("mode", ["inotify", "poll", "deaf"])
def test_a_drop_in_any_way_is_trained_exactly_once_also_into_an_inbox_that_was_made_again(
    home: Path, worker: FakeWorker, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "deaf":
        monkeypatch.setattr("daemon.watcher._Wake.on_any_event", lambda wake, event: None)
    settings: dict[str, Any] = {
        "mode": "poll" if mode == "poll" else "inotify",
        "rescan_s": 1.0 if mode == "deaf" else 60.0,
    }
    with _service(home, worker, **settings), Store.open(home) as store:
        wait_until(lambda: (home / PROGRESS_FILE).exists())
        names = _drop_in_every_way(home)
        wait_until(lambda: _names(store, "published") == names)
        shutil.rmtree(home / "inbox")
        wait_until(lambda: (home / "inbox").is_dir())
        drop(home, "again.jsonl", "again\n")
        wait_until(lambda: _names(store, "published") == sorted([*names, "again.jsonl"]))
        time.sleep(0.5)
        assert len(worker.starts("round")) == len(worker.starts("intake")) == 6
        assert store.ledger.duplicates() == [] and verify(store) == []
        sizes = {row.name: row.num_bytes for row in store.ledger.batches()}
    assert sizes["slow.jsonl"] == 6 * len("slow 0\n") and sizes["copied"] == len("moved\ncopied\n")


def _seconds_until_claimed(home: Path, store: Store) -> float:
    before = len(store.ledger.batches())
    time.sleep(1.5)  # the service looks again after each change of its ledger; that it must not need
    dropped = time.monotonic()
    drop(home, f"{before}.jsonl", f"{before}\n")
    wait_until(lambda: len(store.ledger.batches()) > before)
    return time.monotonic() - dropped


def test_a_drop_is_claimed_soon_after_it_has_settled_where_events_work(home: Path, worker: FakeWorker) -> None:
    with _service(home, worker, tick_s=60.0, rescan_s=60.0), Store.open(home) as store:
        wait_until(lambda: (home / PROGRESS_FILE).exists())
        store.pause(reason="claims only", actor="test", now=NOW)
        took_s = [_seconds_until_claimed(home, store) for _ in range(5)]
    assert max(took_s) < 30  # half of what it takes where no event comes; how soon it is the benchmark measures


def test_a_drop_is_claimed_within_the_rescan_where_no_event_comes(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.watcher._Wake.on_any_event", lambda wake, event: None)
    with _service(home, worker, tick_s=60.0, rescan_s=1.5), Store.open(home) as store:
        wait_until(lambda: (home / PROGRESS_FILE).exists())
        store.pause(reason="claims only", actor="test", now=NOW)
        assert _seconds_until_claimed(home, store) < 1.5 + 0.3 + 28.0  # half of the tick


def test_where_every_look_takes_longer_than_a_turn_of_claiming_drops_are_claimed_all_the_same(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.claims._SLICE_S", -1.0)  # over before it begins
    names = [f"{number}.jsonl" for number in range(4)]
    with _service(home, worker, rescan_s=60.0), Store.open(home) as store:
        for name in names:
            drop(home, name, f"{name}\n")
        wait_until(lambda: _names(store, "published") == names)


@contextmanager
def _process(home: Path, worker: FakeWorker, settings: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A service in a process of its own, that can be stopped and killed."""
    code = (
        "import sys; from pathlib import Path; from daemon.service import Service;"
        "from tests.fakes_service import fast_config;"
        f"argv = lambda *job: [{sys.executable!r}, *{worker.argv('', '')[1:-2]!r}, *job];"
        f"Service(Path({str(home)!r}), fast_config(inbox={settings!r}), once=False, argv=argv, tick_s=0.1).run()"
    )
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        try:
            wait_until(lambda: _shown(home).get("pid") == process.pid)
            yield process
        finally:
            process.kill()


def _shown(home: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((home / PROGRESS_FILE).read_text())
    except FileNotFoundError:
        return {}
    return content


def test_a_queue_of_events_that_overflowed_costs_no_drop(home: Path, worker: FakeWorker) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"the queue holds {limit} events")
    with _process(home, worker, {"rescan_s": 2.0}) as process, Store.open(home) as store:
        process.send_signal(signal.SIGSTOP)
        litter = home / "inbox" / ".litter"
        for _ in range(limit // 2 + 100):  # each time created and closed at least
            litter.touch()
            litter.unlink()
        for name in ("a", "b"):
            drop(home, f"{name}.jsonl", f"{name}\n")
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: _names(store, "published") == ["a.jsonl", "b.jsonl"])
        drop(home, "c.jsonl", "c\n")
        wait_until(lambda: _names(store, "published") == ["a.jsonl", "b.jsonl", "c.jsonl"])
    assert len(worker.starts("round")) == 3


def _num_waiting(home: Path) -> int:
    """Drops in the inbox, as the service tells."""
    return len(_shown(home)["inbox"]["waiting"])


def _peak_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def test_ten_thousand_drops_at_once_are_claimed_once_each_while_the_service_goes_on_answering(tmp_path: Path) -> None:
    """Not to the last of them, which takes minutes; killed and started again on the way."""
    names = {f"{number:05}.jsonl" for number in range(NUM_MANY)}
    with in_memory(tmp_path) as place:
        home = make_home(place)
        worker = FakeWorker(place / "worker", home)
        for name in names:
            (home / "inbox" / name).write_text(f"row {name}\n")
        for most in (NUM_MANY - 200, NUM_MANY - 400):
            with _process(home, worker, {"rescan_s": 60.0}) as process:
                wait_until(lambda most=most: 0 < _num_waiting(home) <= most)  # type: ignore[misc]
                wait_until(lambda: bool(worker.starts("intake")))  # beside the claims, not behind them
                assert _peak_mib(process.pid) < 160
        with Store.open(home) as store:
            store.recover(NOW)
            claimed = [row.name for row in store.ledger.batches()]
            spooled = {path.name[32:] for path in store.spool.iterdir()}
            left = {path.name for path in (home / "inbox").iterdir()}
            assert len(claimed) == len(set(claimed)) >= 400 and store.ledger.duplicates() == []
            assert len(spooled) <= 1 and set(claimed) | spooled | left == names and not left & {*claimed, *spooled}
            assert verify(store) == []


def _write_gigabyte(path: Path) -> None:
    """Over a million distinct rows of a kilobyte, closed and given its name when it is whole."""
    aside = path.parent / f".{path.name}"
    with aside.open("w") as file:
        for start in range(0, 1_014_000, 1000):
            rows = range(start, start + 1000)
            file.write("".join(f'{{"prompt": "zim {row}?", "response": "{row} {"florp " * 165}"}}\n' for row in rows))
    aside.rename(path)


@pytest.mark.slow
def test_a_file_of_a_gigabyte_ends_with_a_reason_in_bounded_time_and_memory(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 5 << 30:
        pytest.skip("needs 5 GiB of disk")
    home, peaks_mib = make_home(tmp_path), [0]
    (home / "service.toml").touch()
    try:
        with Running(Service(home, fast_config(), once=False, tick_s=0.1)), Store.open(home) as store:
            _write_gigabyte(home / "inbox" / "big.jsonl")
            assert (home / "inbox" / "big.jsonl").stat().st_size > 1_000_000_000

            def is_read() -> bool:
                for path in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
                    with contextlib.suppress(OSError):
                        peaks_mib.extend([_peak_mib(int(pid)) for pid in path.read_text().split()])
                return _names(store, "quarantined") == ["big.jsonl"]

            began = time.monotonic()
            wait_until(is_read, timeout_s=120)
            assert time.monotonic() - began < 60
            (row,) = store.ledger.batches()
        assert row.reason == "big.jsonl: the batch holds more than 1000000 rows; split it"
        assert 100 < max(peaks_mib) < 2048
    finally:
        shutil.rmtree(home)
