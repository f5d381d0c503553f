"""Random histories of a store, with collections and kills in between: nothing is deleted that can still be asked for."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from state import filesystem, gc
from state.errors import RefusedError
from state.store import Store
from state.verify import drill, verify
from tests.disks import DyingFileSystem
from tests.power_loss import folder_in_memory
from tests.state_world import NOW, content, make_store, make_version

WHO: Any = {"actor": "tester", "now": NOW}


class Killed(BaseException):
    """The process is gone."""


class Histories(RuleBasedStateMachine):
    """What users and the service do, in any order; each version's bytes are remembered when it comes to be."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(dir=folder_in_memory())
        self.store = make_store(Path(self._folder.name))
        self.bytes: dict[int, dict[str, bytes]] = {0: content(self.store.model_path(0))}
        self.seed = 0

    def teardown(self) -> None:
        """Every version that there ever was is rebuilt bit for bit."""
        numbers = [row.id for row in self.store.ledger.versions()]
        assert drill(self.store, numbers, self.store.home / "drill") == []
        assert numbers == sorted(self.bytes)
        assert verify(self.store, deep=True) == []
        self.store.close()
        self._folder.cleanup()

    @rule(state=st.sampled_from(["published", "published", "published", "awaiting_approval", "rejected"]))
    def version(self, state: str) -> None:
        """A round ends in a version."""
        if self.store.held is not None or self.store.ledger.versions("awaiting_approval"):
            return
        self.seed += 1
        row = make_version(self.store, self.seed, "awaiting_approval" if state == "rejected" else state)
        self.bytes[row.id] = content(self.store.model_path(row.id))
        if state == "rejected":
            self.store.reject(row.name, reason="bad", **WHO)

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        """To an ancestor, unless it is blocked, and the hold is lifted again or not."""
        line = {row.name: row for row in self.store.lineage(self.store.current().id)[:-1]}
        if line:
            target = line[data.draw(st.sampled_from(sorted(line)))]
            with pytest.raises(RefusedError) if target.blocked else contextlib.nullcontext():
                self.store.rollback(target.name, reason="bad", **WHO)
        if data.draw(st.booleans()) and self.store.held:
            self.store.resume(**WHO)

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        """Any version, by force."""
        self._some(data, lambda name: self.store.promote(name, force=True, reason="why not", **WHO))

    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        """A tag, or a pin, or neither any more."""
        acts: list[Callable[[str], object]] = [
            lambda ref: self.store.tag("kept", ref, **WHO),
            lambda ref: self.store.pin(ref, **WHO),
            lambda ref: self.store.unpin(ref, **WHO),
        ]
        self._some(data, data.draw(st.sampled_from(acts)))

    @rule(keep=st.integers(0, 3))
    def collect(self, keep: int) -> None:
        """Garbage collection comes to its end; what has a name, is pinned, in service or waited for keeps its folder."""
        named = {self.store.current().id, 0} | {tag.version for tag in self.store.ledger.tags()}
        named |= {row.id for row in self.store.ledger.versions() if row.pinned or row.state == "awaiting_approval"}
        before = {number for number in named if self.store.model_path(number).exists()}
        gc.run(self.store, keep_materialized=keep, **WHO)
        assert all(self.store.model_path(number).exists() for number in before)

    @precondition(lambda self: len(self.bytes) > 2)
    @rule(keep=st.integers(0, 2), at=st.integers(0, 25))
    def collect_and_die(self, keep: int, at: int) -> None:
        """Garbage collection is killed, and another process starts."""
        with contextlib.suppress(Killed), filesystem.use(DyingFileSystem(at, Killed)):
            gc.run(self.store, keep_materialized=keep, **WHO)
        home = self.store.home
        self.store.close()
        self.store = Store.open(home)
        self.store.recover(NOW)

    @invariant()
    def what_is_there_is_whole(self) -> None:
        """A model folder has the bytes of its version, and what is in service has a folder."""
        for number, expected in self.bytes.items():
            folder = self.store.model_path(number)
            assert not folder.exists() or content(folder) == expected
        assert content(self.store.current_link.resolve()) == self.bytes[self.store.current().id]

    def _some(self, data: st.DataObject, act: Callable[[str], object]) -> None:
        ref = data.draw(st.sampled_from([row.name for row in self.store.ledger.versions()]))
        with contextlib.suppress(RefusedError):
            act(ref)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
