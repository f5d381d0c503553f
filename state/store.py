"""The store: made once per home, opened by everybody, changed under one lock."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from state import durable, signed, sweep
from state.commit import Versions
from state.core import DISK_FULL, fill_reserve, free_reserve
from state.errors import StoreMissingError
from state.layout import Layout
from state.ledger import Ledger
from state.quarantine import DROP_PREFIX
from state.remedy import LEDGER
from state.requests import Requests
from state.serving import Serving

if TYPE_CHECKING:
    from state.upgrade import Upgrade


class Store(Requests, Versions, Serving):
    """One home's store; its operations are in `queue.Queue`, `requests.Requests`, `switch.Switch`, `commit.Versions` and
    `serving.Serving`.

    A context manager that closes the ledger. May be shared by threads; each process opens its own.
    """

    @classmethod
    def create(cls, home: Path, base: Path, *, actor: str, now: str) -> Store:
        """Make the store of a new home with `base` copied in as v0; an interrupted attempt is cleaned up first.

        Raises:
            RefusedError: there is a store already.
            ModelFormatError: the base cannot be used.
        """
        from state import create  # brings numpy, which no other command needs

        create.create(Layout(home), Path(base), actor=actor, now=now)
        return cls.open(home)

    @classmethod
    def open(cls, home: Path) -> Store:
        """Open an existing store.

        Raises:
            StoreMissingError: there is none.
            SchemaError: an older or a newer program made it.
        """
        layout = existing(home)
        try:
            return cls(layout.home, Ledger.open(layout.ledger_path))
        except OSError:
            # SQLite needs a little space even to open; on a full disk that is what the reserve is for
            if durable.free_bytes(layout.root) > 0 or not free_reserve(layout):
                raise
            return cls(layout.home, Ledger.open(layout.ledger_path))

    @classmethod
    def upgrade(cls, home: Path, *, actor: str, now: str) -> Upgrade | None:
        """Bring the store of an older program up to date; None when it is. The caller holds `service_lock`.

        Raises:
            StoreMissingError: there is none.
            StoreError: it cannot be, and why; see `state.upgrade.upgrade`.
        """
        from state import upgrade  # what it brings no other command needs

        return upgrade.upgrade(existing(home), actor=actor, now=now)

    def recover(self, now: str) -> list[str]:
        """Finish or sweep what a crash left half done, and say what; run at each start of the service."""
        with self._changing("recover"):
            self._flush_names()
            done = [f"removed {left.path}: {left.reason}" for left in sweep.remove(sweep.leftovers(self))]
            done += self._settle_quarantine(now)
            signed.settle(self, self._unclaimed())
            current = self.current()
            if not self.is_materialized(current.id):
                self._materialize(current.id)
                done.append(f"rebuilt the model folder of {current.name}")
            done += self._catch_up()
            self._refill_reserve()
        return done

    def _unclaimed(self) -> set[str]:
        """Spool entries of drops that are no batch yet: in the spool, or set aside."""
        aside = {entry.id.removeprefix(DROP_PREFIX) for entry in self.quarantined() if entry.batch is None}
        return aside | {entry.name for entry in self.spool.iterdir()}

    def _flush_names(self) -> None:
        """Make durable what a killed process had renamed and not yet flushed: from here on it is built upon."""
        folders = [self.home, self.root, self.models, self.versions, self.batches, self.patches, self.spool]
        for parent in (self.scratch_root, self.quarantine):
            folders += [*(path for path in parent.iterdir() if path.is_dir()), parent]
        for folder in folders:
            durable.flush_folder(folder)

    def _refill_reserve(self) -> None:
        try:
            fill_reserve(self)
        except OSError as err:
            if err.errno not in DISK_FULL:
                raise

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def existing(home: Path) -> Layout:
    """The paths of a home that has a store; else `StoreMissingError`."""
    layout = Layout(home)
    if not layout.ledger_path.exists():
        if layout.root.exists():
            raise StoreMissingError(f"{layout.root} has lost its ledger: there is no {layout.ledger_path}", LEDGER)
        raise StoreMissingError(
            f"{layout.home} has no store: there is no {layout.ledger_path}",
            "`alignd -c HOME` names another home, by its folder or its service.toml; `alignd init` makes a new one",
        )
    return layout
