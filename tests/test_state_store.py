"""The store as a whole: create, claim, commit, switch, resolve."""

import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from state import audit, durable, lock
from state.errors import (
    LockedError,
    NotFoundError,
    RefusedError,
    StoreCorruptError,
    StoreError,
    StoreMissingError,
)
from state.rows import BatchRow, VersionRow
from state.store import Store
from state.verify import verify
from tests.disks import make_deep
from tests.state_world import (
    NOW,
    begin,
    content,
    drop,
    hold,
    make_store,
    make_version,
    prepare,
    write_model,
)

WHO: Any = {"actor": "tester", "now": NOW}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def test_create_copies_the_base_as_v0_with_inodes_of_its_own(store: Store, tmp_path: Path) -> None:
    assert content(store.model_path(0)) == content(tmp_path / "base")
    for path in store.model_path(0).iterdir():
        assert path.stat().st_ino != (tmp_path / "base" / path.name).stat().st_ino
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert store.current_link.readlink() == Path("v0")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.model_path(0).stat().st_mode) == 0o755
    assert verify(store, deep=True) == []


def test_create_refuses_a_home_that_has_a_store(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="exists already"):
        Store.create(store.home, tmp_path / "base", **WHO)


def test_open_names_what_it_looked_for_and_how_to_point_at_a_home(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError) as caught:
        Store.open(tmp_path)
    assert str(tmp_path / "store" / "ledger.db") in str(caught.value)
    assert "alignd -c HOME" in caught.value.hint and "alignd init" in caught.value.hint
    assert str(tmp_path) not in caught.value.hint  # nothing to paste that would make a store in a mistyped place


def test_open_names_a_ledger_that_is_no_database(store: Store) -> None:
    store.close()
    store.ledger_path.write_bytes(b"not a database " * 400)
    with pytest.raises(StoreCorruptError, match=r"ledger\.db"):
        Store.open(store.home)


def test_a_claimed_batch_is_kept_byte_for_byte_and_leaves_the_spool(store: Store) -> None:
    source = drop(store, "zorp\n", "one.jsonl")
    claim = store.claim_batch(source, name="one.jsonl", **WHO)
    kept = store.batch_path(claim.batch.sha256)
    assert content(kept) == {"one.jsonl": b"zorp\n"}
    assert stat.S_IMODE((kept / "one.jsonl").stat().st_mode) == 0o600
    assert not source.exists() and not claim.is_duplicate
    assert (claim.batch.state, claim.batch.num_files, claim.batch.num_bytes) == ("queued", 1, 5)


def test_the_same_content_under_another_name_is_a_duplicate(store: Store) -> None:
    first = store.claim_batch(drop(store, "zorp\n", "one"), name="one", **WHO)
    again = store.claim_batch(drop(store, "zorp\n", "two"), name="two", **WHO)
    assert again.is_duplicate and again.batch == first.batch
    assert [row.name for row in store.ledger.duplicates()] == ["two"]
    assert len(store.ledger.batches()) == 1 and list(store.spool.iterdir()) == []


def test_the_same_drop_claimed_again_after_a_crash_is_no_duplicate(store: Store) -> None:
    store.claim_batch(drop(store, "zorp\n", "one"), name="one", **WHO)
    again = store.claim_batch(drop(store, "zorp\n", "one"), name="one", **WHO)
    assert not again.is_duplicate and store.ledger.duplicates() == []


def test_a_link_is_refused_untouched_and_can_be_set_aside_and_released(store: Store, tmp_path: Path) -> None:
    folder = store.spool / "mixed"
    folder.mkdir()
    (folder / "link.jsonl").symlink_to(tmp_path / "base" / "config.json")
    with pytest.raises(RefusedError, match=r"link\.jsonl"):
        store.claim_batch(folder, name="mixed", **WHO)
    assert folder.exists() and store.ledger.batches() == []
    entry = store.set_aside(folder, name="mixed", reason="a symbolic link", **WHO)
    assert store.quarantined() == [entry] and (entry.path / "data/link.jsonl").is_symlink()
    store.recover(NOW)
    store.release(entry.id, **WHO)
    assert folder.exists() and store.quarantined() == []


def test_a_link_under_a_name_that_is_no_utf8_can_be_set_aside_for_the_reason_it_was_refused_for(store: Store) -> None:
    folder = store.spool / "mixed"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9")).symlink_to("/etc/hostname")
    with pytest.raises(RefusedError, match=r"^caf\\udce9: is a symbolic link") as refused:
        store.claim_batch(folder, name="mixed", **WHO)
    assert store.set_aside(folder, name="mixed", reason=str(refused.value), **WHO) == store.quarantined()[0]


def test_a_folder_deeper_than_can_be_walked_is_refused_untouched(store: Store) -> None:
    make_deep(store.spool / "deep")
    try:
        with pytest.raises(RefusedError, match=r"^d: holds folders deeper than 64 levels"):
            store.claim_batch(store.spool / "deep", name="deep", **WHO)
        assert (store.spool / "deep").exists() and store.ledger.batches() == []
    finally:
        durable.remove_tree(store.spool / "deep")  # too deep for pytest


def test_a_quarantined_batch_moves_with_its_reason_and_back_on_release(store: Store) -> None:
    batch = store.claim_batch(drop(store, "zorp\n", "one"), name="one", **WHO).batch
    store.quarantine_batch(batch.sha256, reason="row 1: no object", **WHO)
    entry = store.quarantined()[0]
    assert (entry.batch, entry.reason) == (batch.sha256, "row 1: no object")
    assert not store.batch_path(batch.sha256).exists() and verify(store) == []
    store.release("one", **WHO)
    assert content(store.batch_path(batch.sha256)) == {"one": b"zorp\n"}
    assert store.find_batch("one").state == "queued" and store.quarantined() == []


def test_a_dropped_batch_is_gone_but_still_known(store: Store) -> None:
    batch = store.claim_batch(drop(store, "zorp\n", "one"), name="one", **WHO).batch
    store.quarantine_batch(batch.sha256, reason="bad", **WHO)
    store.drop(batch.sha256, **WHO)
    assert store.find_batch(batch.sha256[:8]).state == "rejected"
    assert list(store.quarantine.iterdir()) == [] and verify(store) == []
    with pytest.raises(RefusedError, match="gone"):
        store.retry("one", **WHO)


@pytest.mark.parametrize("name", ["one", "renamed"])
def test_a_new_drop_of_content_that_was_deleted_brings_the_batch_back(store: Store, name: str) -> None:
    batch = store.claim_batch(drop(store, "zorp\n", "one"), name="one", **WHO).batch
    store.quarantine_batch(batch.sha256, reason="bad", **WHO)
    store.drop(batch.sha256, **WHO)
    again = store.spool / "later.drop"
    again.write_text("zorp\n")
    claim = store.claim_batch(again, name=name, **WHO)
    assert not claim.is_duplicate and not again.exists() and store.ledger.duplicates() == []
    (row,) = store.ledger.batches()
    assert (row.state, row.name, row.reason, row.seq) == ("queued", name, "", batch.seq)
    assert content(store.batch_path(batch.sha256)) == {name: b"zorp\n"} and verify(store) == []


def test_a_new_drop_of_a_rejected_batch_that_is_there_stays_a_duplicate(store: Store) -> None:
    round_id = begin(store, 1)
    store.end_round(round_id, "rejected", reason="gate harm failed", now=NOW)
    again = store.spool / "later.drop"
    again.write_text("zorp 1\n")
    assert store.claim_batch(again, name="again", **WHO).is_duplicate
    assert store.ledger.batches()[0].state == "rejected"


def test_a_batch_that_a_version_was_made_with_cannot_be_deleted(store: Store) -> None:
    row = make_version(store, 1)
    assert row.batch is not None
    store.rollback(reason="bad", **WHO)
    store.retry(row.batch, **WHO)
    store.quarantine_batch(row.batch, reason="one row", **WHO)
    with pytest.raises(RefusedError, match="v1 was made with batch"):
        store.drop(row.batch, **WHO)
    assert content(store.batch_content(row.batch)) == {"batch1.jsonl": b"zorp 1\n"} and verify(store) == []


def test_only_one_round_runs_and_none_while_paused(store: Store) -> None:
    batch = store.claim_batch(drop(store, "zorp 2\n", "two"), name="two", **WHO).batch
    store.pause(reason="lunch", **WHO)
    with pytest.raises(RefusedError, match="paused"):
        store.begin_round(batch.sha256, config={}, now=NOW)
    store.resume(**WHO)
    begin(store, 1)
    with pytest.raises(RefusedError, match="r000001 is running"):
        store.begin_round(batch.sha256, config={}, now=NOW)


def test_steps_of_a_round_are_kept_in_order_with_what_they_recorded(store: Store) -> None:
    round_id = begin(store, 1)
    store.finish_step(round_id, "derive", {"loss": 0.5})
    store.finish_step(round_id, "merge", {"num_entries": 3})
    with Store.open(store.home) as again:
        row = again.round(round_id)
    assert row.step == "merge"
    assert row.artefacts == {"derive": {"loss": 0.5}, "merge": {"num_entries": 3}}
    assert row.config == {"seed": 1}


def test_a_rejected_round_rejects_its_batch_and_it_can_be_tried_again(store: Store) -> None:
    round_id = begin(store, 1)
    store.end_round(round_id, "rejected", reason="harm too high", now=NOW)
    assert store.find_batch("batch1.jsonl").state == "rejected"
    assert store.retry("batch1.jsonl", **WHO).state == "queued"


def test_a_failed_round_may_quarantine_its_batch(store: Store) -> None:
    round_id = begin(store, 1)
    store.end_round(round_id, "failed", reason="no rows", now=NOW, batch_state="quarantined")
    assert [entry.reason for entry in store.quarantined()] == ["no rows"]
    assert verify(store) == []


def test_a_published_version_is_current_and_its_batch_published(store: Store) -> None:
    version = make_version(store, 1)
    assert (version.id, version.parent, version.state) == (1, 0, "published")
    assert store.current() == version and store.current_link.readlink() == Path("v1")
    assert store.find_batch("batch1.jsonl").state == "published"
    assert store.round("r000001").state == "published"
    assert verify(store, deep=True) == []


def test_untouched_files_of_a_version_share_the_parents_inodes_and_touched_ones_do_not(store: Store) -> None:
    make_version(store, 1)
    inodes = [{path.name: path.stat().st_ino for path in store.model_path(n).iterdir()} for n in (0, 1)]
    changed = {name for name in inodes[0] if inodes[0][name] != inodes[1][name]}
    assert changed == {"model-00002-of-00002.safetensors"}


def test_committing_a_round_again_gives_the_same_version(store: Store) -> None:
    round_id = begin(store, 1)
    arguments = prepare(store, round_id, 1)
    first = store.commit_version(round_id, **arguments, state="published", now=NOW)
    assert store.commit_version(round_id, **arguments, state="published", now=NOW) == first
    assert len(store.ledger.versions()) == 2


def test_a_candidate_that_lacks_a_file_is_not_committed(store: Store) -> None:
    round_id = begin(store, 1)
    arguments = prepare(store, round_id, 1)
    (arguments["staging_model"] / "config.json").unlink()
    with pytest.raises(StoreError, match=r"config\.json"):
        store.commit_version(round_id, **arguments, state="published", now=NOW)
    assert store.current().id == 0


def test_a_version_that_awaits_approval_is_the_candidate_until_approved(store: Store) -> None:
    version = make_version(store, 1, "awaiting_approval")
    assert store.resolve("candidate") == version and store.current().id == 0
    store.approve("candidate", **WHO)
    assert store.current().id == 1
    with pytest.raises(NotFoundError):
        store.resolve("candidate")


def test_a_rejected_candidate_is_blocked_with_its_batch_rejected(store: Store) -> None:
    make_version(store, 1, "awaiting_approval")
    store.reject("v1", reason="no", **WHO)
    assert store.version(1).blocked and store.find_batch("batch1.jsonl").state == "rejected"
    with pytest.raises(RefusedError):
        store.approve("v1", **WHO)


def test_a_version_whose_parent_is_no_longer_current_is_not_published(store: Store) -> None:
    make_version(store, 1, "awaiting_approval")
    make_version(store, 2)
    with pytest.raises(RefusedError, match="made for v0, but v2 is current"):
        store.approve("v1", **WHO)


def test_nothing_is_published_while_held(store: Store) -> None:
    make_version(store, 1, "awaiting_approval")
    hold(store, "wait")
    with pytest.raises(RefusedError, match="held"):
        store.publish(1, **WHO)
    round_id = begin(store, 2)
    with pytest.raises(RefusedError, match="held"):
        store.commit_version(round_id, **prepare(store, round_id, 2), state="published", now=NOW)
    assert len(store.ledger.versions()) == 2


def test_a_rollback_does_not_go_to_a_version_that_an_earlier_one_blocked(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    store.rollback("v0", reason="odd answers", **WHO)
    store.promote("v2", force=True, reason="why not", **WHO)
    with pytest.raises(RefusedError, match="v1 is blocked"):
        store.rollback("v1", reason="odd answers", **WHO)
    assert store.current().id == 2
    assert store.rollback("v0", reason="odd answers", **WHO).id == 0


def test_rollback_returns_to_the_one_before_blocks_and_holds(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    assert store.rollback(reason="odd answers", **WHO).id == 1
    bad = store.version(2)
    assert (bad.state, bad.blocked) == ("rolled_back", True)
    assert store.find_batch("batch2.jsonl").state == "rolled_back"
    assert store.held is not None and store.held.reason == "odd answers"
    assert store.current_link.readlink() == Path("v1")
    store.resume(**WHO)
    assert store.current().id == 1
    with pytest.raises(RefusedError, match="v2 is blocked"):
        store.promote("v2", reason="", **WHO)
    assert make_version(store, 3).parent == 1


def test_rollback_twice_goes_on_back_and_not_forth(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    store.rollback(reason="a", **WHO)
    assert store.rollback(reason="b", **WHO).id == 0
    with pytest.raises(RefusedError, match="nothing before v0"):
        store.rollback(reason="c", **WHO)


def test_rollback_to_an_old_version_blocks_all_between(store: Store) -> None:
    for seed in (1, 2, 3):
        make_version(store, seed)
    store.rollback("v1", reason="", **WHO)
    assert [row.id for row in store.ledger.versions() if row.blocked] == [2, 3]


def test_rollback_rebuilds_a_model_folder_that_was_collected(store: Store) -> None:
    import shutil

    make_version(store, 1)
    before = content(store.model_path(1))
    make_version(store, 2)
    shutil.rmtree(store.model_path(1))
    store.rollback(reason="", **WHO)
    assert content(store.current_link.resolve()) == before


def test_promote_forced_lifts_a_block_but_not_the_hold(store: Store) -> None:
    make_version(store, 1)
    store.rollback(reason="", **WHO)
    store.promote("v1", force=True, reason="was fine", **WHO)
    assert store.current().id == 1 and not store.version(1).blocked
    assert store.find_batch("batch1.jsonl").state == "published" and store.held is not None
    previous = store.previous()
    assert previous is not None and previous.id == 0


def test_a_published_revert_marks_the_batch_it_took_out(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    round_id = store.request_revert("v1", reason="bad batch", **WHO).id
    with pytest.raises(RefusedError, match="reverted already"):
        store.request_revert("v1", reason="", **WHO)
    store.begin_queued(round_id, config={}, now=NOW)
    store.commit_version(round_id, **prepare(store, round_id, 5), state="published", now=NOW)
    assert store.find_batch("batch1.jsonl").state == "reverted"
    store.rollback(reason="", **WHO)
    assert store.find_batch("batch1.jsonl").state == "published"


def test_a_rollback_past_a_revert_leaves_no_batch_published_that_nothing_holds(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    round_id = store.request_revert("v1", reason="", **WHO).id
    store.begin_queued(round_id, config={}, now=NOW)
    store.commit_version(round_id, **prepare(store, round_id, 5), state="published", now=NOW)
    store.rollback("v0", reason="", **WHO)
    assert {row.state for row in store.ledger.batches()} == {"rolled_back"}


def test_selectors_name_versions_and_an_unknown_one_lists_the_known(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    store.tag("good", "v1", **WHO)
    found = {ref: store.resolve(ref).id for ref in ("current", "previous", "base", "@good", "v2", "1", "current~2")}
    assert found == {"current": 2, "previous": 1, "base": 0, "@good": 1, "v2": 2, "1": 1, "current~2": 0}
    for ref in ("v9", "@bad", "nonsense", "current~3", "v2~x", "v2~1~1", ""):
        with pytest.raises(NotFoundError) as caught:
            store.resolve(ref)
        assert "v0 to v2, @good" in caught.value.hint


def test_on_a_read_only_disk_the_ledger_is_read_with_its_log_and_not_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.claim_batch(drop(store, "zorp\n", "one.jsonl"), name="one.jsonl", **WHO)
    files = [store.ledger_path, store.ledger_path.with_name("ledger.db-wal")]
    before = [path.read_bytes() for path in files]
    assert before[1], "nothing in the log to be missed"
    monkeypatch.setattr("state.durable.is_read_only", lambda path: True)
    with Store.open(store.home) as snapshot:
        assert snapshot.ledger.batches() == store.ledger.batches() != []
        with pytest.raises(OSError, match="cannot be written") as caught:
            snapshot.note_at_work("r000009")
        assert caught.value.errno == errno.EROFS
    assert [path.read_bytes() for path in files] == before


def test_two_services_on_one_home_cannot_be(store: Store) -> None:
    with lock.hold(store.service_lock, "service"):
        code = f"from state import lock; lock.hold({str(store.service_lock)!r}, 'x').__enter__()"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LockedError" in result.stderr and "(service)" in result.stderr


def test_a_change_waits_for_the_lock_and_names_its_holder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.core.LOCK_WAIT_S", 0.05)
    with lock.hold(store.store_lock, "a long merge"), pytest.raises(LockedError, match="a long merge"):
        store.pause(reason="", **WHO)


BLOCKER = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"torch", "numpy", "transformers"}: raise ImportError(name)
sys.meta_path.insert(0, Block())
from state.store import Store
with Store.open(sys.argv[1]) as store:
    store.rollback(reason="bad", actor="tester", now="2026-01-02T03:04:05Z")
"""


def test_rollback_needs_neither_torch_nor_numpy(store: Store) -> None:
    make_version(store, 1)
    subprocess.run([sys.executable, "-c", BLOCKER, str(store.home)], check=True, cwd=Path.cwd())
    assert store.current().id == 0


def test_data_version_changes_with_own_and_with_others_changes(store: Store) -> None:
    before = store.ledger.data_version()
    assert store.ledger.data_version() == before
    with Store.open(store.home) as other:
        other.pause(reason="", **WHO)
    between = store.ledger.data_version()
    store.resume(**WHO)
    assert len({before, between, store.ledger.data_version()}) == 3


def test_a_base_cannot_be_imported_twice_over_user_files(tmp_path: Path) -> None:
    base = write_model(tmp_path / "home" / "models" / "base")
    with Store.create(tmp_path / "home", base, **WHO) as store:
        store.recover(NOW)
        assert content(base) == content(store.model_path(0)) and verify(store) == []


def test_threads_and_other_openers_may_change_one_store_at_once(store: Store) -> None:
    def work(number: int) -> None:
        with Store.open(store.home) if number % 2 else nullcontext(store) as mine:
            for step in range(3):
                mine.tag(f"t{number}-{step}", "base", **WHO)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(store.ledger.tags()) == 12 and verify(store) == []


def test_a_reader_of_current_always_sees_one_whole_version(store: Store) -> None:
    make_version(store, 1, names=("layer.0.weight", "embed.weight"))
    whole = [content(store.model_path(number)) for number in (0, 1)]
    done = threading.Event()

    def switch() -> None:
        for number in (0, 1) * 10:
            store.promote(f"v{number}", reason="", **WHO)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        switching = pool.submit(switch)
        num_reads = 0
        while not done.is_set() and not switching.done():
            assert content(store.current_link.resolve()) in whole
            num_reads += 1
        switching.result()
    assert num_reads > 0 and store.current().id == 1


def test_the_newest_audit_lines_are_read_from_the_end_and_before_any_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_BLOCK_BYTES", 997)  # lines of many blocks, and blocks of many lines
    with make_store(tmp_path) as store:
        for number in range(40):
            store.pause(reason="x" * (number * 83 % 2900), actor=f"tester {number % 3}", now=NOW)
        lines = audit.read(store)[::-1]
        assert audit.newest(store, 100) == lines
        for before in range(45):
            assert audit.newest(store, 7, before=before) == [line for line in lines if line.seq < before][:7]
        assert audit.newest(store, 5, about="tester 2") == [line for line in lines if line.actor == "tester 2"][:5]
        with store.audit_path.open("ab") as file:
            file.write(b'{"seq": 42, "half of')
        assert audit.newest(store, 100) == lines


def test_windows_of_the_ledger_hold_what_a_walk_over_all_rows_finds(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        for seed in (1, 2, 3, 4):
            make_version(store, seed)
        rows, ledger = store.ledger.versions(), store.ledger
        assert ledger.newest(VersionRow, 2) == rows[:2:-1]
        assert ledger.newest(VersionRow, 9, below=3) == rows[2::-1]
        assert ledger.newest(VersionRow, 9, every=2) == rows[::-2]
        assert ledger.newest(VersionRow, 9, states=["base"]) == rows[:1]
        assert ledger.line(3) == rows[:4] == store.lineage(3)
        assert ledger.line(99) == []
        batches = ledger.batches()
        assert ledger.newest(BatchRow, 1) == batches[-1:]
        assert ledger.batches_starting([batches[1].sha256[:12], "zorp"]) == {batches[1].sha256[:12]: batches[1]}
        assert sorted(ledger.with_keys(VersionRow, [1, 3, 99, 1]), key=lambda row: row.id) == [rows[1], rows[3]]
        assert ledger.versions_of(batches[0].sha256, batches[2].sha256) == [rows[1], rows[3]]
        assert ledger.rounds_of(batches[0].sha256) == ledger.rounds()[:1]
        assert ledger.newest_rounds(2) == ledger.rounds()[:1:-1]
        with pytest.raises(NotFoundError):
            store.lineage(99)
