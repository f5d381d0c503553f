"""Power is lost at every call of a store's life: every state that it may leave is whole. And the model would see it if not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import pytest

from state.filesystem import Chunk
from state.queue import Queue
from state.store import Store
from tests.disk_states import Image, states
from tests.losing_disk import Disk
from tests.power_loss import Plan, folder_in_memory, sweep_creation, sweep_kills, sweep_life


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where it can be: hundreds of homes are written."""
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as name:
        yield Path(name)


@pytest.mark.timeout(600)
def test_whatever_a_loss_of_power_leaves_of_a_life_every_promise_is_kept(folder: Path) -> None:
    tally = sweep_life(folder, Plan(num_cycles=2))
    assert tally.calls.total() > 400 and tally.calls["transaction"] > 30
    assert any(kind.startswith("ledger: checkpoint") for kind in tally.kinds)
    assert tally.broken == []
    assert tally.num_checked > 1000


@pytest.mark.timeout(600)
def test_whatever_a_loss_of_power_leaves_of_a_creation_the_store_is_there_or_can_be_made(folder: Path) -> None:
    tally = sweep_creation(folder)
    assert tally.broken == []
    assert tally.num_checked > 20


@pytest.mark.timeout(600)
def test_what_a_killed_process_had_not_flushed_is_made_durable_by_the_next(folder: Path) -> None:
    tally = sweep_kills(folder, Plan(num_cycles=1, every=3))
    assert tally.broken == []
    assert tally.num_checked > 50


class _NoFileFlush(Disk):
    """Flushing a file does nothing."""

    def fsync(self, fd: int) -> None:
        self.on_call(self, "fsync")

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
    assert sweep_life(folder, Plan(disk=careless, until_broken=True)).broken


@pytest.mark.parametrize(
    "careless",
    [
        pytest.param(lambda: patch.object(Store, "_flush_names", lambda store: None), id="names of the dead"),
        pytest.param(
            lambda: patch.object(Queue, "_claimed_before", lambda store, source: None), id="claims of the dead"
        ),
    ],
)
def test_a_recovery_that_would_not_look_after_the_dead_is_caught(
    folder: Path, careless: Callable[[], AbstractContextManager[object]]
) -> None:
    with careless():
        assert sweep_kills(folder, Plan(num_cycles=1, until_broken=True)).broken


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
    assert {image.get("new") for image in seen} == {None, b"", b"ab", bytes(4), b"a\0cd", b"abcd"}
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
