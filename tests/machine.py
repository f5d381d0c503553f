"""A home whose service is started, killed, and held to what it promised."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from daemon.steps import STEPS
from state.layout import PROGRESS_FILE
from state.ledger import Ledger
from state.store import Store
from tests.killable import children, kill
from tests.product import ROOT, Home, environment
from tests.promises import (
    ENDED,
    Manifest,
    broken,
    broken_at_rest,
    broken_for_readers,
    facts,
    ledger_of_the_dead,
    rounds_over,
)
from tests.round_world import NOW

Victim = Literal["service", "worker", "both"]
Drop = Callable[[str, int], None]
"""Puts a batch of this name and with the rows of this number into the inbox."""
VICTIMS: Final[tuple[Victim, ...]] = ("service", "worker", "both")
WAIT_S: Final = 180.0
MAX_DELAY_S: Final = 0.4


class StuckError(AssertionError):
    """The service does not come up, or goes no further."""


@dataclass
class Tally:
    """What was tried, how often, and what was not true afterwards."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By victim and by where it hit."""
    recoveries_s: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from a start of the service until it served, by the kill before it."""
    num_checks: int = 0
    broken: list[str] = field(default_factory=list)


class Machine:
    """A home whose service can be started and killed: from outside, or at a place that has a name (`killable`)."""

    def __init__(self, home: Home, drop: Drop, *, log: Path | None = None, seed: int = 0) -> None:
        self.home = home
        self.log = log or home.path.parent / "service.log"
        self.manifest = Manifest()
        self.tally = Tally()
        self._drop = drop
        self._seed = seed
        self._draw = random.Random(seed)
        self._trap = self.log.with_name("trap")
        self._service: subprocess.Popen[bytes] | None = None
        self._may_spring = False
        self.last = "", ""
        """Victim and place of the latest kill."""

    def start(self) -> None:
        """Start the service, unless it runs; first look at what the dead one left to readers."""
        if self.is_alive():
            return
        self._look_at_the_dead()
        program = ["tests.killable", str(self._trap)] if self._may_spring else ["daemon"]
        command = [sys.executable, "-m", *program, "-c", str(self.home.path / "service.toml"), "run"]
        with self.log.open("ab") as log:
            self._service = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)

    def is_alive(self) -> bool:
        """Whether the service runs."""
        return self._service is not None and self._service.poll() is None

    def drop(self) -> None:
        """A batch that the home has not seen."""
        number = 1 + len(self.manifest.drops)
        name = f"batch{number}.jsonl"
        self.manifest.drops.add(name)
        self._drop(name, number)

    def step(self) -> str:
        """The step of the round that runs, as the service shows it; empty when none does."""
        return str(self._shown().get("step") or "")

    def kill(self, victim: Victim) -> bool:
        """kill -9 from outside; False when there was nobody to kill."""
        if not self.is_alive():
            return False
        self._may_spring = self._may_spring and victim == "worker"
        workers = children(self.pid())
        pids = {"service": [self.pid()], "worker": workers, "both": [self.pid(), *workers]}[victim]
        for pid in pids:
            kill(pid)
        if victim != "worker":
            self._wait_for_the_end()
        if pids:
            self._note(victim, self._where())
        return bool(pids)

    def spring(self, victim: Victim, place: str) -> None:
        """kill -9 at a place, with batches enough that the service or a worker gets there."""
        if not self._may_spring:
            self.kill("both")
            self._may_spring = True
        aside = self._trap.with_suffix(".new")
        aside.write_text(f"{victim} {place}")
        aside.rename(self._trap)
        self.start()
        self._until_sprung(place)
        if victim != "worker":
            self._wait_for_the_end()
        self._note(victim, place)

    def until(self, condition: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
        """Wait for something that a living service brings about."""
        deadline = time.monotonic() + wait_s
        while not condition():
            if not self.is_alive():
                raise StuckError(f"the service ended with {self._service and self._service.returncode}\n{self._told()}")
            if time.monotonic() > deadline:
                raise StuckError(f"waited {wait_s:.0f} s for {what}\n{self._told()}")
            time.sleep(0.02)

    def until_served(self) -> None:
        """Wait until the service that was started last is at work."""
        self.until(lambda: self._shown().get("pid") == self.pid(), "the service to serve")

    def linger(self, max_s: float = MAX_DELAY_S) -> None:
        """Let some time pass, so that not always the beginning of something is hit."""
        time.sleep(self._draw.uniform(0, max_s))

    def check(self) -> None:
        """Hold the home to what was promised, while the service may be at work."""
        self.tally.num_checks += 1
        was_dead, began = not self.is_alive(), time.monotonic()
        self.start()
        self.until_served()
        if was_dead:
            self.tally.recoveries_s[self.last].append(time.monotonic() - began)
        with Store.open(self.home.path) as store:
            self._blame(broken(store, self.manifest))
            self.manifest.see(store)
        self.manifest.save(self.log.with_name("manifest.json"))

    def drain(self) -> None:
        """Let every batch come to its end, stop the service, and hold what is left to the promises of a service at rest."""
        self.start()
        self.until(self.is_idle, "every batch to come to its end", WAIT_S * (1 + self.num_waiting()))
        assert self._service is not None
        self._service.terminate()
        self._service.wait(60)
        with Store.open(self.home.path) as store:
            self._blame(broken_at_rest(store, self.manifest))
            self.manifest.see(store)
        for words in (["verify", "--deep"], ["audit", "--verify"]):
            self._blame(self._refusals(*words))

    def stop(self) -> None:
        """Kill what runs; no check."""
        if self.is_alive():
            self.kill("both")

    def hold(self) -> None:
        """Roll back, or pause where there is nothing to go back to; the service may be at work."""
        reason = f"hold {self.tally.num_checks}"
        with Store.open(self.home.path) as store:
            if store.previous() is None:
                return
            store.rollback(reason=reason, actor="killer", now=NOW)
            self.manifest.held = reason
            self.manifest.see(store)

    def let_go(self) -> None:
        """Lift the hold."""
        self.manifest.held = ""
        with Store.open(self.home.path) as store:
            store.resume(actor="killer", now=NOW)

    def is_idle(self) -> bool:
        """Whether everything that was dropped has come to its end."""
        return not self.num_waiting() and not self.step()

    def num_waiting(self) -> int:
        """Drops that have not come to their end."""
        with Store.open(self.home.path) as store:
            states = {row.name: row.state for row in store.ledger.batches()}
        return sum(states.get(name) not in ENDED for name in self.manifest.drops)

    def resident_mib(self) -> int:
        """What the supervisor has in memory; 0 when it does not run."""
        with contextlib.suppress(FileNotFoundError, StopIteration):
            lines = Path(f"/proc/{self.pid()}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024
        return 0

    def pid(self) -> int:
        """Of the service that was started last."""
        assert self._service is not None
        return self._service.pid

    def _wait_for_the_end(self) -> None:
        assert self._service is not None
        self._service.wait(WAIT_S)

    def _note(self, victim: Victim, where: str) -> None:
        self.last = victim, where
        self.tally.kills[self.last] += 1

    def _blame(self, found: Iterator[str]) -> None:
        victim, where = self.last
        after = f"seed {self._seed}, kill {sum(self.tally.kills.values())} ({victim}, {where}), check {self.tally.num_checks}"
        self.tally.broken += [f"{after}: {what}" for what in found]

    def _look_at_the_dead(self) -> None:
        if (self.home.path / "store" / "ledger.db").exists():
            self._blame(broken_for_readers(self.home.path))
            with ledger_of_the_dead(self.home.path) as ledger:
                self.manifest.over = rounds_over(ledger)

    def _until_sprung(self, place: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while self._trap.exists():
            if time.monotonic() > deadline:
                raise StuckError(f"waited {WAIT_S:.0f} s for somebody to come to: {place}\n{self._told()}")
            if self.is_alive() and self._shown().get("pid") == self.pid() and self.is_idle():
                self.drop()
            time.sleep(0.05)

    def _where(self) -> str:
        """What the service was at, as the ledger has it: the step that was not finished."""
        if not (self.home.path / "store" / "ledger.db").exists():
            return "no store"
        with self._ledger() as ledger:
            for row in ledger.rounds("running"):
                return next((step for step in STEPS[row.kind] if step not in row.artefacts), "commit")
            queued = ledger.batches("queued")
            return "intake" if any(not row.stats for row in queued) else "between rounds" if queued else "idle"

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        if self.is_alive():
            with Store.open(self.home.path) as store:
                yield store.ledger
        else:
            with ledger_of_the_dead(self.home.path) as ledger:
                yield ledger

    def _refusals(self, *words: str) -> Iterator[str]:
        line = [sys.executable, "-m", "daemon", "-c", str(self.home.path), *words]
        done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"alignd {' '.join(words)} ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}"

    def _shown(self) -> dict[str, Any]:
        return facts(self.home.path / PROGRESS_FILE)

    def _told(self) -> str:
        return self.log.read_text()[-3000:]
