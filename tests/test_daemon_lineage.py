"""The recipe of a version: which patches and batches it is made of, and how it is made again without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from daemon.candidate import MergedEdits, keep_patch, sparse_entries
from daemon.config import ConfigError
from daemon.lineage import Lineage, claims, earlier_batches, ground_folder, lineage_of, remerge_edits, written
from daemon.probes import load
from patches.merge import SparseDelta, SparsePatch
from state.durable import remove_tree
from state.errors import StoreCorruptError
from state.store import Store
from state.tensors import ModelFolder
from tests.round_world import Home, config_of, opened, pairs
from tests.state_world import SHAPES, content, make_store, rebuilt, take_in

NAME = "layer.0.weight"
SIZES = {name: torch.Size(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make_store(tmp_path) as made:
        yield made


def _patch(seed: int, *, kind: int = 3, names: tuple[str, ...] = (NAME,)) -> SparsePatch:
    generator = torch.Generator().manual_seed(seed)
    patch = {}
    for name in names:
        indices = torch.randperm(SIZES[name].numel(), generator=generator)[:20].sort().values
        deltas = torch.randn(20, generator=generator)
        patch[name] = SparseDelta(indices, deltas, torch.full((20,), kind, dtype=torch.uint8))
    return patch


def test_rounds_are_added_at_the_end_and_taken_out_with_their_batch() -> None:
    recipe = Lineage((), ()).then("p1", "b1").then("p2", "b2").then("p3", "b3")
    assert recipe.to_dict() == {"patches": ["p1", "p2", "p3"], "batches": ["b1", "b2", "b3"]}
    assert recipe.without("p2") == Lineage(("p1", "p3"), ("b1", "b3"))
    assert recipe.without("p2").without("p1").without("p3") == Lineage((), ())


def test_a_consolidation_puts_one_patch_in_place_of_all_and_keeps_their_batches() -> None:
    recipe = Lineage((), ()).then("p1", "b1").then("p2", "b2").consolidated("p").then("p3", "b3")
    assert recipe == Lineage(("p", "p3"), ("b1", "b2", "b3"), num_together=2)
    assert recipe.to_dict() == {"patches": ["p", "p3"], "batches": ["b1", "b2", "b3"], "num_together": 2}
    assert recipe.without("p3") == Lineage(("p",), ("b1", "b2"), num_together=2)
    assert recipe.without("p") == Lineage(("p3",), ("b3",))
    assert recipe.without("p").without("p3") == Lineage((), ())
    assert recipe.without_batch("b1") == Lineage((), ("b2", "b3"))
    assert recipe.consolidated("q") == Lineage(("q",), ("b1", "b2", "b3"), num_together=3)


def test_rounds_start_from_the_base_or_from_an_import_also_where_its_folder_was_collected(
    store: Store, tmp_path: Path
) -> None:
    assert ground_folder(store, Lineage((), ()), tmp_path) == store.model_path(0)
    version = take_in(store, 1)
    recipe = Lineage((), (), version.id)
    assert ground_folder(store, recipe, tmp_path) == rebuilt(store, version.id)
    before = content(store.model_path(version.id))
    remove_tree(store.model_path(version.id))
    for _ in range(2):
        made = ground_folder(store, recipe, tmp_path)
        assert content(made) == before
        made.joinpath("half.safetensors").write_bytes(b"of a start that was killed")
    assert not store.model_path(version.id).exists()


def test_the_base_is_made_of_nothing(store: Store) -> None:
    assert lineage_of(store, 0) == Lineage((), ())


def test_claims_tell_the_two_kinds_of_patch_apart_over_all_rounds(store: Store) -> None:
    first, second = _patch(1, kind=1), _patch(2, kind=2, names=(NAME, "layer.1.weight"))
    recipe = Lineage((keep_patch(store, first, {}), keep_patch(store, second, {})), ("a", "b"))
    found = claims(store, recipe, SIZES)
    for number, patch in enumerate((first, second)):
        mask = found[NAME][number].flatten()
        assert mask.nonzero().flatten().tolist() == patch[NAME].indices.tolist()
        assert found[NAME][number].shape == SIZES[NAME]
    assert not found["layer.1.weight"][0].any() and found["layer.1.weight"][1].any()
    assert "embed.weight" not in found


def test_what_all_rounds_wrote_is_told_of_the_tensors_that_are_there(store: Store) -> None:
    first, second = _patch(1, kind=1), _patch(2, kind=2, names=(NAME, "layer.1.weight"))
    recipe = Lineage((keep_patch(store, first, {}), keep_patch(store, second, {})), ("a", "b"))
    found = written(store, recipe, {NAME: SIZES[NAME]})  # as where another tensor is no matrix of the decoder any more
    assert found.keys() == {NAME} and found[NAME].shape == SIZES[NAME]
    places = set(first[NAME].indices.tolist()) | set(second[NAME].indices.tolist())
    assert set(found[NAME].flatten().nonzero().flatten().tolist()) == places


def test_an_entry_that_both_wrote_is_claimed_by_both(store: Store) -> None:
    recipe = Lineage((keep_patch(store, _patch(1), {}),), ("a",))
    by_safety, by_over_safety = claims(store, recipe, SIZES)[NAME]
    assert torch.equal(by_safety, by_over_safety) and int(by_safety.sum()) == 20


def _merge(folder: ModelFolder, raw: dict[str, np.ndarray], patch: SparsePatch) -> None:
    """Onto ``raw`` in place, as rounds do it one after the other."""
    for name, (indices, deltas) in sparse_entries(patch).items():
        old = (raw[name][indices].astype(np.uint32) << 16).view(np.float32)
        raw[name][indices] = torch.tensor(old + deltas).bfloat16().view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2), (1, 2), (2, 0), ()])
def test_merging_again_gives_the_base_with_these_patches_in_this_order(store: Store, kept: tuple[int, ...]) -> None:
    patches = [_patch(seed, names=(NAME, "layer.1.weight")) for seed in (1, 2, 3)]
    digests = [keep_patch(store, patch, {}) for patch in patches]
    base = ModelFolder.open(store.model_path(0))
    parent, expected = (
        {name: np.array(base.read_raw(name)) for name in base.tensors},
        {name: np.array(base.read_raw(name)) for name in base.tensors},
    )
    for patch in patches:
        _merge(base, parent, patch)
    for number in kept:
        _merge(base, expected, patches[number])
    recipe = Lineage(tuple(digests[number] for number in kept), tuple("abc"[number] for number in kept))
    edits = remerge_edits(store, recipe, _on_disk(store, parent))
    for name, edit in edits.items():
        parent[name][edit.indices] = edit.values
    assert all(np.array_equal(parent[name], expected[name]) for name in expected)
    assert kept != (0, 1, 2) or edits == {}


def _on_disk(store: Store, raw: dict[str, np.ndarray]) -> ModelFolder:
    from state.materialize import build_folder
    from state.overlay import diff

    base = ModelFolder.open(store.model_path(0))
    edits = {name: diff(base.read_raw(name), values) for name, values in raw.items()}
    target = store.home / "merged"
    build_folder(base, {name: edit for name, edit in edits.items() if len(edit.indices)}, target)
    return ModelFolder.open(target)


def test_merge_edits_and_merging_again_round_alike(store: Store) -> None:
    patch = _patch(4)
    base = ModelFolder.open(store.model_path(0))
    edits = MergedEdits(base, sparse_entries(patch))
    again = remerge_edits(store, Lineage((keep_patch(store, patch, {}),), ("a",)), base)
    assert list(edits) == list(again)
    for name, edit in edits.items():
        assert np.array_equal(edit.indices, again[name].indices) and np.array_equal(edit.values, again[name].values)


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path) -> Iterator[Home]:
    with opened(tmp_path / "home", tiny_folder) as made:
        yield made


def test_earlier_batches_are_split_as_they_were_in_their_own_round(home: Home) -> None:
    sha256 = home.drop(1, count=40)
    before = earlier_batches(home.store, home.config, Lineage(("p",), (sha256,)), load(home.path, home.config))[sha256]
    home.config = config_of({"inbox": {"min_rows": 1000}})
    after = earlier_batches(home.store, home.config, Lineage(("p",), (sha256,)), load(home.path, home.config))[sha256]
    assert before.split == after.split and before.rows == after.rows


def test_an_earlier_batch_that_cannot_be_read_any_more_is_named_without_its_text(home: Home) -> None:
    sha256 = home.drop(1)
    (file,) = home.store.batch_path(sha256).iterdir()
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StoreCorruptError, match=f"{sha256[:12]}.* is not what was received") as told:
        earlier_batches(home.store, home.config, Lineage(("p",), (sha256,)), load(home.path, home.config))
    assert not any(prompt in str(told.value) for prompt, _ in pairs("how do I", 24, 1))


def test_an_earlier_batch_is_read_also_from_the_quarantine_and_named_when_it_is_missing(home: Home) -> None:
    sha256 = home.drop(1)
    home.store.quarantine_batch(sha256, reason="tried again", actor="test", now="2026-01-02T03:04:05Z")
    recipe, files = Lineage(("p",), (sha256,)), load(home.path, home.config)
    assert set(earlier_batches(home.store, home.config, recipe, files)) == {sha256}
    remove_tree(home.store.batch_content(sha256))
    with pytest.raises(StoreCorruptError, match=f"{sha256[:12]}.* is missing") as told:
        earlier_batches(home.store, home.config, recipe, files)
    assert "alignd revert" in told.value.hint


def test_settings_under_which_an_earlier_batch_cannot_be_read_are_to_blame_themselves(home: Home) -> None:
    sha256 = home.drop(1)
    config = config_of({"inbox": {"max_bytes": 10}})
    with pytest.raises(ConfigError, match=f"{sha256[:12]}.* under the settings"):
        earlier_batches(home.store, config, Lineage(("p",), (sha256,)), load(home.path, config))
