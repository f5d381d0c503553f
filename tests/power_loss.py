"""Power is lost at every call of many rounds of a store, and everything that was promised is looked for.

`python -m tests.power_loss --cycles 20` prints what it tried.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from daemon import spool
from daemon.arrival import snapshot
from state import durable, filesystem, gc
from state.store import Store
from state.verify import drill, verify
from tests.losing_disk import Disk, Image, digest, ledger_of, states, torn_ledger, write_image
from tests.state_world import NOW, make_store, prepare, write_model


@dataclass(frozen=True)
class Promises:
    """What the store has told somebody: it must be true of every state that comes afterwards."""

    batches: frozenset[str] = frozenset()
    spooled: frozenset[str] = frozenset()
    """Drops that were taken out of the inbox."""
    versions: tuple[int, ...] = (0,)
    current: int = 0
    is_held: bool = False
    num_audit_lines: int = 0

    @classmethod
    def of(cls, store: Store) -> Promises:
        """What is true now."""
        return cls(
            frozenset(row.sha256 for row in store.ledger.batches()),
            frozenset(path.name for path in store.spool.iterdir()),
            tuple(row.id for row in store.ledger.versions()),
            store.current().id,
            store.held is not None,
            _num_lines(store),
        )


def _num_lines(store: Store) -> int:
    return store.audit_path.read_bytes().count(b"\n") if store.audit_path.exists() else 0


@dataclass
class Story:
    """What happened up to a loss of power, and what it may leave."""

    images: dict[bytes, tuple[str, Image, int]] = field(default_factory=dict)
    """Per distinct state: where it comes from, its content, and how many promises had been made."""
    promised: list[Promises] = field(default_factory=list)
    num_calls: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """States by the kind of loss that leads to them, equal ones counted each time."""

    def take(self, disk: Disk, call: str, ledger: Image, torn: Image | None) -> None:
        """Enumerate what a loss of power before this call may leave."""
        self.num_calls += 1
        for kind, image in states(disk, ledger):
            self._keep(image, f"call {self.num_calls} ({call}): {kind}", kind)
        if torn is not None:
            whole = next(iter(states(disk, torn)))[1]
            self._keep(whole, f"call {self.num_calls} ({call}): ledger torn", "ledger torn")

    def _keep(self, image: Image, place: str, kind: str) -> None:
        self.kinds[kind] += 1
        # the same content after one more promise is another state: more must be true of it
        key = digest(image) + len(self.promised).to_bytes(4)
        self.images.setdefault(key, (place, image, len(self.promised) - 1))


def play(folder: Path, num_cycles: int, fs: type[Disk] = Disk) -> Story:
    """Cycles of drop, claim, round, commit, rollback, promotion and collection on a tiny model."""
    write_model(folder / "base")
    story = Story()
    with make_store(folder) as store:
        home = store.home
        (home / "inbox").mkdir()
        last = ledger_of(home)

        def on_call(disk: Disk, call: str) -> None:
            nonlocal last
            now = ledger_of(home)
            story.take(disk, call, now, torn_ledger(last, now))
            last = now

        disk = fs(home, on_call)
        with filesystem.use(disk):
            for act in _acts(store, num_cycles):
                story.promised.append(Promises.of(store))
                act()
            story.promised.append(Promises.of(store))
            on_call(disk, "the end")
    return story


def _acts(store: Store, num_cycles: int) -> Iterator[Callable[[], object]]:
    """What is done to the store, one promise each."""
    who: Any = {"actor": "tester", "now": NOW}
    for cycle in range(1, num_cycles + 1):
        yield partial(_drop, store, cycle)
        yield partial(_claim_all, store)
        (queued,) = (row for row in store.ledger.batches() if row.state == "queued")
        round_id = store.begin_round(queued.sha256, config={"seed": cycle}, now=NOW).id
        yield partial(store.finish_step, round_id, "parse", {"num_rows": 1})
        durable.make_folder(store.scratch(round_id))
        made = prepare(store, round_id, cycle)
        yield partial(store.commit_version, round_id, **made, state="published", now=NOW)
        if cycle % 2 == 0:
            yield partial(store.rollback, reason="bad", **who)
            yield partial(store.resume, **who)
        yield partial(gc.run, store, keep_materialized=1, **who)
        yield partial(store.promote, "v0", force=True, reason="back to the start", **who)
        yield partial(store.promote, f"v{cycle}", force=True, reason="and forth", **who)


def _drop(store: Store, cycle: int) -> None:
    """A file that its owner flushed in the inbox, and the service takes out of it."""
    name = f"batch{cycle}.jsonl"
    source = store.home / "inbox" / name
    durable.write_file(source, f"zorp {cycle}\n".encode())
    spool.take_out(source, store.spool / f"{cycle:032x}{name}", snapshot(source))


def _claim_all(store: Store) -> None:
    """Claim what lies in the spool, as the service does at its start."""
    for entry in sorted(store.spool.iterdir()):
        store.claim_batch(entry, name=spool.spooled_name(entry.name), actor="tester", now=NOW)


@dataclass
class Tally:
    """How many states were checked, and what was not true of them."""

    num_checked: int = 0
    broken: list[str] = field(default_factory=list)


def check_all(
    story: Story, work: Path, *, until_broken: bool = False, progress: Callable[[int, int], None] | None = None
) -> Tally:
    """Start on every state as after a loss of power, and hold it to what had been promised.

    Args:
        work: the folder in which each state is laid out.
        until_broken: end with the first promise that is not kept.
    """
    tally = Tally()
    for place, image, at in story.images.values():
        made = story.promised[at]
        coming = story.promised[min(at + 1, len(story.promised) - 1)]
        write_image(image, work)
        tally.num_checked += 1
        try:
            tally.broken += [f"{place}: {what}" for what in broken_promises(work, made, coming)]
        except Exception as err:  # noqa: BLE001  whatever it is, the store did not come back
            tally.broken.append(f"{place}: {type(err).__name__}: {err}")
        if progress is not None:
            progress(tally.num_checked, len(story.images))
        if until_broken and tally.broken:
            break
    return tally


def broken_promises(home: Path, made: Promises, coming: Promises) -> Iterator[str]:
    """Recover a home as the service does at its start; what is not as promised.

    Args:
        made: what had been promised before the loss of power.
        coming: what the change that it interrupted would have promised.
    """
    with Store.open(home) as store:
        store.recover(NOW)
        _claim_all(store)
        yield from (f"verify: {finding}" for finding in verify(store, deep=True))
        found = Promises.of(store)
        if lost := made.batches - found.batches:
            yield f"{len(lost)} acknowledged batches are gone"
        if len(found.batches) < len(made.batches) + len(made.spooled):
            yield "a drop that was taken out of the inbox is gone"
        if len(found.batches) > len(made.batches | coming.batches) + len(made.spooled | coming.spooled):
            yield "a batch is there twice"
        if lost_versions := set(made.versions) - set(found.versions):
            yield f"versions {sorted(lost_versions)} are gone"
        if found.current not in (made.current, coming.current):
            yield f"current is v{found.current} and neither v{made.current} nor v{coming.current}"
        if found.is_held not in (made.is_held, coming.is_held):
            yield f"held is {found.is_held}"
        if found.num_audit_lines < made.num_audit_lines:
            yield f"{found.num_audit_lines} of {made.num_audit_lines} audit lines are there"
        with tempfile.TemporaryDirectory(dir=home.parent) as aside:
            yield from (f"drill: {finding}" for finding in drill(store, found.versions, Path(aside)))
        if done := store.recover(NOW):
            yield f"a second start still found work: {done}"


def folder_in_memory() -> Path | None:
    """Where files cost no flush: hundreds of homes are written. None: the usual place."""
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def main(argv: list[str] | None = None) -> int:
    """Play, check, and print what was tried; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.power_loss", description=__doc__)
    parser.add_argument("--cycles", type=int, default=20, help="rounds of the story (default: 20)")
    options = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as folder:
        story = play(Path(folder), options.cycles)
        progress = _show if sys.stderr.isatty() else None
        tally = check_all(story, Path(folder) / "work", progress=progress)
    print(f"cycles                    {options.cycles}")
    print(f"calls that change a disk  {story.num_calls}")
    for kind, num in sorted(story.kinds.items()):
        print(f"  {kind:42} {num}")
    print(f"distinct states checked   {tally.num_checked}")
    print(f"seconds                   {time.monotonic() - began:.0f}")
    print(f"broken promises           {len(tally.broken)}")
    print("".join(f"  {line}\n" for line in tally.broken[:40]), end="")
    return 1 if tally.broken else 0


def _show(done: int, total: int) -> None:
    print(f"\r{done} of {total} states", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
