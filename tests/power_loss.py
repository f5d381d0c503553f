"""Power is lost at every call of many rounds of a store, and everything that was promised is looked for.

`python -m tests.power_loss --cycles 20` prints what it tried. Three sweeps: at every call of a store's creation; at every
call of its life; and at every call of its life the process is killed, another one recovers and goes on, and then power is
lost: what the dead process had not flushed is still not flushed when the other one finds it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from unittest.mock import patch

from state import audit, filesystem
from state.errors import StoreMissingError
from state.ledger import Ledger
from state.store import Store
from state.verify import verify
from tests.disk_states import LEDGER, Image, digest, extremes, ledger_losses, ledger_of, states
from tests.losing_disk import Disk
from tests.power_checks import Checker, Tally
from tests.power_story import WHO, Act, Facts, acts
from tests.state_world import NOW, make_store, write_model

CHECKPOINT_PAGES: Final = 40
"""So that SQLite moves its log into the database now and then in a short story too."""
THE_END: Final = Act("the end", lambda store: None)


class Killed(BaseException):
    """The process is gone."""


class Recorder:
    """Keeps what a loss of power may leave, call by call, each distinct state once."""

    def __init__(self, home: Path, tally: Tally, *, has_ledger: bool = True) -> None:
        self._home = home
        self._tally = tally
        self._ledger: Image | None = ledger_of(home) if has_ledger else None
        self.taken: dict[bytes, tuple[str, Image]] = {}
        """Per state where it comes from, and its content."""

    def on_call(self, disk: Disk, call: str) -> None:
        """Power is lost before this call."""
        self._tally.calls[call] += 1
        if self._ledger is None:
            disk.see_written_past("ledger.db")
        else:
            self._ledger = ledger_of(self._home, self._ledger)
        self._take(call, states(disk, self._ledger))

    def on_commit(self, disk: Disk) -> None:
        """Power was lost while the ledger's transaction that has just ended was on its way to the disk."""
        assert self._ledger is not None
        self._tally.calls["transaction"] += 1
        before, self._ledger = self._ledger, ledger_of(self._home, self._ledger)
        for kind, ledger in ledger_losses(before, self._ledger):
            found = extremes(disk, ledger)
            self._take("transaction", ((f"ledger: {kind}", image) for _, image in found))

    def _take(self, call: str, found: Iterator[tuple[str, Image]]) -> None:
        for kind, image in found:
            self._tally.kinds[kind] += 1
            place = f"call {self._tally.calls.total()} ({call}), {kind}"
            self.taken.setdefault(digest(image), (place, image))


@contextmanager
def _commits_told(before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    real = Ledger.transaction

    @contextmanager
    def transaction(ledger: Ledger) -> Iterator[None]:
        before()
        with real(ledger):
            yield
        after()

    with patch.object(Ledger, "transaction", transaction):
        yield


@dataclass(frozen=True)
class Plan:
    """How much is tried, and what with."""

    num_cycles: int = 1
    every: int = 1
    """Of the calls at which a process is killed, each so many-th."""
    disk: type[Disk] = Disk
    careless: Callable[[], AbstractContextManager[object]] = nullcontext
    """What replaces a part of the product while the store lives, to see that it is caught."""
    until_broken: bool = False
    """End with the act in which a promise was not kept."""
    only_call: int | None = None
    """Check the states of this call alone."""
    keep: Path | None = None
    """Where the first state is laid out that did not keep a promise."""


def sweep_creation(folder: Path) -> Tally:
    """Lose power at every call of the creation of a store: it is there whole, or can be made."""
    tally = Tally()
    home = folder / "home"
    home.mkdir()
    write_model(folder / "base")
    recorder = Recorder(home, tally, has_ledger=False)
    disk = Disk(home, recorder.on_call)
    with filesystem.use(disk):
        Store.create(home, folder / "base", **WHO).close()
    checker = Checker(folder / "work", tally)
    for place, image in recorder.taken.values():
        checker.check(place, image, partial(_not_created, folder / "base", is_promised=False))
    recorder.taken.clear()
    recorder.on_call(disk, "the end")
    for place, image in recorder.taken.values():
        checker.check(place, image, partial(_not_created, folder / "base", is_promised=True))
    return tally


def _not_created(base: Path, home: Path, *, is_promised: bool) -> Iterator[str]:
    try:
        Store.open(home).close()
    except StoreMissingError:
        if is_promised:
            yield "the store is gone"
        Store.create(home, base, **WHO).close()
    with Store.open(home) as store:
        store.recover(NOW)
        yield from (f"verify: {finding}" for finding in verify(store, deep=True))
        if [row.action for row in audit.read(store)] != ["store_created"]:
            yield "the audit file does not tell of the creation"


def sweep_life(folder: Path, plan: Plan) -> Tally:
    """Lose power at every call of a store's life."""
    tally = Tally()
    checker = Checker(folder / "work", tally, keep=plan.keep)
    with _new_store(folder) as store:
        recorder = Recorder(store.home, tally)
        disk = plan.disk(store.home, recorder.on_call)
        for act in (*acts(plan.num_cycles), THE_END):
            made = Facts.of(store)
            with plan.careless():
                _record(act, store, disk, recorder)
            broken = partial(checker.broken, made=made, coming=Facts.of(store))
            for place, image in recorder.taken.values():
                if plan.only_call is None or place.startswith(f"call {plan.only_call} "):
                    checker.check(f"{act.name}: {place}", image, broken)
            recorder.taken.clear()
            if plan.until_broken and tally.broken:
                break
    return tally


def _new_store(folder: Path) -> Store:
    store = make_store(folder)
    (store.home / "inbox").mkdir()
    store.ledger._run(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return store


def _record(act: Act, store: Store, disk: Disk, recorder: Recorder) -> None:
    recorder.on_call(disk, "start of an act")
    commits = _commits_told(partial(recorder.on_call, disk, "before a transaction"), partial(recorder.on_commit, disk))
    with filesystem.use(disk), commits:
        act.do(store)


def sweep_kills(folder: Path, plan: Plan) -> Tally:
    """Kill the process at every call, recover and go on with another, and lose power when it has done either."""
    tally = Tally()
    checker = Checker(folder / "work", tally, keep=plan.keep)
    with _new_store(folder) as store:
        for act in acts(plan.num_cycles):
            known: set[tuple[bytes, str]] = set()
            for at in range(plan.every // 2, 1000, plan.every):
                home = folder / "killed"
                shutil.rmtree(home, ignore_errors=True)
                shutil.copytree(store.home, home, symlinks=True)
                disk = _killed_at(at, act, home)
                if disk is None:
                    break
                _go_on(act, disk, home, checker=checker, known=known, at=at)
            act.do(store)
    return tally


def _killed_at(at: int, act: Act, home: Path) -> Disk | None:
    """The disk of a process that was killed at this call of an act; None where the act has no so many."""
    left = at

    def on_call(disk: Disk, call: str) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    disk = Disk(home, on_call)
    commits = _commits_told(partial(on_call, disk, "transaction"), lambda: None)
    with Store.open(home) as store, filesystem.use(disk), commits, suppress(Killed):
        act.do(store)
        return None
    disk.on_call = lambda disk, call: None
    return disk


def _go_on(act: Act, disk: Disk, home: Path, *, checker: Checker, known: set[tuple[bytes, str]], at: int) -> None:
    """Recover with another process, and do the act again with a third; check what a loss of power after each leaves."""
    recorder = Recorder(home, checker.tally)
    steps: dict[str, Callable[[Store], object]] = {"recovered": lambda store: store.recover(NOW), "done again": act.do}
    for then, do in steps.items():
        with Store.open(home) as store, filesystem.use(disk):
            do(store)
            facts = Facts.of(store)
        recorder.on_call(disk, f"killed, then {then}")
        for place, image in recorder.taken.values():
            # SQLite salts its log: that part differs each time
            key = digest({name: image[name] for name in image if name not in LEDGER}), repr(facts.rows)
            if key not in known:
                known.add(key)
                where = f"{act.name}, killed at its call {at}, then {then}: {place}"
                checker.check(where, image, partial(checker.broken, made=facts, coming=facts))
        recorder.taken.clear()


SWEEPS: Final[dict[str, Callable[[Path, Plan], Tally]]] = {
    "creation": lambda folder, plan: sweep_creation(folder),
    "life": sweep_life,
    "kills": sweep_kills,
}


def main(argv: list[str] | None = None) -> int:
    """Try everything, print what was tried; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.power_loss", description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=20, help="rounds of the story (default: 20)")
    parser.add_argument("--sweep", choices=SWEEPS, help="one sweep alone")
    parser.add_argument(
        "--call", type=int, help="check what one call of the life may leave, by its number, and no more"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="lay the first state out here that broke a promise")
    options = parser.parse_args(argv)
    plan = Plan(options.cycles, only_call=options.call, keep=options.keep)
    names = [options.sweep] if options.sweep else list(SWEEPS) if options.call is None else ["life"]
    print(f"{options.cycles:10}  cycles of {sum(1 for _ in acts(options.cycles)) / options.cycles:.0f} acts")
    return max([_show(name, plan) for name in names])


def _show(name: str, plan: Plan) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as folder:
        tally = SWEEPS[name](Path(folder), plan)
    print(f"{name}\n{tally}\n{time.monotonic() - began:10.0f}  seconds", flush=True)
    if tally.broken:
        again = f"python -m tests.power_loss --cycles {plan.num_cycles} --sweep {name}"
        print(f"to see one again: {again} --keep DIR{' --call N' * (name == 'life')}")
    return 1 if tally.broken else 0


def folder_in_memory() -> Path | None:
    """Where files cost no flush: hundreds of homes are written. None: the usual place."""
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
