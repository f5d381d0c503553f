"""Writes are whole or absent; locks die with their holder."""

import errno
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from state import durable, filesystem, lock
from state.errors import LockedError
from tests.disks import make_deep


class Recorder(filesystem.FileSystem):
    """Notes the order of what matters, and can fail an fsync."""

    def __init__(self, *, fail_fsync: bool = False) -> None:
        self.calls: list[str] = []
        self._fail_fsync = fail_fsync

    def fsync(self, fd: int) -> None:
        self.calls.append("fsync")
        if self._fail_fsync:
            raise OSError(errno.EIO, "injected")

    def rename(self, source: Path, target: Path) -> None:
        self.calls.append("rename")
        super().rename(source, target)

    def fsync_path(self, path: Path) -> None:
        self.calls.append("fsync_path")


def test_a_file_is_flushed_then_renamed_then_its_folder_flushed(tmp_path: Path) -> None:
    with filesystem.use(Recorder()) as fs:
        durable.write_file(tmp_path / "a", [b"x", b"yz"], 0o640)
    assert fs.calls == ["fsync", "rename", "fsync_path"]
    assert (tmp_path / "a").read_bytes() == b"xyz"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("is_copied", [True, False])
def test_the_disk_begins_with_each_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_copied: bool) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(durable, "FLUSH_BYTES", 10)
    monkeypatch.setattr(durable, "COPY_CHUNK_BYTES", 4)
    monkeypatch.setattr(filesystem.FileSystem, "begin_flush", lambda _, fd, start, num: begun.append((start, num)))
    content = bytes(range(25))
    if is_copied:
        (tmp_path / "a").write_bytes(content)
        durable.copy_file(tmp_path / "a", tmp_path / "b", 0o600)
    else:
        durable.write_file(tmp_path / "b", [content[start : start + 4] for start in range(0, 25, 4)])
    assert (tmp_path / "b").read_bytes() == content
    assert begun == [(0, 12), (12, 12)]  # the rest at the end


def test_a_disk_that_cannot_begin_early_is_flushed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "injected")

    monkeypatch.setattr(durable, "FLUSH_BYTES", 1)
    monkeypatch.setattr(os, "posix_fadvise", refuse)
    with filesystem.use(Recorder()) as fs:
        durable.write_file(tmp_path / "a", b"xyz")
    assert fs.calls == ["fsync", "rename", "fsync_path"] and (tmp_path / "a").read_bytes() == b"xyz"


def test_a_failed_flush_is_not_retried_and_leaves_the_old_file(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "a", b"old")
    with filesystem.use(Recorder(fail_fsync=True)) as fs, pytest.raises(OSError, match="injected"):
        durable.write_file(tmp_path / "a", b"new")
    assert fs.calls == ["fsync"]
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_rewritten_file_has_a_new_inode_so_an_open_one_stays_whole(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "a", b"old")
    with (tmp_path / "a").open("rb") as reader:
        durable.write_file(tmp_path / "a", b"new")
        assert reader.read() == b"old"


def test_a_short_write_is_seen_by_the_size_check(tmp_path: Path) -> None:
    class Liar(filesystem.FileSystem):
        def write(self, fd: int, data: filesystem.Chunk) -> int:
            os.write(fd, bytes(data)[:-1])
            return len(data)

    with filesystem.use(Liar()), pytest.raises(OSError, match="1 bytes on disk after writing 2"):
        durable.write_file(tmp_path / "a", b"xy")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_falls_back_where_the_kernel_cannot_copy(tmp_path: Path) -> None:
    class NoRange(filesystem.FileSystem):
        def copy_range(self, source_fd: int, target_fd: int, num_bytes: int) -> int:
            raise OSError(errno.EXDEV, "injected")

    (tmp_path / "a").write_bytes(b"z" * (3 << 20))
    with filesystem.use(NoRange()):
        assert durable.copy_file(tmp_path / "a", tmp_path / "b") == 3 << 20
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_copy_takes_no_link_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError):
            durable.copy_file(tmp_path / name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_file_may_have_the_longest_name_there_is(tmp_path: Path) -> None:
    durable.write_file(tmp_path / ("a" * 255), b"x")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x"]


def test_a_move_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        durable.move(tmp_path / "a", tmp_path / "b")


def test_removing_a_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "link").symlink_to(tmp_path / "kept")
    durable.remove_tree(tmp_path / "tree")
    durable.remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept" / "file").exists()


def test_removing_a_tree_minds_no_depth(tmp_path: Path) -> None:
    (make_deep(tmp_path / "tree") / "file").write_text("x")
    durable.remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        durable.write_json(tmp_path / "a", {"loss": float("nan")})


HOLDER = """
import sys, time
from pathlib import Path
from state import lock
with lock.hold(Path(sys.argv[1]), "long work"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_leaves_no_stale_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert lock.holder(path) == (process.pid, "long work")
        with pytest.raises(LockedError, match=f"process {process.pid} \\(long work\\)"), lock.hold(path, "x"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.holder(path) is None
    with lock.hold(path, "x"):
        pass


def test_what_is_kept_cannot_be_taken_and_what_is_taken_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with lock.kept(folder) as first, lock.kept(folder) as second:
        assert (first, second, lock.is_taken(folder)) == (True, True, True)
    with lock.taken(folder) as is_ours, ThreadPoolExecutor(1) as pool:
        assert is_ours
        waiting = pool.submit(lambda: lock.kept(folder).__enter__())
        folder.rename(tmp_path / "doomed")  # as garbage collection does it
        assert waiting.result(20) is False


def test_a_lock_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    import threading

    with lock.hold(tmp_path / "lock", "first"):
        entered = threading.Event()

        def second() -> None:
            with lock.hold(tmp_path / "lock", "second", wait_s=20):
                entered.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.1)
    thread.join()
    assert entered.is_set()
