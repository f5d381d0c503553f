"""Power is lost at every call of a store's life: every state that it may leave is whole. And the model would see it if not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from state.filesystem import Chunk
from tests.losing_disk import Disk, Image, states
from tests.power_loss import check_all, folder_in_memory, play


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where it can be: hundreds of homes are written."""
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as name:
        yield Path(name)


@pytest.mark.timeout(600)
def test_whatever_a_loss_of_power_leaves_every_promise_is_kept(folder: Path) -> None:
    story = play(folder, num_cycles=2)
    assert story.num_calls > 200 and story.kinds["ledger torn"] > 10
    tally = check_all(story, folder / "work")
    assert tally.broken == []
    assert tally.num_checked > 400


class _NoFileFlush(Disk):
    """Flushing a file does nothing."""

    def fsync(self, fd: int) -> None:
        self._on_call(self, "fsync")

    def fsync_path(self, path: Path) -> None:
        if path.is_dir():
            super().fsync_path(path)


class _NoFolderFlush(Disk):
    """Flushing a folder does nothing."""

    def fsync_path(self, path: Path) -> None:
        if not path.is_dir():
            super().fsync_path(path)


@pytest.mark.parametrize("careless", [_NoFileFlush, _NoFolderFlush])
def test_a_store_that_would_not_flush_is_caught(folder: Path, careless: type[Disk]) -> None:
    story = play(folder, 1, careless)
    assert check_all(story, folder / "work", until_broken=True).broken


def _on(folder: Path) -> tuple[Disk, list[Image]]:
    """A disk that holds one flushed file, and all the states seen before any call."""
    seen: list[Image] = []
    (folder / "old").write_bytes(b"old")
    return Disk(folder, lambda disk, _: seen.extend(image for _, image in states(disk, {}))), seen


def _write(disk: Disk, path: Path, data: Chunk) -> int:
    fd = disk.open_write(path, 0o600)
    disk.write(fd, data)
    return fd


def test_a_file_that_nobody_flushed_may_be_absent_empty_torn_or_full_of_zeros(folder: Path) -> None:
    disk, seen = _on(folder)
    disk.close(_write(disk, folder / "new", b"abcd"))
    disk.fsync_path(folder)
    assert {image.get("new") for image in seen} == {None, b"", b"ab", bytes(4), b"abcd"}
    assert all(image["old"] == b"old" for image in seen)


def test_what_was_flushed_with_its_folder_is_there(folder: Path) -> None:
    disk, seen = _on(folder)
    fd = _write(disk, folder / "new", b"abcd")
    disk.fsync(fd)
    disk.close(fd)
    disk.fsync_path(folder)
    seen.clear()
    disk.unlink(folder / "old")
    assert {image["new"] for image in seen} == {b"abcd"}


def test_a_rename_over_a_file_leaves_the_old_or_the_new_one_and_never_none(folder: Path) -> None:
    disk, seen = _on(folder)
    fd = _write(disk, folder / "new", b"abcd")
    disk.fsync(fd)
    disk.close(fd)
    disk.fsync_path(folder)
    disk.rename(folder / "new", folder / "old")
    seen.clear()
    disk.fsync_path(folder)
    assert {(image["old"], image.get("new")) for image in seen} == {(b"old", b"abcd"), (b"abcd", None)}


def test_of_a_move_whose_new_folder_alone_is_flushed_both_names_may_be_left(folder: Path) -> None:
    disk, seen = _on(folder)
    disk.mkdir(folder / "sub", 0o700)
    disk.fsync_path(folder)
    disk.rename(folder / "old", folder / "sub" / "old")
    disk.fsync_path(folder / "sub")
    seen.clear()
    disk.fsync_path(folder)
    assert {("old" in image, "sub/old" in image) for image in seen} == {(True, True), (False, True)}
