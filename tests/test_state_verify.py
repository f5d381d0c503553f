"""What is damaged is found and named; what is whole is rebuilt bit for bit."""

import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state import audit, batches, digests, gc, patchfile
from state.checked import MAX_AGE_S, Checked, verify_on
from state.digests import Digests
from state.errors import StoreCorruptError
from state.layout import CHECKED_FILE
from state.rows import BatchState, VersionRow
from state.store import Store
from state.tensors import ModelFolder
from state.verify import _model, drawn, drill, parts, verify
from tests.state_world import (
    NOW,
    begin,
    content,
    drop,
    folder_digests,
    make_store,
    make_version,
    mixed_digests,
    old_digests,
    prepare,
    rebuilt,
    write_model,
)

WHO: Any = {"actor": "tester", "now": NOW}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three versions, the first with a patch; one batch quarantined, one waiting."""
    store = make_store(tmp_path)
    round_id = begin(store, 1)
    arguments = prepare(store, round_id, 1)
    patch = patchfile.save(store, {"w": (np.array([1, 5]), np.array([0.5, -1], np.float32))}, {"seed": "1"})
    arguments["record"]["patch"] = patch
    store.commit_version(round_id, **arguments, state="published", now=NOW)
    make_version(store, 2, names=("layer.0.weight", "embed.weight"))
    make_version(store, 3, names=("layer.0.weight", "layer.1.weight", "norm.weight"))
    for name in ("waiting", "bad"):
        store.claim_batch(drop(store, f"{name} zorp", name), name=name, **WHO)
    store.quarantine_batch(store.find_batch("bad").sha256, reason="bad", **WHO)
    return store


def flip(path: Path, where: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


FILES = [
    "models/v0/config.json",
    "models/v0/model-00001-of-00002.safetensors",
    "models/v3/tokenizer.json",
    "models/v3/model.safetensors.index.json",
    "store/versions/v0/VERSION.json",
    "store/versions/v2/VERSION.json",
    "store/versions/v2/overlay.safetensors",
    "store/patches/*.safetensors",
    "store/batches/*/waiting",
    "store/batches/*/batch1.jsonl",
    "quarantine/*/data/bad",
    "store/audit.jsonl",
]


@pytest.mark.parametrize("pattern", FILES)
def test_one_flipped_byte_is_found_and_named(store: Store, pattern: str) -> None:
    assert verify(store, deep=True) == []
    path = next(store.home.glob(pattern))
    flip(path)
    found = verify(store)
    assert any(path == finding.path or path.is_relative_to(finding.path) for finding in found), found


def test_a_flipped_byte_in_a_shard_is_named_by_tensor(store: Store) -> None:
    flip(store.model_path(3) / "model-00002-of-00002.safetensors")
    assert any("tensor layer.1.weight" in finding.what for finding in verify(store))


def test_tensors_of_a_store_of_before_have_sha256(tmp_path: Path) -> None:
    model = ModelFolder.open(write_model(tmp_path / "base"))
    digests = old_digests(model)
    record = {"files": digests.files, "tensors": digests.tensors}
    assert list(_model(model.path, record, deep=True)) == []
    flip(model.path / "model-00002-of-00002.safetensors")
    assert any("tensor layer.1.weight" in finding.what for finding in _model(model.path, record, deep=False))


def test_a_flipped_byte_in_the_ledger_is_found(store: Store) -> None:
    store.close()
    data = store.ledger_path.read_bytes()
    flip(store.ledger_path, data.index(b"batch2.jsonl") + 2)
    with Store.open(store.home) as damaged:
        found = verify(damaged)
    assert any(item.path == store.ledger_path and "batches" in item.what for item in found)


def test_a_wrong_link_a_missing_folder_and_a_foreign_file_are_found(store: Store) -> None:
    store.current_link.unlink()
    store.current_link.symlink_to("v1")
    (store.model_path(2) / "extra.txt").write_text("x")
    paths = {finding.path for finding in verify(store)}
    assert paths == {store.current_link, store.model_path(2) / "extra.txt"}


def test_every_version_is_rebuilt_bit_for_bit_from_base_and_overlays(store: Store) -> None:
    before = {number: content(store.model_path(number)) for number in (1, 2, 3)}
    for number in before:
        shutil.rmtree(store.model_path(number))
    store.recover(NOW)
    assert store.is_materialized(3) and not store.is_materialized(2)
    for number, files in before.items():
        assert content(rebuilt(store, number)) == files
    assert verify(store, deep=True) == []


def test_drill_finds_nothing_wrong_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    assert drill(store, [0, 1, 2, 3], tmp_path / "scratch") == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_drill_names_the_version_whose_overlay_is_damaged(store: Store, tmp_path: Path) -> None:
    flip(store.overlay_path(2))
    assert [finding.path for finding in drill(store, [1, 2, 3], tmp_path / "scratch")] == [
        store.version_path(2),
        store.version_path(3),
    ]


def _once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[[], object]) -> None:
    """Make a change just before the first call of a function."""
    real, left = getattr(owner, name), [change]

    def run(*args: Any) -> Any:
        if left:
            left.pop()()
        return real(*args)

    monkeypatch.setattr(owner, name, run)


def test_garbage_collection_in_the_middle_of_a_check_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.rollback("v0", reason="bad", **WHO)
    path, real = store.model_path(2) / "config.json", digests.is_of_file

    def is_of_file(at: Path, digest: str) -> bool:
        if at == path:
            gc.run(store, keep_materialized=0, **WHO)
        return real(at, digest)

    monkeypatch.setattr(digests, "is_of_file", is_of_file)
    assert verify(store) == []
    assert store.is_materialized(2) and not store.is_materialized(3)


@pytest.mark.parametrize("name", ["members", "identity"])
def test_a_batch_that_moves_in_the_middle_of_a_check_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sha256 = store.find_batch("batch1.jsonl").sha256

    def move() -> None:
        store.rollback("v0", reason="bad", **WHO)
        store.retry(sha256, **WHO)
        store.quarantine_batch(sha256, reason="bad", **WHO)

    _once(monkeypatch, batches, name, move)
    assert verify(store) == []


def test_a_change_in_the_middle_of_a_check_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _once(monkeypatch, audit, "_end_faults", lambda: store.pause(reason="wait", **WHO))
    assert audit.verify(store) == []
    _once(monkeypatch, Path, "readlink", lambda: store.rollback(reason="bad", **WHO))
    assert verify(store) == []
    store.audit_path.write_bytes(store.audit_path.read_bytes()[:-1])
    assert audit.verify(store) != []


def test_a_damaged_overlay_never_becomes_a_model_folder(store: Store) -> None:
    shutil.rmtree(store.model_path(2))
    flip(store.overlay_path(2))
    with pytest.raises(StoreCorruptError, match="v2 rebuilt"):
        rebuilt(store, 2)
    assert not store.is_materialized(2) and not list(store.models.glob(".tmp-*"))


@pytest.mark.parametrize("of", [folder_digests, mixed_digests, old_digests])
@pytest.mark.parametrize(
    ("file", "before"),
    [
        ("config.json", b'"}'),
        ("model-00002-of-00002.safetensors", b'"}'),  # in the header's metadata, which stays readable
        ("model-00002-of-00002.safetensors", b""),  # in the last tensor
    ],
)
def test_a_damaged_base_never_becomes_a_model_folder(
    store: Store,
    file: str,
    before: bytes,
    of: Callable[[ModelFolder], Digests],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = store.version_record(2) | of(ModelFolder.open(store.model_path(2))).to_record()
    record["headers"] = {"config.json": "blake3:00"}  # of a day's stores, and read no more
    monkeypatch.setattr(Store, "version_record", lambda self, number: record)
    whole = content(store.model_path(2))
    shutil.rmtree(store.model_path(2))
    assert content(rebuilt(store, 2)) == whole
    shutil.rmtree(store.model_path(2))
    damaged = store.model_path(0) / file
    flip(damaged, damaged.read_bytes().index(before) - 1)
    with pytest.raises(StoreCorruptError, match="v2 rebuilt"):
        rebuilt(store, 2)
    assert not list(store.models.glob(".tmp-*"))


@pytest.mark.parametrize("line", [0, 3, -1])
def test_an_edited_audit_line_is_named(store: Store, line: int) -> None:
    lines = store.audit_path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"tester", b"nobody").replace(b"service", b"nobody")
    store.audit_path.write_bytes(b"".join(lines))
    number = line % len(lines) + 1
    assert f"line {number}: was changed after it was written" in audit.verify(store)


@pytest.mark.parametrize("damage", [b'{"seq": 3, "at', b"[1]\n", b"\xff\n", b'{"seq": 3}\n'])
def test_a_damaged_audit_line_is_named_by_reading_and_not_half_read(store: Store, damage: bytes) -> None:
    number = len(audit.read(store)) + 1
    with store.audit_path.open("ab") as file:
        file.write(damage)
    with pytest.raises(StoreCorruptError, match=rf"audit\.jsonl, line {number}: is no audit line"):
        audit.read(store)


def test_a_cut_audit_file_is_found_at_its_end(store: Store) -> None:
    lines = store.audit_path.read_bytes().splitlines(keepends=True)
    store.audit_path.write_bytes(b"".join(lines[:-2]))
    assert audit.verify(store) == [f"line {len(lines) - 1}: lines {len(lines) - 1} to {len(lines)} are missing"]
    store.audit_path.unlink()
    assert audit.verify(store) != []


def test_swapped_and_removed_audit_lines_are_found(store: Store) -> None:
    lines = store.audit_path.read_bytes().splitlines(keepends=True)
    store.audit_path.write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert any(what.startswith("line 2:") for what in audit.verify(store))
    store.audit_path.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert any(what.startswith("line 2:") for what in audit.verify(store))


def test_a_chain_forged_from_the_middle_ends_otherwise_than_the_ledger_knows(store: Store) -> None:
    from dataclasses import asdict, replace

    rows = audit.read(store)
    forged, last = [], rows[0].prev
    for row in rows:
        facts = {**asdict(replace(row, actor="nobody", prev=last))}
        del facts["hash"]
        last = audit._digest(facts)
        forged.append(audit._encode(replace(row, actor="nobody", prev=facts["prev"], hash=last)))
    store.audit_path.write_bytes(b"".join(forged))
    assert audit.verify(store) == [f"line {len(rows)}: is not the last line that the ledger knows"]


def test_gc_keeps_what_is_in_use_and_gives_reasons(store: Store) -> None:
    make_version(store, 4)
    store.pin("v1", **WHO)
    listed = gc.run(store, keep_materialized=1, dry_run=True, **WHO)
    assert [item.path for item in listed if item.path.parent == store.models] == [store.model_path(2)]
    assert all(item.reason for item in listed) and store.is_materialized(2)
    assert gc.run(store, keep_materialized=1, **WHO) == listed
    assert not store.is_materialized(2) and verify(store, deep=True) == []
    assert gc.run(store, keep_materialized=1, **WHO) == []


def test_gc_takes_ended_scratch_and_unused_patches_but_not_those_of_open_rounds(store: Store) -> None:
    unused = patchfile.save(store, {"w": (np.array([2]), np.array([1], np.float32))}, {})
    round_id = store.begin_round(store.find_batch("waiting").sha256, config={}, now=NOW).id
    store.scratch(round_id).mkdir()
    store.finish_step(round_id, "merge", {"patch": unused})
    gc.run(store, keep_materialized=0, **WHO)
    assert store.scratch(round_id).exists() and store.patch_path(unused).exists()
    store.end_round(round_id, "failed", reason="x", now=NOW)
    gc.run(store, keep_materialized=0, **WHO)
    assert not store.scratch(round_id).exists() and not store.patch_path(unused).exists()
    assert len(list(store.patches.iterdir())) == 1 and verify(store) == []


ENDS: dict[str, Callable[[Store, str], object]] = {
    "published": lambda store, batch: None,
    "rolled back": lambda store, batch: store.rollback("v0", reason="bad", **WHO),
    "rejected by hand": lambda store, batch: store.reject("candidate", reason="terse", **WHO),
    "queued again": lambda store, batch: store.retry(batch, **WHO),
    "quarantined": lambda store, batch: store.quarantine_batch(batch, reason="bad", **WHO),
    "rejected by the gates": lambda store, batch: _round_of(store, batch, "rejected"),
    "aborted": lambda store, batch: _round_of(store, batch, "aborted", batch_state="rejected"),
}


def _round_of(store: Store, batch: str, state: Any, **more: Any) -> None:
    store.end_round(store.begin_round(batch, config={}, now=NOW).id, state, reason="no", now=NOW, **more)


@pytest.mark.parametrize(
    "way",
    [
        ["published"],
        ["rolled back"],
        ["rolled back", "queued again", "rejected by the gates"],
        ["rolled back", "queued again", "aborted"],
        ["rolled back", "queued again", "quarantined"],
        ["rejected by hand"],
        ["rejected by hand", "queued again"],
        ["rejected by hand", "queued again", "rejected by the gates"],
    ],
    ids=" then ".join,
)
def test_gc_keeps_the_batch_of_a_version_however_it_ended(tmp_path: Path, way: list[str]) -> None:
    with make_store(tmp_path) as store:
        row = make_version(store, 1, "awaiting_approval" if way[0] == "rejected by hand" else "published")
        assert row.batch is not None
        for end in way:
            ENDS[end](store, row.batch)
        gc.run(store, keep_materialized=0, **WHO)
        store.promote("v1", force=True, reason="after all", **WHO)
        assert content(store.batch_content(row.batch)) == {"batch1.jsonl": b"zorp 1\n"}
        assert verify(store, deep=True) == []


@pytest.mark.parametrize("end", ["rejected by the gates", "aborted"])
def test_gc_keeps_a_batch_that_may_be_tried_again(store: Store, end: str) -> None:
    batch = store.find_batch("waiting").sha256
    ENDS[end](store, batch)
    gc.run(store, keep_materialized=0, **WHO)
    assert store.retry(batch, **WHO).state == "queued" and verify(store) == []


@given(states=st.lists(st.sampled_from(get_args(BatchState)), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_gc_never_takes_a_batch_of_the_ledger(states: list[Any]) -> None:
    with TemporaryDirectory() as folder, make_store(Path(folder)) as store:
        rows = [
            store.claim_batch(drop(store, f"zorp {number}", str(number)), name=str(number), **WHO).batch
            for number in range(len(states))
        ]
        with store.ledger.transaction():
            for row, state in zip(rows, states, strict=True):
                store.ledger.save(replace(row, state=state))
        gc.run(store, keep_materialized=0, **WHO)
        assert all(store.batch_path(row.sha256).exists() for row in rows)


def test_gc_refuses_a_negative_number(store: Store) -> None:
    with pytest.raises(ValueError, match="-1"):
        gc.run(store, keep_materialized=-1, **WHO)


@given(
    states=st.lists(st.sampled_from(["published", "rejected", "rolled_back", "awaiting_approval"]), max_size=8),
    kept=st.sets(st.integers(0, 8)),
    tagged=st.sets(st.integers(0, 8)),
    pinned=st.sets(st.integers(0, 8)),
    keep_materialized=st.integers(0, 9),
)
def test_the_plan_never_lets_go_what_is_named_or_among_the_newest(
    states: list[Any], kept: set[int], tagged: set[int], pinned: set[int], keep_materialized: int
) -> None:
    rows = [VersionRow(0, None, "base", None, None, NOW)]
    rows += [
        VersionRow(number, number - 1, state, None, None, NOW, pinned=number in pinned)
        for number, state in enumerate(states, 1)
    ]
    gone = gc.plan(rows, kept=kept, tagged=tagged, keep_materialized=keep_materialized)
    published = [row.id for row in rows if row.state == "published"]
    safe = kept | tagged | pinned | {0} | {row.id for row in rows if row.state == "awaiting_approval"}
    assert gone.keys().isdisjoint(safe)
    survivors = [number for number in published if number not in gone]
    assert set(published[::-1][:keep_materialized]) <= set(survivors)
    assert gone.keys() | safe | set(published[::-1][:keep_materialized]) >= {row.id for row in rows}


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"seq": 1, "at": "", "actor": "", "action": "", "subject": "", "details": {"a": NaN}, "prev": "", "hash": ""}',
        b'{"seq": 1, "at": "\\ud800", "actor": "", "action": "", "subject": "", "details": {}, "prev": "", "hash": ""}',
        b'{"seq": true, "at": "", "actor": "", "action": "", "subject": "", "details": {}, "prev": "", "hash": ""}',
        b'{"seq": '
        + b"9" * 4300
        + b', "at": "", "actor": "", "action": "", "subject": "", "details": {}, "prev": "", "hash": ""}',
    ],
)
def test_a_hostile_audit_line_is_named(store: Store, line: bytes) -> None:
    store.audit_path.write_bytes(line + b"\n" + store.audit_path.read_bytes())
    assert audit.verify(store)[0] == "line 1: is no audit line"
    with pytest.raises(StoreCorruptError, match="line 1: is no audit line"):
        audit.read(store)


def test_a_check_that_was_cut_short_goes_on_behind_what_it_found_whole(store: Store) -> None:
    flip(store.record_path(1))
    looked_at: list[str] = []

    class CutShortError(Exception):
        pass

    def until_v2(done: float) -> None:
        if done > parts(store).index("v2") / len(parts(store)):
            raise CutShortError

    with pytest.raises(CutShortError):
        verify_on(store, deep=True, progress=until_v2)
    known = Checked(store.home, deep=True).parts()
    assert known == {"v0"}  # v1 is damaged, and the ledger is looked at each time
    found = verify(store, deep=True, passed_over=known, seen=lambda part, _: looked_at.append(part))
    assert looked_at == [part for part in parts(store) if part not in known] and found
    assert verify_on(store, deep=True, progress=lambda done: None) == found  # what was wrong is told again
    assert Checked(store.home, deep=True).parts() == frozenset()


def test_a_thorough_check_does_not_rely_on_a_shallow_or_an_old_one(store: Store) -> None:
    Checked(store.home, deep=False).add("v0")
    Checked(store.home, deep=True).add("v1")
    with (store.home / CHECKED_FILE).open("a") as file:
        file.write('["v2", tr')  # torn by a kill
    assert Checked(store.home, deep=True).parts() == {"v1"}
    assert Checked(store.home, deep=False).parts() == {"v0", "v1"}
    assert Checked(store.home, deep=False).parts(time.time() + MAX_AGE_S + 1) == frozenset()


@given(num=st.integers(1, 100))
def test_a_sample_leaves_out_versions_and_batches_alone_and_never_all(num: int) -> None:
    names = [f"v{i}" for i in range(7)]
    store = cast(Store, SimpleNamespace(ledger=SimpleNamespace(
        versions=lambda: [SimpleNamespace(name=name) for name in names],
        batches=lambda: [SimpleNamespace(sha256=str(i)) for i in range(3)],
    )))  # fmt: skip
    left_out = drawn(store, num / 100, random.Random(num))
    assert len(left_out) == 7 - math.ceil(0.07 * num - 1e-9) + 3 - math.ceil(0.03 * num - 1e-9)
    assert set(left_out) <= {*names, *(f"batch {i}" for i in range(3))}
