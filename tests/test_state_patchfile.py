"""Which kind of patch wrote an entry stays with the entry."""

from pathlib import Path

import numpy as np
import pytest

from state import patchfile
from state.errors import StoreCorruptError
from state.patchfile import BOTH
from tests.state_world import make_store

ENTRIES = {
    "layer.0.weight": (np.array([2, 700, 70_000]), np.array([0.5, -3e-8, 1.0], np.float32)),
    "layer.1.weight": (np.array([0]), np.array([-2.0], np.float32)),
}
KINDS = {"layer.0.weight": np.array([1, 2, 3], np.uint8), "layer.1.weight": np.array([2], np.uint8)}


def test_kinds_come_back_with_their_entries_and_are_no_deltas(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        digest = patchfile.save(store, ENTRIES, {}, kinds=KINDS)
        for name, (indices, deltas) in patchfile.load(store, digest).items():
            assert indices.tolist() == ENTRIES[name][0].tolist() and deltas.tolist() == ENTRIES[name][1].tolist()
            assert deltas.dtype == np.float32
        told = patchfile.load_kinds(store, digest)
        assert set(told) == set(patchfile.load(store, digest)) == set(ENTRIES)
        for name, (indices, kinds) in told.items():
            assert (indices.tolist(), kinds.tolist()) == (ENTRIES[name][0].tolist(), KINDS[name].tolist())
            assert kinds.dtype == np.uint8


def test_without_kinds_every_entry_was_written_by_both(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        told = patchfile.load_kinds(store, patchfile.save(store, ENTRIES, {}))
    assert {name: set(kinds.tolist()) for name, (_, kinds) in told.items()} == {name: {BOTH} for name in ENTRIES}
    assert told["layer.0.weight"][0].tolist() == [2, 700, 70_000]


def test_other_kinds_are_another_patch(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        flipped = {**KINDS, "layer.1.weight": np.array([1], np.uint8)}
        digests = {patchfile.save(store, ENTRIES, {}, kinds=kinds) for kinds in (None, KINDS, flipped)}
    assert len(digests) == 3


def test_kinds_that_do_not_fit_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        with pytest.raises(ValueError):
            patchfile.save(store, ENTRIES, {}, kinds={**KINDS, "layer.0.weight": np.array([1], np.uint8)})
        assert list(store.patches.iterdir()) == []


def test_a_patch_without_entries_can_be_kept(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        digest = patchfile.save(store, {}, {"round": "r000001"})
        assert patchfile.load(store, digest) == {} and patchfile.load_kinds(store, digest) == {}
        assert patchfile.provenance(store, digest) == {"round": "r000001"}


@pytest.mark.parametrize("kept_bytes", [0, 7, 40, -1])
def test_a_cut_patch_is_named(tmp_path: Path, kept_bytes: int) -> None:
    with make_store(tmp_path) as store:
        digest = patchfile.save(store, ENTRIES, {}, kinds=KINDS)
        path = store.patch_path(digest)
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:kept_bytes])
        for load in (patchfile.load, patchfile.load_kinds):
            with pytest.raises(StoreCorruptError, match=digest[:12]):
                load(store, digest)
