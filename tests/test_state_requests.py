"""Rounds that somebody asks for: when they are refused, what kind they are, and how many batches were learnt alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state import audit
from state.errors import RefusedError
from state.rows import RoundRow
from state.store import Store
from tests.state_world import NOW, commit_lineage, consolidate, learn, make_store

WHO: Any = {"actor": "tester", "now": NOW}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make_store(tmp_path) as made:
        yield made


def begun(store: Store, asked: RoundRow) -> RoundRow:
    return store.begin_queued(asked.id, config={}, now=NOW)


def test_a_consolidation_is_queued_with_an_audit_line_of_its_own(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    row = store.request_consolidation(reason="two are enough", **WHO)
    assert (row.kind, row.state, row.batch, row.target, row.parent) == ("consolidation", "queued", None, None, 2)
    line = audit.read(store)[-1]
    assert (line.action, line.subject, line.details["reason"]) == ("consolidation_requested", "v2", "two are enough")


@pytest.mark.parametrize(
    ("num_batches", "said"), [(0, "v0 was made from no batches"), (1, "v1 was made from 1 batch:")]
)
def test_of_fewer_than_two_batches_there_is_nothing_to_learn_together(
    store: Store, num_batches: int, said: str
) -> None:
    for seed in range(num_batches):
        learn(store, seed)
    with pytest.raises(RefusedError, match=said):
        store.request_consolidation(reason="", **WHO)
    assert store.ledger.rounds("queued") == []


def test_it_is_asked_for_once_until_it_has_ended(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    asked = store.request_consolidation(reason="", **WHO)
    with pytest.raises(RefusedError, match=f"{asked.id} learns all batches together already, and is queued"):
        store.request_consolidation(reason="", **WHO)
    begun(store, asked)
    with pytest.raises(RefusedError, match="and is running"):
        store.request_consolidation(reason="", **WHO)
    store.end_round(asked.id, "rejected", reason="worse", now=NOW)
    assert store.request_consolidation(reason="", **WHO).id != asked.id


def test_batches_count_until_all_were_learnt_together(store: Store) -> None:
    assert store.learnt_alone(9) == 0
    counts = []
    for seed in (1, 2, 3):
        learn(store, seed)
        counts.append(store.learnt_alone(9))
    assert store.learnt_alone(2) == 2
    assert counts == [0, 2, 3]  # of a single batch there is nothing to learn together
    consolidate(store)
    assert store.learnt_alone(9) == 0
    learn(store, 4)
    assert store.learnt_alone(9) == 1


def test_one_that_was_tried_in_vain_is_not_due_again_at_once(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    asked = begun(store, store.request_consolidation(reason="", **WHO))
    store.end_round(asked.id, "rejected", reason="worse", now=NOW)
    assert store.learnt_alone(9) == 0
    learn(store, 3)
    assert store.learnt_alone(9) == 1


def test_one_that_was_to_leave_a_batch_out_does_not_count_as_tried(store: Store) -> None:
    for seed in (1, 2, 3):
        learn(store, seed)
    asked = begun(store, store.request_revert("v1", is_anew=True, reason="", **WHO))
    store.end_round(asked.id, "rejected", reason="worse", now=NOW)
    assert store.learnt_alone(9) == 3


def test_one_that_was_only_asked_for_leaves_the_count(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    store.request_consolidation(reason="", **WHO)
    assert store.learnt_alone(9) == 2


def test_a_rollback_to_before_it_counts_what_was_learnt_alone_since_it_was_tried(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    together = consolidate(store)
    store.rollback("v2", reason="worse", **WHO)
    store.resume(**WHO)
    assert store.version(together.id).blocked and store.learnt_alone(9) == 0
    learn(store, 3)
    assert store.learnt_alone(9) == 1


def test_what_was_taken_out_does_not_count(store: Store) -> None:
    versions = [learn(store, seed) for seed in (1, 2, 3)]
    asked = begun(store, store.request_revert("v2", reason="", **WHO))
    batches = [row.batch for row in versions if row.id != 2]
    commit_lineage(store, asked.id, 80, {"patches": ["p1", "p3"], "batches": batches})
    assert store.learnt_alone(9) == 2


def test_one_that_was_overtaken_is_due_again(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    asked = begun(store, store.request_consolidation(reason="", **WHO))
    store.end_round(asked.id, "superseded", reason="a promotion", now=NOW)
    assert store.learnt_alone(9) == 0
    store.forget_tried()
    assert store.learnt_alone(9) == 2
    consolidate(store)
    learn(store, 3)
    store.forget_tried()
    assert store.learnt_alone(9) == 1  # those before it were learnt together all the same


@pytest.mark.parametrize(("back_to", "state"), [("v1", "superseded"), ("v2", "queued")])
def test_one_that_was_asked_for_ends_with_the_version_that_it_was_asked_for(
    store: Store, back_to: str, state: str
) -> None:
    for seed in (1, 2):
        learn(store, seed)
    asked = store.request_consolidation(reason="", **WHO)
    learn(store, 3)
    assert store.round(asked.id).state == "queued"
    store.rollback(back_to, reason="worse", **WHO)
    found = store.round(asked.id)
    assert found.state == state
    assert state == "queued" or found.reason == "v2 is not part of v1, which came into service"


def test_a_revert_that_waits_can_be_made_one_that_learns_anew(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    queued = store.request_revert("v1", reason="wrong", **WHO)
    anew = store.request_revert("v1", is_anew=True, reason="wrong, anew", **WHO)
    assert (anew.id, anew.kind, anew.reason) == (queued.id, "consolidation", "wrong, anew")
    assert store.ledger.rounds("queued") == [anew]
    line = audit.read(store)[-1]
    told = {"round": queued.id, "kind": "consolidation", "reason": "wrong, anew"}
    assert (line.action, line.details) == ("revert_requested", told)
    for is_anew in (False, True):
        with pytest.raises(RefusedError, match="v1 is reverted already, or about to be"):
            store.request_revert("v1", is_anew=is_anew, reason="", **WHO)
    with pytest.raises(RefusedError, match=f"{queued.id} learns all batches but that of v1 together already"):
        store.request_consolidation(reason="", **WHO)


def test_a_batch_learnt_together_is_taken_out_by_learning_the_others(store: Store) -> None:
    for seed in (1, 2):
        learn(store, seed)
    together = consolidate(store)
    alone = learn(store, 3)
    assert store.request_revert("v1", reason="", **WHO).kind == "consolidation"
    assert store.request_revert(alone.name, reason="", **WHO).kind == "revert"
    with pytest.raises(RefusedError, match="v3 learnt its batches together") as caught:
        store.request_revert(together.name, reason="", **WHO)
    assert "`alignd rollback v2` goes back to before" in caught.value.hint
    assert {row.target for row in store.ledger.rounds("queued")} == {1, alone.id}


def test_anew_is_a_consolidation_of_the_others_whatever_was_before(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    asked = store.request_revert("v1", is_anew=True, reason="", **WHO)
    assert (asked.kind, asked.target) == ("consolidation", 1)
    assert begun(store, asked).kind == "consolidation"


def test_the_only_batch_of_a_consolidated_version_cannot_be_taken_out(store: Store) -> None:
    learn(store, 1)
    learn(store, 2)
    consolidate(store)
    asked = begun(store, store.request_revert("v1", reason="", **WHO))
    batches = store.version_record(2)["lineage"]["batches"][1:]
    commit_lineage(store, asked.id, 91, {"patches": ["p91"], "batches": batches, "num_together": 1})
    assert store.find_batch("batch1.jsonl").state == "reverted"
    with pytest.raises(RefusedError, match="v2 is the only round in v4"):
        store.request_revert("v2", reason="", **WHO)
