"""A disk that is really full: a small tmpfs, filled to the last byte."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from state.store import Store
from state.verify import verify
from tests.disks import fill, mounted
from tests.state_world import NOW, content, drop, make_store, make_version, write_model


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", 6) as disk:
        yield disk


ROLLBACK = """
import sys
from state.store import Store
with Store.open(sys.argv[1]) as store:
    print(store.rollback(reason="bad", actor="tester", now="2026-01-02T03:04:05Z").name)
"""


def test_rollback_works_on_a_full_disk_with_the_service_dead(small_disk: Path) -> None:
    with make_store(small_disk) as store:
        make_version(store, 1)
        home = store.home
    filler = fill(small_disk)
    result = subprocess.run(
        [sys.executable, "-c", ROLLBACK, str(home)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert result.stdout == "v0\n", result.stderr
    assert (home / "models/current").readlink() == Path("v0")
    filler.unlink()
    with Store.open(home) as store:
        store.recover(NOW)
        assert store.held is not None and store.reserve_path.exists()
        assert verify(store, deep=True) == []


def test_rollback_works_on_a_full_disk_while_the_service_has_the_store_open(small_disk: Path) -> None:
    with make_store(small_disk) as store:
        make_version(store, 1)
        fill(small_disk)
        store.rollback(reason="bad", actor="tester", now=NOW)
        assert store.current().id == 0 and store.current_link.readlink() == Path("v0")


def test_a_claim_on_a_full_disk_fails_with_the_drop_untouched_and_works_later(small_disk: Path) -> None:
    with make_store(small_disk) as store:
        source = drop(store, "zorp\n" * 9, "one")
        filler = fill(small_disk)
        with pytest.raises(OSError) as caught:
            store.claim_batch(source, name="one", actor="tester", now=NOW)
        assert caught.value.errno == errno.ENOSPC and source.read_text() == "zorp\n" * 9
        filler.unlink()
        assert store.recover(NOW) == []
        store.claim_batch(source, name="one", actor="tester", now=NOW)
        assert content(store.batches).popitem()[1] == b"zorp\n" * 9 and verify(store) == []


def test_create_on_a_full_disk_fails_whole_and_works_later(small_disk: Path) -> None:
    base = write_model(small_disk / "base")
    filler = fill(small_disk)
    with pytest.raises(OSError):
        Store.create(small_disk / "home", base, actor="tester", now=NOW)
    filler.unlink()
    with make_store(small_disk) as store:
        assert verify(store, deep=True) == []
