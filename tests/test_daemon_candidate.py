"""A merged patch becomes bytes: each entry rounded once, what does not change left out, the patch kept with its kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from daemon.candidate import MergedEdits, keep_patch, sparse_entries, touched, write_candidate
from patches.merge import SparseDelta
from state import overlay, patchfile
from state.overlay import Edit
from state.store import Store
from state.tensors import ModelFolder, from_float32, to_float32
from tests.state_world import SHAPES, content, make_store, write_model

NAME = "layer.0.weight"


def _delta(indices: list[int], deltas: list[float], kinds: list[int] | None = None) -> SparseDelta:
    return SparseDelta(
        torch.tensor(indices, dtype=torch.int64),
        torch.tensor(deltas, dtype=torch.float32),
        torch.tensor(kinds or [3] * len(indices), dtype=torch.uint8),
    )


def _entries(indices: list[int], deltas: list[float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {NAME: (np.array(indices, np.int64), np.array(deltas, np.float32))}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_each_entry_is_parent_plus_delta_in_float32_rounded_once(tmp_path: Path, dtype: str) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base", dtype=dtype))
    old = torch.tensor(to_float32(np.array(parent.read_raw(NAME)), dtype))
    deltas = [0.25, -1.0, 0.0123]
    edit = MergedEdits(parent, _entries([0, 5, 99], deltas))[NAME]
    kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    expected = (old[[0, 5, 99]] + torch.tensor(deltas)).to(kind)
    assert edit.indices.tolist() == [0, 5, 99]
    assert torch.equal(torch.tensor(to_float32(edit.values, dtype)), expected.float())


def test_entries_that_round_to_no_change_are_left_out(tmp_path: Path) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base", dtype="BF16"))
    assert MergedEdits(parent, _entries([1, 2], [1e-12, -1e-12]))[NAME].indices.tolist() == []
    assert MergedEdits(parent, _entries([1, 2], [1e-12, 1.0]))[NAME].indices.tolist() == [2]


def test_empty_tensors_of_a_patch_are_left_out() -> None:
    patch = {"a": _delta([], []), "b": _delta([4], [0.5])}
    assert list(sparse_entries(patch)) == ["b"]
    indices, deltas = sparse_entries(patch)["b"]
    assert (indices.tolist(), deltas.tolist()) == ([4], [0.5])
    assert indices.dtype == np.int64 and deltas.dtype == np.float32


def test_touched_counts_entries_of_the_whole_model(tmp_path: Path) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base"))
    total = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert touched(parent, {NAME: 3}) == {"num_entries": 3, "fraction": 3 / total, "per_tensor": {NAME: 3}}
    assert touched(parent, {})["fraction"] == 0


def test_kinds_are_kept_only_where_they_say_something(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        both = keep_patch(store, {NAME: _delta([1, 2], [0.5, 0.5])}, {})
        mixed = keep_patch(store, {NAME: _delta([1, 2], [0.5, 0.5], [1, 2])}, {})
        assert both != mixed
        assert patchfile.load_kinds(store, both)[NAME][1].tolist() == [3, 3]
        assert patchfile.load_kinds(store, mixed)[NAME][1].tolist() == [1, 2]
        assert store.patch_path(both).stat().st_size < store.patch_path(mixed).stat().st_size


def _written(store: Store, scratch: Path) -> dict[str, bytes]:
    edits = MergedEdits(ModelFolder.open(store.model_path(0)), _entries([0, 7], [0.5, -0.5]))
    made = write_candidate(store, 0, scratch, edits=edits, patch="abc")
    assert made.patch == "abc" and made.touched["num_entries"] == 2
    folder = ModelFolder.open(made.model)
    raw = np.array(ModelFolder.open(store.model_path(0)).read_raw(NAME))
    raw[[0, 7]] = from_float32(to_float32(raw[[0, 7]], "BF16") + np.array([0.5, -0.5], np.float32), "BF16")
    assert np.array_equal(folder.read_raw(NAME), raw)
    assert set(made.digests.files) == set(content(made.model))
    assert overlay.read(made.overlay).metadata == {"parent": "v0"}
    return {**content(made.model), "overlay": made.overlay.read_bytes()}


def test_a_candidate_is_started_again_from_nothing_when_half_of_one_is_there(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        scratch = store.scratch("r000001")
        scratch.mkdir()
        first = _written(store, scratch)
        (scratch / "candidate" / "config.json").unlink()
        (scratch / "candidate" / "junk").write_text("left by a crash")
        assert _written(store, scratch) == first
        assert content(store.model_path(0)) == content(tmp_path / "base")


def test_of_a_tensor_in_which_nothing_changes_the_overlay_says_nothing(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        scratch = store.scratch("r000001")
        scratch.mkdir()
        edits = MergedEdits(ModelFolder.open(store.model_path(0)), _entries([1, 2], [1e-12, -1e-12]))
        made = write_candidate(store, 0, scratch, edits=edits, patch=None)
        assert content(made.model) == content(store.model_path(0))
        assert list(overlay.read(made.overlay)) == [] and made.touched["per_tensor"] == {}


def test_each_edit_is_looked_up_once(tmp_path: Path) -> None:
    seen: list[str] = []

    class Counted(MergedEdits):
        def __getitem__(self, name: str) -> Edit:
            seen.append(name)
            return super().__getitem__(name)

    with make_store(tmp_path) as store:
        scratch = store.scratch("r000001")
        scratch.mkdir()
        parent = ModelFolder.open(store.model_path(0))
        entries = {name: (np.array([0]), np.array([1.0], np.float32)) for name in parent.tensors}
        write_candidate(store, 0, scratch, edits=Counted(parent, entries), patch=None)
        assert sorted(seen) == sorted(parent.tensors)


def test_a_candidate_without_edits_is_its_parent(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        scratch = store.scratch("r000001")
        scratch.mkdir()
        made = write_candidate(store, 0, scratch, edits={}, patch=None)
        assert content(made.model) == content(store.model_path(0)) and made.touched["fraction"] == 0
