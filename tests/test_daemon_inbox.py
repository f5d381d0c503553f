"""Drops are claimed when they are complete, once, and are never lost."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.arrival import is_open_for_writing, snapshot
from daemon.inbox import Drop, Inbox
from daemon.spool import spooled_name
from daemon.watcher import Watcher, is_network
from state import durable
from state.filesystem import FileSystem, use
from state.store import Store
from tests.fakes_service import NOW, drop, fast_config, make_home, utc, wait_until

START = utc()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


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


@pytest.mark.parametrize("linked", [False, True])
def test_a_crash_at_any_step_of_a_claim_leaves_the_drop_to_be_claimed_once(tmp_path: Path, linked: bool) -> None:
    home = make_home(tmp_path)
    for at in range(60):
        name, content = f"{at}.jsonl", f"row {at}\n"
        drop(home, name, content)
        if linked:
            os.link(home / "inbox" / name, home / f"{at}.other")
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
            assert [row.name for row in store.ledger.batches() if row.name == name] == [name], at
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
        root.rmdir()
        assert not watcher.is_healthy()
        (tmp_path / "x").mkdir()
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


def test_a_local_folder_is_no_network_folder(tmp_path: Path) -> None:
    assert not is_network(tmp_path)
