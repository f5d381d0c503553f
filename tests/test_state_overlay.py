"""Overlays, patches and model folders made of them."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from state import apply_overlay, gaps, materialize, overlay, patchfile
from state.batches import file_sha256
from state.digests import Digests, Kind, Kinds, is_of_file
from state.errors import StoreCorruptError
from state.overlay import Edit
from state.tensors import ModelFolder
from tests.state_world import (
    content,
    folder_digests,
    make_store,
    make_version,
    mixed_digests,
    old_digests,
    some_edits,
    write_model,
)


def edit(indices: list[int], values: list[int], dtype: str = "u2") -> Edit:
    return Edit(np.array(indices, np.int64), np.array(values, dtype))


positions = st.lists(st.integers(0, 5000), unique=True, max_size=60).map(sorted)


@given(positions)
def test_positions_survive_the_gap_stream(indices: list[int]) -> None:
    assert gaps.decode(gaps.encode(np.array(indices, np.int64))).tolist() == indices


def test_gaps_around_255_are_exact() -> None:
    for gap in (0, 1, 253, 254, 255, 256, 509, 510, 511, 100_000):
        indices = [gap, 2 * gap + 1, 2 * gap + 2]
        assert gaps.decode(gaps.encode(np.array(indices))).tolist() == indices
    assert gaps.encode(np.array([254])).tolist() == [254]
    assert gaps.encode(np.array([255])).tolist() == [255, 0]


@pytest.mark.parametrize("indices", [[1, 1], [2, 1], [-1, 3]])
def test_positions_that_do_not_rise_are_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="rising"):
        gaps.encode(np.array(indices))


def test_a_stream_that_ends_in_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="middle of a gap"):
        gaps.decode(np.array([3, 255], np.uint8))


@given(
    st.dictionaries(st.text('ab.é"', min_size=1, max_size=5), st.tuples(positions, st.sampled_from(["u1", "u2", "u4"])))
)
def test_an_overlay_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[list[int], str]]
) -> None:
    path = tmp_path_factory.mktemp("overlay") / "o.safetensors"
    edits = {name: edit(ix, [i % 251 for i in ix], dtype) for name, (ix, dtype) in tensors.items()}
    overlay.write(path, edits, {"parent": "v0"})
    back = overlay.read(path)
    assert set(back) == set(edits) and back.metadata == {"parent": "v0"}
    for name in edits:
        assert np.array_equal(back[name].indices, edits[name].indices)
        assert np.array_equal(back[name].values, edits[name].values)
        assert back[name].values.dtype == edits[name].values.dtype


def test_equal_edits_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    edits = {"b": edit([3, 900], [1, 2]), "a": edit([0], [7], "u4"), "c": edit([1], [3])}
    digests = {
        overlay.write(tmp_path / f"{n}", {name: edits[name] for name in order}, {"y": "1", "x": "2"})
        for n, order in enumerate(["abc", "cba", "bca"])
    }
    assert len(digests) == 1 and len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_an_overlay_is_a_safetensors_file(tmp_path: Path) -> None:
    overlay.write(tmp_path / "o", {"w": edit([3, 300], [1, 2]), "v": edit([0], [7], "u4")}, {"parent": "v0"})
    back = load_file(tmp_path / "o")
    assert back["w.steps"].tolist() == [3, 255, 41] and back["w.values"].tolist() == [1, 2]
    assert back["v.values"].dtype == np.uint32


def many_edits() -> dict[str, Edit]:
    """So many that packing saves something: a twentieth of 40,000 normal weights in bf16, and of as many in float32."""
    draw = np.random.default_rng(2)
    weights = draw.normal(0, 0.02, 40_000).astype(np.float32).view(np.uint32)
    indices = np.flatnonzero(draw.random(len(weights)) < 0.05)
    return {"v": Edit(indices, weights[indices]), "w": Edit(indices, (weights[indices] >> 16).astype(np.uint16))}


def write_plainly(path: Path, edits: dict[str, Edit]) -> None:
    """As overlays were written before they were packed."""
    with gaps.GapWriter(path, {"parent": "v0"}) as out:
        for name, each in edits.items():
            out.add(name, each.indices, each.values)


def test_a_packed_overlay_is_smaller_and_says_the_same_as_a_plain_one(tmp_path: Path) -> None:
    edits = many_edits()
    write_plainly(tmp_path / "plain", edits)
    overlay.write(tmp_path / "packed", edits, {"parent": "v0"})
    assert set(load_file(tmp_path / "plain")) == {"v.steps", "v.values", "w.steps", "w.values"}
    assert set(load_file(tmp_path / "packed")) == {
        "v.steps.zlib", "v.values.U32.zlib", "w.steps.zlib", "w.values.U16.zlib"
    }  # fmt: skip
    assert (tmp_path / "packed").stat().st_size < 0.85 * (tmp_path / "plain").stat().st_size
    for name in ("plain", "packed"):
        back = overlay.read(tmp_path / name)
        assert set(back) == set(edits) and back.metadata == {"parent": "v0"}
        for key, each in edits.items():
            assert np.array_equal(back[key].indices, each.indices) and back[key].values.dtype == each.values.dtype
            assert back[key].values.tobytes() == each.values.tobytes()


@pytest.mark.parametrize("keys", [
    {"w.steps.zlib": "u1", "w.steps": "u1", "w.values": "u2"}, {"w.steps.zlib": "u1"}, {"w.steps": "u1"},
    {"w.steps.zlib": "u1", "w.values.zlib": "u1"}, {"w.steps.zlib": "u2", "w.values": "u2"},
    {"w.steps": "u1", "w.values.U16.zlib": "u2"}, {"w.steps": "u1", "w.values.F64.zlib": "u1"}, {"zim": "u1"},
])  # fmt: skip
def test_lists_that_do_not_pair_up_are_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    save_file({key: np.array([1], dtype) for key, dtype in keys.items()}, tmp_path / "o")
    with pytest.raises(StoreCorruptError, match=str(tmp_path / "o")):
        overlay.read(tmp_path / "o")


def test_packed_positions_for_other_values_are_refused(tmp_path: Path) -> None:
    overlay.write(tmp_path / "o", many_edits(), {})
    parts = load_file(tmp_path / "o")
    for key, other in (("w.steps.zlib", "v.values.U32.zlib"), ("w.values.U16.zlib", "v.values.U32.zlib")):
        save_file(parts | {key: parts[other]}, tmp_path / "odd")
        with pytest.raises(StoreCorruptError, match="odd: w: "):
            overlay.read(tmp_path / "odd")["w"]


@pytest.mark.parametrize(
    ("write", "number"), [(overlay.write, 2), (lambda path, edits, _: write_plainly(path, edits), 1)]
)
def test_the_script_that_goes_out_with_an_overlay_applies_packed_and_plain_ones(
    tmp_path: Path, write: Callable[[Path, dict[str, Edit], dict[str, str]], object], number: int
) -> None:
    base, folder = tmp_path / "base", tmp_path / "overlay"
    base.mkdir()
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {
        "v": np.ones(40_000, np.float32),
        "w": np.ones(40_000, np.float16),
        "x": np.ones(3, np.float16),
    }
    save_file(tensors, base / "model.safetensors")
    write(folder / apply_overlay.OVERLAY, many_edits(), {})
    wanted = {name: value.copy() for name, value in tensors.items()}
    for name, each in many_edits().items():
        wanted[name].view(each.values.dtype)[each.indices] = each.values
    save_file(wanted, tmp_path / "wanted")
    manifest = {
        "format_version": number,
        "overlay": {"sha256": file_sha256(folder / apply_overlay.OVERLAY)},
        "base": {"files": {"model.safetensors": file_sha256(base / "model.safetensors")}},
        "result": {"files": {"model.safetensors": file_sha256(tmp_path / "wanted")}},
    }
    (folder / apply_overlay.MANIFEST).write_text(json.dumps(manifest))
    assert apply_overlay.apply(base, folder, tmp_path / "out") == 1
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "wanted").read_bytes()
    (folder / apply_overlay.MANIFEST).write_text(json.dumps(manifest | {"format_version": 3}))
    with pytest.raises(apply_overlay.ApplyError, match="format_version 3; this script knows 1 and 2"):
        apply_overlay.apply(base, folder, tmp_path / "again")


def test_an_overlay_of_five_percent_of_bf16_is_under_twelve_percent_of_the_model(tmp_path: Path) -> None:
    num_entries = 400_000
    rng = np.random.default_rng(0)
    indices = np.flatnonzero(rng.random(num_entries) < 0.05)
    overlay.write(tmp_path / "o", {"w": Edit(indices, rng.integers(0, 2**16, len(indices), np.uint16))}, {})
    assert (tmp_path / "o").stat().st_size <= 0.12 * 2 * num_entries


def test_an_overlay_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rising"):
        overlay.write(tmp_path / "o", {"a": edit([1], [1]), "b": edit([2, 1], [1, 1])}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:30], lambda data: b"\0" * 9 + data])
def test_a_cut_overlay_is_named(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "o"
    overlay.write(path, {"a": edit([1], [1])}, {})
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(damage(data))  # type: ignore[operator]
    with pytest.raises(StoreCorruptError, match=str(path)):
        overlay.read(path)


def test_diff_and_join_do_what_the_edits_did_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    states = [rng.integers(0, 3, 200).astype(np.uint16) for _ in range(4)]
    edits = [overlay.diff(before, after) for before, after in itertools.pairwise(states)]
    result = states[0].copy()
    joined = overlay.join(edits)
    result[joined.indices] = joined.values
    assert np.array_equal(result, states[-1]) and bool((np.diff(joined.indices) > 0).all())


def test_diff_tells_minus_zero_from_zero() -> None:
    assert overlay.diff(np.array([0], "u2"), np.array([0x8000], "u2")).indices.tolist() == [0]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_built_folder_has_exactly_the_edits(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.tensors.CHUNK_BYTES", 24)
    parent = ModelFolder.open(write_model(tmp_path / "base", dtype=dtype))
    edits = some_edits(parent, 3, ("embed.weight", "layer.1.weight"))
    digests = materialize.build_folder(parent, edits, tmp_path / "child")
    child = ModelFolder.open(tmp_path / "child")
    for name in parent.tensors:
        expected = np.array(parent.read_raw(name))
        if name in edits:
            expected[edits[name].indices] = edits[name].values
        assert np.array_equal(child.read_raw(name), expected)
    assert digests == folder_digests(child)
    assert child.tensors == parent.tensors and set(child.files) == set(parent.files)


def test_known_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base"))
    known = folder_digests(parent)
    edits = some_edits(parent, 3, ("embed.weight",))
    digests = materialize.build_folder(parent, edits, tmp_path / "child", known=known)
    assert digests == folder_digests(ModelFolder.open(tmp_path / "child"))
    assert digests.tensors["embed.weight"] != known.tensors["embed.weight"]


@pytest.mark.parametrize("of", [old_digests, mixed_digests])
def test_what_was_begun_with_one_kind_of_digest_goes_on_with_it(
    tmp_path: Path, of: Callable[[ModelFolder], Digests]
) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base"))
    edits = some_edits(parent, 3, ("embed.weight",))
    digests = materialize.build_folder(parent, edits, tmp_path / "child", known=of(parent))
    child = ModelFolder.open(tmp_path / "child")
    assert digests == of(child)
    changed = [name for name in child.tensors if digests.tensors[name] != of(parent).tensors[name]]
    assert changed == ["embed.weight"]


@pytest.mark.parametrize(("kind", "expected"), [("sha256", old_digests), ("blake3", folder_digests)])
def test_digests_are_of_the_kind_that_is_asked_for_and_of_tensors_only_where_they_are(
    tmp_path: Path, kind: Kind, expected: Callable[[ModelFolder], Digests]
) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base"))
    edits = some_edits(parent, 3, ("embed.weight",))
    digests = materialize.build_folder(parent, edits, tmp_path / "child", kinds=Kinds(kind, tensors=None))
    child = ModelFolder.open(tmp_path / "child")
    assert digests == Digests(expected(child).files)
    assert materialize.digests_of(parent, edits, Kinds(kind, kind)) == expected(child)
    with_sha256 = materialize.digests_of(parent, edits, Kinds(kind, None, with_sha256=True))
    assert with_sha256 == Digests(expected(child).files, sha256=old_digests(child).files)
    for name, path in child.files.items():
        assert is_of_file(path, digests.files[name]) and not is_of_file(path, digests.files[name][:-1])


def test_files_are_built_at_the_same_time_each_edit_is_looked_up_once_and_a_fault_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    parent = ModelFolder.open(write_model(tmp_path / "base"))
    shards = {parent.tensors[name].file: name for name in parent.tensors}
    assert len(shards) == 2
    both, asked = threading.Barrier(2, timeout=30), list[str]()

    class Slow(dict[str, Edit]):
        def __getitem__(self, name: str) -> Edit:
            asked.append(name)
            both.wait()  # passes only when the other file is being built too
            return super().__getitem__(name)

        def get(self, name: str, default: Any = None) -> Any:
            return super().get(name, default) if name not in self else self[name]

    edits = Slow(some_edits(parent, 3, tuple(shards.values())))
    digests = materialize.build_folder(parent, edits, tmp_path / "child")
    assert digests == folder_digests(ModelFolder.open(tmp_path / "child"))
    assert sorted(asked) == sorted(shards.values())
    assert list(digests.files) == list(parent.files) and list(digests.tensors) == list(parent.tensors)
    bad = {name: edit([10**6], [1]) for name in shards.values()}
    with pytest.raises(ValueError, match="outside its"):
        materialize.build_folder(parent, bad, tmp_path / "another")
    assert not list((tmp_path / "another").rglob("*.safetensors"))


def test_no_edits_give_the_same_bytes(tmp_path: Path) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base"))
    materialize.build_folder(parent, {}, tmp_path / "child")
    assert content(tmp_path / "child") == content(tmp_path / "base")


@pytest.mark.parametrize(
    ("edits", "what"),
    [
        ({"nobody": edit([0], [1])}, "no tensor nobody"),
        ({"norm.weight": edit([8], [1])}, "outside its 8 entries"),
        ({"norm.weight": edit([1], [1], "u4")}, "needs uint16"),
        ({"norm.weight": edit([1, 2], [1])}, "2 positions, 1 values"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(tmp_path: Path, edits: dict[str, Edit], what: str) -> None:
    parent = ModelFolder.open(write_model(tmp_path / "base"))
    with pytest.raises(ValueError, match=what):
        materialize.build_folder(parent, edits, tmp_path / "child")


BIG = """
import sys
from pathlib import Path
from state import materialize
from state.tensors import ModelFolder
materialize.build_folder(ModelFolder.open(Path(sys.argv[1])), {}, Path(sys.argv[2]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    from tests.state_world import write_shard

    folder = write_model(tmp_path / "base")
    (folder / "model.safetensors.index.json").unlink()
    for shard in folder.glob("model-*"):
        shard.unlink()
    write_shard(folder / "model.safetensors", {"w": np.zeros(100 << 20, np.uint16)}, "BF16")
    result = subprocess.run(
        [sys.executable, "-c", BIG, str(folder), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, cwd=Path.cwd(),
    )  # fmt: skip
    assert int(result.stdout) < 120 << 10


def test_a_patch_is_kept_under_the_digest_of_its_bytes_once(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    entries = {"w": (np.array([2, 700]), np.array([0.5, -3e-8], np.float32))}
    digest = patchfile.save(store, entries, {"batch": "b1", "seed": "7"})
    assert patchfile.save(store, entries, {"seed": "7", "batch": "b1"}) == digest
    assert [path.name for path in store.patches.iterdir()] == [f"{digest}.safetensors"]
    back = patchfile.load(store, digest)
    assert back["w"][0].tolist() == [2, 700] and np.array_equal(back["w"][1], entries["w"][1])
    assert patchfile.provenance(store, digest) == {"batch": "b1", "seed": "7"}
    with pytest.raises(StoreCorruptError, match="0000"):
        patchfile.load(store, "0000")
    with pytest.raises(ValueError, match="float64"):
        patchfile.save(store, {"w": (np.array([1]), np.array([0.5]))}, {})


def _gap_file(path: Path, **types: str) -> Path:
    tensors = {f"w.{part}": np.array([3], dtype) for part, dtype in types.items()}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("steps", "values", "said"), [("u8", "u2", "positions are uint64"), ("u1", "f4", "values are float32")]
)
def test_an_overlay_of_other_types_is_refused(tmp_path: Path, steps: str, values: str, said: str) -> None:
    path = _gap_file(tmp_path / "o", steps=steps, values=values)
    with pytest.raises(StoreCorruptError, match=said):
        overlay.read(path)["w"]


def test_a_patch_of_other_types_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    _gap_file(store.patch_path("f00d"), steps="u1", values="u8")
    with pytest.raises(StoreCorruptError, match="values are uint64, expected float32"):
        patchfile.load(store, "f00d")
    save_file(
        {"w#kinds.steps": np.zeros(1, "u1"), "w#kinds.values": np.full(1, np.nan, "f4")}, store.patch_path("f00d")
    )
    with pytest.raises(StoreCorruptError, match="values are float32, expected uint8"):
        patchfile.load_kinds(store, "f00d")


@pytest.mark.parametrize("name", ["nobody", "norm.weight"])
def test_a_damaged_overlay_that_does_not_fit_is_damage_when_a_version_is_rebuilt(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path)
    version = make_version(store, 1)
    path = store.overlay_path(version.id)
    path.unlink()
    overlay.write(path, {name: edit([100_000], [1])}, {})
    with pytest.raises(StoreCorruptError, match="an overlay does not fit the base"):
        materialize.rebuild(store, version.id, tmp_path / "out")
