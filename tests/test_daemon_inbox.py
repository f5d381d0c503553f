"""Drops are claimed when they are complete, once, and are never lost."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify_c import InotifyFD

from daemon.arrival import is_open_for_writing, manifest_matches, snapshot
from daemon.drops import Drop
from daemon.inbox import Inbox
from daemon.log import INBOX_PROBLEM_FOUND
from daemon.spool import entry_name, spooled_name
from daemon.watcher import Watcher, is_network
from state import durable
from state.filesystem import FileSystem, use
from state.store import Store
from tests.fakes_service import NOW, drop, fast_config, make_home, utc, wait_until

START = utc()


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with Store.open(home) as opened:
        yield opened


def _inbox(store: Store, **settings: object) -> Inbox:
    return Inbox(fast_config(inbox={"settle_s": 5.0, **settings}), store.home, store)


def _scan(inbox: Inbox, *seconds: float) -> list[Drop]:
    found: list[Drop] = []
    for second in seconds:
        found = inbox.scan(START + timedelta(seconds=second))
    return found


def _claim_all(inbox: Inbox, *seconds: float) -> list[str]:
    claims = [inbox.claim(found, NOW) for found in _scan(inbox, *seconds) if found.is_complete]
    return [claim.batch.name for claim in claims if claim is not None]


def _queued(store: Store) -> list[str]:
    return [row.name for row in store.ledger.batches("queued")]


def test_a_drop_is_complete_once_it_stood_still_for_settle_s(home: Path, store: Store) -> None:
    drop(home, "a.jsonl")
    inbox = _inbox(store)
    assert [found.is_complete for found in _scan(inbox, 0)] == [False]
    assert [found.is_complete for found in _scan(inbox, 4.9)] == [False]
    assert [found.is_complete for found in _scan(inbox, 5)] == [True]


def test_a_drop_is_never_complete_at_first_sight(home: Path, store: Store) -> None:
    drop(home, "a.jsonl")
    inbox = _inbox(store, settle_s=0.0)
    assert not _scan(inbox, 0)[0].is_complete
    assert _scan(inbox, 0)[0].is_complete


def test_a_growing_file_is_waited_for(home: Path, store: Store) -> None:
    path = home / "inbox" / "a.jsonl"
    inbox = _inbox(store)
    for second in range(0, 12, 4):
        with path.open("a") as file:
            file.write("row\n")
        assert not _scan(inbox, second)[0].is_complete
    assert not _scan(inbox, 12)[0].is_complete
    assert _claim_all(inbox, 13.0) == ["a.jsonl"]


def test_a_rewrite_of_equal_size_starts_the_wait_again(home: Path, store: Store) -> None:
    path = home / "inbox" / "a.jsonl"
    path.write_text("aaa\n")
    inbox = _inbox(store)
    _scan(inbox, 0)
    path.write_text("bbb\n")
    assert not _scan(inbox, 6)[0].is_complete


def test_a_file_that_is_still_open_for_writing_is_waited_for(home: Path, store: Store) -> None:
    with (home / "inbox" / "a.jsonl").open("w") as file:
        file.write("row\n")
        file.flush()
        inbox = _inbox(store)
        assert _scan(inbox, 0, 60)[0].lacks == "its writer to close it"
    assert _claim_all(inbox, 61) == ["a.jsonl"]


def test_a_member_added_to_a_folder_starts_the_wait_again(home: Path, store: Store) -> None:
    folder = home / "inbox" / "many"
    folder.mkdir()
    (folder / "1.jsonl").write_text("row\n")
    inbox = _inbox(store)
    _scan(inbox, 0)
    (folder / "2.jsonl").write_text("row\n")
    assert not _scan(inbox, 6)[0].is_complete
    assert _claim_all(inbox, 11) == ["many"]
    assert store.ledger.batches()[0].num_files == 2


def test_a_folder_with_a_partial_copy_is_waited_for(home: Path, store: Store) -> None:
    folder = home / "inbox" / "many"
    folder.mkdir()
    (folder / "1.jsonl").write_text("row\n")
    (folder / "2.jsonl.part").write_text("ro")
    inbox = _inbox(store)
    assert "2.jsonl.part" in _scan(inbox, 0, 60)[0].lacks
    (folder / "2.jsonl.part").rename(folder / "2.jsonl")
    assert _claim_all(inbox, 61, 66) == ["many"]


@pytest.mark.parametrize(
    "name", [".hidden", "a.part", "a.crdownload", "a~", "._a.jsonl", "Thumbs.db", ".syncthing.a.tmp", "a.swp", ".nfs01"]
)
def test_temporary_names_and_litter_are_no_drops(home: Path, store: Store, name: str) -> None:
    (home / "inbox" / name).write_text("row\n")
    assert _scan(_inbox(store), 0, 60) == []


def test_a_marker_completes_at_once_and_goes_away_with_the_drop(home: Path, store: Store) -> None:
    drop(home, "a.jsonl")
    inbox = _inbox(store, completion="marker")
    assert not _scan(inbox, 0, 60)[0].is_complete
    (home / "inbox" / "a.jsonl.done").touch()
    assert _claim_all(inbox, 61) == ["a.jsonl"]
    assert list((home / "inbox").iterdir()) == []


@pytest.mark.parametrize("newer", ["a.jsonl", ""])
def test_what_came_after_a_drop_was_taken_is_not_its_marker(home: Path, store: Store, newer: str) -> None:
    drop(home, "a.jsonl")
    (home / "inbox" / "a.jsonl").rename(store.spool / ("0" * 32 + "a.jsonl"))
    time.sleep(0.02)  # the clock of the disk ticks
    if newer:
        drop(home, newer, "another\n")
    (home / "inbox" / "a.jsonl.done").write_text("rows\n")
    _inbox(store).recover(NOW)
    assert (home / "inbox" / "a.jsonl.done").read_text() == "rows\n"


def test_a_folder_that_is_called_like_a_marker_is_not_removed(home: Path, store: Store) -> None:
    drop(home, "a.jsonl")
    (home / "inbox" / "a.jsonl.done").mkdir()
    (home / "inbox" / "a.jsonl.done" / "b.jsonl").write_text("row\n")
    assert _claim_all(_inbox(store), 0) == ["a.jsonl"]
    assert (home / "inbox" / "a.jsonl.done" / "b.jsonl").exists()


def test_a_manifest_completes_only_when_every_file_matches(home: Path, store: Store) -> None:
    folder = home / "inbox" / "many"
    folder.mkdir()
    (folder / "1.jsonl").write_text("row\n")
    entry = {"name": "1.jsonl", "size": 4, "sha256": hashlib.sha256(b"row\n").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": [entry, {**entry, "name": "2.jsonl"}]}))
    inbox = _inbox(store, completion="manifest")
    assert "manifest" in _scan(inbox, 0, 60)[0].lacks
    (folder / "2.jsonl").write_text("wor\n")
    assert "manifest" in _scan(inbox, 61, 70)[0].lacks
    (folder / "2.jsonl").write_text("row\n")
    assert _claim_all(inbox, 71, 80) == ["many"]


def test_the_same_content_under_another_name_is_a_duplicate(home: Path, store: Store) -> None:
    inbox = _inbox(store)
    drop(home, "a.jsonl")
    _claim_all(inbox, 0, 6)
    drop(home, "b.jsonl")
    _claim_all(inbox, 10, 16)
    assert _queued(store) == ["a.jsonl"]
    assert [row.name for row in store.ledger.duplicates()] == ["b.jsonl"]
    assert list((home / "inbox").iterdir()) == [] and list(store.spool.iterdir()) == []


def test_the_same_name_with_new_content_is_a_new_batch(home: Path, store: Store) -> None:
    inbox = _inbox(store)
    for second, content in ((0, "one\n"), (10, "two\n")):
        drop(home, "a.jsonl", content)
        _claim_all(inbox, second, second + 6)
    assert _queued(store) == ["a.jsonl", "a.jsonl"]


def test_a_symbolic_link_is_set_aside_itself_and_never_followed(home: Path, store: Store) -> None:
    outside = home.parent / "secret"
    outside.write_text("not for you\n")
    (home / "inbox" / "a.jsonl").symlink_to(outside)
    inbox = _inbox(store)
    assert _claim_all(inbox, 0) == []
    (entry,) = store.quarantined()
    assert entry.name == "a.jsonl" and "symbolic link" in entry.reason
    assert outside.read_text() == "not for you\n" and not outside.is_symlink()
    assert (_queued(store), inbox.num_set_aside) == ([], 1)


def test_a_folder_with_a_link_in_it_is_set_aside_whole(home: Path, store: Store) -> None:
    folder = home / "inbox" / "many"
    folder.mkdir()
    (folder / "1.jsonl").write_text("row\n")
    (folder / "2.jsonl").symlink_to("/etc/hostname")
    _claim_all(_inbox(store), 0, 6)
    (entry,) = store.quarantined()
    assert "2.jsonl" in entry.reason and (entry.path / "data" / "1.jsonl").read_text() == "row\n"


def test_a_named_pipe_is_set_aside_without_blocking(home: Path, store: Store) -> None:
    os.mkfifo(home / "inbox" / "pipe")
    _claim_all(_inbox(store), 0)
    assert ["regular file" in entry.reason for entry in store.quarantined()] == [True]


def test_a_hard_linked_drop_is_copied_so_that_the_other_name_cannot_change_it(home: Path, store: Store) -> None:
    other = home / "mine.jsonl"
    other.write_text("row\n")
    os.link(other, home / "inbox" / "a.jsonl")
    assert _claim_all(_inbox(store), 0, 6) == ["a.jsonl"]
    sha256 = store.ledger.batches()[0].sha256
    other.write_text("changed\n")
    files = [path for path in store.batch_path(sha256).rglob("*") if path.is_file()]
    assert [path.read_text() for path in files] == ["row\n"]
    assert not (home / "inbox" / "a.jsonl").exists()


class _OtherDisk(FileSystem):
    """Renames out of the inbox fail, as they do across mount points."""

    def rename(self, source: Path, target: Path) -> None:
        if source.parent.name == "inbox" and target.parent.name == "spool":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        super().rename(source, target)


def test_a_drop_on_another_disk_is_copied_and_then_removed(home: Path, store: Store) -> None:
    drop(home, "a.jsonl")
    (home / "inbox" / "many").mkdir()
    (home / "inbox" / "many" / "1.jsonl").write_text("other\n")
    with use(_OtherDisk()):
        assert _claim_all(_inbox(store), 0, 6) == ["a.jsonl", "many"]
    assert list((home / "inbox").iterdir()) == [] and list(store.spool.iterdir()) == []


def test_a_drop_that_changes_while_it_is_claimed_goes_back(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "a.jsonl", "half")
    inbox = _inbox(store)

    def write_on(path: Path) -> str:
        with path.open("a") as file:
            file.write(" and half\n")
        return ""

    monkeypatch.setattr("daemon.inbox.identity", write_on)
    assert _claim_all(inbox, 0, 6) == []
    assert (home / "inbox" / "a.jsonl").read_text() == "half and half\n"
    monkeypatch.undo()
    assert _claim_all(inbox, 7, 13) == ["a.jsonl"]


class _Picky(FileSystem):
    """Gives no file the name 2.jsonl."""

    def __init__(self, number: int) -> None:
        self._number = number

    def rename(self, source: Path, target: Path) -> None:
        if target.name == "2.jsonl":
            raise OSError(self._number, os.strerror(self._number), str(target))
        super().rename(source, target)


def _two_drops(place: Path, stamps: tuple[str, str] = ("", "")) -> None:
    """A folder with 2.jsonl in it, and a file behind it."""
    folder = place / f"{stamps[0]}a"
    folder.mkdir()
    (folder / "2.jsonl").write_text("row\n")
    (place / f"{stamps[1]}b.jsonl").write_text("next\n")


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EINVAL])
@pytest.mark.parametrize("is_spooled", [False, True])
def test_a_drop_that_cannot_be_stored_is_set_aside_and_the_next_one_is_claimed(
    home: Path, store: Store, number: int, is_spooled: bool
) -> None:
    inbox = _inbox(store)
    with use(_Picky(number)):
        if is_spooled:
            _two_drops(store.spool, ("0" * 32, "1" * 32))
            inbox.recover(NOW)
        else:
            _two_drops(home / "inbox")
            _claim_all(inbox, 0, 6)
    assert _queued(store) == ["b.jsonl"] and list(store.spool.iterdir()) == []
    (entry,) = store.quarantined()
    assert (entry.name, entry.reason.split(":")[0]) == ("a", "2.jsonl") and os.strerror(number) in entry.reason
    assert (entry.path / "data" / "2.jsonl").read_text() == "row\n" and inbox.num_set_aside == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.EACCES])
def test_what_every_drop_would_meet_blames_none_and_stops_the_claims(home: Path, store: Store, number: int) -> None:
    inbox = _inbox(store)
    _two_drops(home / "inbox")
    with use(_Picky(number)), pytest.raises(OSError, match=os.strerror(number)):
        _claim_all(inbox, 0, 6)
    assert store.quarantined() == [] and (_queued(store), len(list(store.spool.iterdir()))) == ([], 1)
    assert [claim.batch.name for claim in inbox.recover(NOW)] == ["a"]


class _CrashError(Exception):
    """The process dies here."""


class _CrashingDisk(FileSystem):
    """Dies at the k-th call that changes the disk."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _CrashError

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def fsync_path(self, path: Path) -> None:
        self._step()
        super().fsync_path(path)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def open_write(self, path: Path, mode: int) -> int:
        self._step()
        return super().open_write(path, mode)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_a_crash_at_any_step_of_a_claim_leaves_the_drop_to_be_claimed_once(
    tmp_path: Path, linked: bool, marked: bool
) -> None:
    home = make_home(tmp_path)
    for at in range(60):
        name, content = f"{at}.jsonl", f"row {at}\n"
        drop(home, name, content)
        if linked:
            os.link(home / "inbox" / name, home / f"{at}.other")
        if marked:
            (home / "inbox" / f"{name}.done").touch()
        died = False
        with Store.open(home) as store, use(_CrashingDisk(at)):
            try:
                _claim_all(_inbox(store), 0, 6)
            except _CrashError:
                died = True
        with Store.open(home) as store:
            store.recover(NOW)
            inbox = _inbox(store)
            inbox.recover(NOW)
            _claim_all(inbox, 10, 16)
            assert [row.name for row in store.ledger.batches()] == [f"{number}.jsonl" for number in range(at + 1)]
            assert list((home / "inbox").iterdir()) == [] and list(store.spool.iterdir()) == []
        if not died:
            return
    pytest.fail("a claim has no end")


def test_an_empty_folder_is_reported_and_left(home: Path, store: Store) -> None:
    (home / "inbox" / "empty").mkdir()
    inbox = _inbox(store)
    assert not _scan(inbox, 0, 60)[0].is_complete
    assert "empty" in inbox.problems[0] and (home / "inbox" / "empty").is_dir()


def test_an_unreadable_drop_is_reported_once_and_left(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "a.jsonl")
    real = os.access
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("a.jsonl") and real(path, mode))
    inbox = _inbox(store)
    assert not _scan(inbox, 0, 60)[0].is_complete
    assert ["permission" in problem for problem in inbox.problems] == [True]
    monkeypatch.undo()
    assert _claim_all(inbox, 61, 67) == ["a.jsonl"]


def _refuse_stat(monkeypatch: pytest.MonkeyPatch, name: str, number: int = errno.EACCES) -> None:
    """lstat(2) fails for paths that end so, as below a folder that may be listed but not searched."""
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)


def test_a_folder_that_may_be_listed_but_not_searched_is_reported_once_and_left(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "inbox" / "many" / "closed"
    folder.mkdir(parents=True)
    (folder / "1.jsonl").write_text("row\n")
    drop(home, "z.jsonl", "next\n")
    _refuse_stat(monkeypatch, "1.jsonl")
    inbox = _inbox(store)
    with capture_logs() as logs:
        assert _claim_all(inbox, 0, 6, 12) == ["z.jsonl"]
    assert inbox.problems == ["many: no permission to read closed/1.jsonl; let the service's user read it"]
    assert [line["batch_name"] for line in logs if line["event"] == INBOX_PROBLEM_FOUND] == ["many"]
    monkeypatch.undo()
    assert _claim_all(inbox, 13, 19) == ["many"]


def test_a_drop_that_cannot_be_looked_at_costs_no_other_one(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "z.jsonl"):
        drop(home, name, f"{name}\n")
    _refuse_stat(monkeypatch, "a.jsonl", errno.ENAMETOOLONG)
    inbox = _inbox(store)
    assert _claim_all(inbox, 0, 6) == ["z.jsonl"]
    assert "a.jsonl: it cannot be looked at: a.jsonl: File name too long" in inbox.problems[0]
    monkeypatch.undo()
    assert _claim_all(inbox, 7, 13) == ["a.jsonl"]


def test_a_manifest_that_no_parser_gets_through_costs_no_other_drop(home: Path, store: Store) -> None:
    for name, manifest in (("a", "[" * 100_000), ("b", "[]")):
        (home / "inbox" / name).mkdir()
        (home / "inbox" / name / "manifest.json").write_text(manifest)
    inbox = _inbox(store, completion="manifest")
    assert [(found.name, found.lacks) for found in _scan(inbox, 0, 60)] == [
        (name, "a manifest.json that matches") for name in "ab"
    ]
    assert inbox.problems == []


def test_a_drop_that_may_not_be_moved_is_reported_and_not_tried_for_ever(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "a.jsonl")
    inbox = _inbox(store)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    monkeypatch.setattr(durable, "move", refuse)
    assert _claim_all(inbox, 0, 6) == []
    assert not _scan(inbox, 7)[0].is_complete
    assert "cannot be moved" in inbox.problems[0]


def test_an_inbox_that_was_deleted_is_made_again(home: Path, store: Store) -> None:
    inbox = _inbox(store)
    _scan(inbox, 0)
    (home / "inbox").rmdir()
    assert _scan(inbox, 1) == []
    drop(home, "a.jsonl")
    assert _claim_all(inbox, 2, 8) == ["a.jsonl"]


def test_a_name_that_is_no_utf8_is_claimed_under_a_readable_one(home: Path, store: Store) -> None:
    (home / "inbox" / os.fsdecode(b"caf\xe9.jsonl")).write_text("row\n")
    assert _claim_all(_inbox(store), 0, 6) == ["caf\ufffd.jsonl"]


def test_a_very_long_name_is_claimed(home: Path, store: Store) -> None:
    (home / "inbox" / ("ä" * 127)).write_text("row\n")
    assert len(_claim_all(_inbox(store), 0, 6)) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "ä" * 127, os.fsdecode(b"\xe9" * 255)])
def test_a_spool_entry_leaves_room_for_names_made_from_it(name: str) -> None:
    assert len(entry_name(name).encode()) <= 232


def test_a_clock_that_jumps_back_only_delays(home: Path, store: Store) -> None:
    drop(home, "a.jsonl")
    inbox = _inbox(store)
    assert _claim_all(inbox, 1000, 0, 4) == []
    assert _claim_all(inbox, 5) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("entry", "name"),
    [("0" * 32 + "a.jsonl", "a.jsonl"), ("a.jsonl", "a.jsonl"), ("x" * 32 + "a", "x" * 32 + "a"), ("0" * 32, "0" * 32)],
)
def test_the_users_name_is_read_off_the_spool_entry(entry: str, name: str) -> None:
    assert spooled_name(entry) == name


def test_a_lease_tells_whether_a_file_is_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("w"):
        assert is_open_for_writing(path)
    assert not is_open_for_writing(path)
    with path.open():
        assert not is_open_for_writing(path)
    assert not is_open_for_writing(tmp_path / "missing")


def test_snapshots_of_an_untouched_folder_are_equal_and_survive_a_rename(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("row")
    before = snapshot(folder)
    assert snapshot(folder) == before and before.num_bytes == 3
    folder.rename(tmp_path / "moved")
    assert snapshot(tmp_path / "moved").same_content_as(before)


def test_watcher_wakes_for_a_rename_into_the_folder_and_not_for_a_scan(tmp_path: Path) -> None:
    woken: list[float] = []
    (tmp_path / "inbox").mkdir()
    watcher = Watcher(tmp_path / "inbox", "inotify", lambda: woken.append(0.0))
    watcher.start()
    try:
        (tmp_path / "a").write_text("row")
        (tmp_path / "a").rename(tmp_path / "inbox" / "a")
        wait_until(lambda: bool(woken))
        wait_until(lambda: not watcher._observer or watcher._observer.event_queue.empty())
        woken.clear()
        snapshot(tmp_path / "inbox")
        (tmp_path / "inbox" / "a").read_text()
        (tmp_path / "inbox" / "b").write_text("row")  # a fence: what the reading caused would come before it
        wait_until(lambda: bool(woken))
        assert len(woken) <= 4
    finally:
        watcher.stop()


def test_watcher_knows_that_its_folder_was_replaced(tmp_path: Path) -> None:
    root = tmp_path / "inbox"
    root.mkdir()
    watcher = Watcher(root, "inotify", lambda: None)
    watcher.start()
    try:
        assert watcher.is_healthy()
        root.rename(tmp_path / "before")  # removed, its inode may be the next folder's
        assert not watcher.is_healthy()
        root.mkdir()
        assert not watcher.is_healthy()
        watcher.start()
        assert watcher.is_healthy()
    finally:
        watcher.stop()


def test_watcher_that_polls_has_no_thread(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, "poll", lambda: None)
    watcher.start()
    assert watcher.is_polling and watcher.is_healthy()
    watcher.stop()


@pytest.mark.parametrize("err", [OSError(errno.ENOSPC, "no watches left"), RecursionError()])
def test_watcher_that_cannot_watch_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, err: Exception) -> None:
    def refuse(observer: BaseObserver) -> None:
        raise err

    monkeypatch.setattr(BaseObserver, "start", refuse)
    watcher = Watcher(tmp_path, "inotify", lambda: None)
    watcher.start()
    assert watcher.is_polling and watcher.is_healthy()
    watcher.stop()


def test_watcher_whose_library_has_gone_blind_knows_it_and_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(tmp_path, "inotify", lambda: None)
    watcher.start()
    try:
        assert watcher.is_healthy() and not watcher.is_polling
        monkeypatch.setattr(InotifyFD, "is_alive", lambda thread: False)
        assert not watcher.is_healthy()
        watcher.start()
        assert watcher.is_healthy() and watcher.is_polling
    finally:
        watcher.stop()


def test_watcher_of_a_folder_that_cannot_be_looked_at_polls_until_it_can(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "inbox", "auto", lambda: None)
    watcher.start()
    try:
        assert watcher.is_polling and watcher.is_healthy()
        (tmp_path / "inbox").mkdir()
        assert not watcher.is_healthy()
    finally:
        watcher.stop()


def test_a_local_folder_is_no_network_folder(tmp_path: Path) -> None:
    assert not is_network(tmp_path)


_ENTRY = {"name": "1.jsonl", "size": 0, "sha256": hashlib.sha256().hexdigest()}


@pytest.mark.parametrize(
    ("manifest", "is_complete"),
    [
        (json.dumps([_ENTRY]).encode(), True),
        (json.dumps([_ENTRY]).encode() + b" " * (5 << 20), False),
        (b'{"files": ' + b"[" * 100_000, False),
        (b'{"\xff": 1, "files": []}', False),
        (b'[{"name": ["1.jsonl"], "size": 0, "sha256": ""}]', False),
        (json.dumps([{**_ENTRY, "name": "../1.jsonl"}]).encode(), False),
        (b'{"files": 3}', False),
        (b"null", False),
    ],
)
def test_a_hostile_manifest_completes_nothing(tmp_path: Path, manifest: bytes, is_complete: bool) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest)
    (tmp_path / "1.jsonl").touch()
    assert manifest_matches(tmp_path) is is_complete
