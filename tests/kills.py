"""kill -9 of the real service and of its workers, and what must be true afterwards.

`python -m tests.kills --kills 300` kills at random times and at every step of a round, prints what it tried, and ends with 1
when a promise was broken. What the service has promised is written down outside of its home.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from benchmarks.world.world import World
from daemon.steps import STEPS
from state import audit
from state.layout import PROGRESS_FILE
from state.store import Store
from state.verify import drill, verify
from tests.product import ROOT, Home, environment, made_home

Victim = Literal["service", "worker", "both"]
VICTIMS: Final[tuple[Victim, ...]] = ("service", "worker", "both")
WAIT_S: Final = 180.0
MAX_DELAY_S: Final = 0.4
# a killed round is tried again at once and for ever, so that every batch comes to its own end
PATIENT = """
[schedule]
max_attempts = 100000
retry_s = 0.05
"""


@dataclass
class Manifest:
    """What the service let be seen; kept by whoever kills it, and not in its home."""

    drops: set[str] = field(default_factory=set)
    """Names of drops that were put into the inbox."""
    versions: dict[int, str] = field(default_factory=dict)
    """Versions that were seen, with the digest of their record."""

    def see(self, store: Store) -> None:
        """Write down every version that there is now."""
        self.versions |= {row.id: row.record or "" for row in store.ledger.versions()}


@dataclass
class Tally:
    """What was tried, how often, and what was not true afterwards."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By victim and by the step that ran."""
    num_checks: int = 0
    broken: list[str] = field(default_factory=list)


class Machine:
    """A home whose service can be started and killed."""

    def __init__(self, home: Home, world: World, *, log: Path | None = None, seed: int = 0) -> None:
        self.home = home
        self.log = log or home.path.parent / "service.log"
        self.manifest = Manifest()
        self.tally = Tally()
        self._world = world
        self._draw = random.Random(seed)
        self._service: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service, unless it runs."""
        if self._service is not None and self._service.poll() is None:
            return
        command = [sys.executable, "-m", "daemon", "-c", str(self.home.path / "service.toml"), "run"]
        with self.log.open("ab") as log:
            self._service = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)

    def drop(self, num_rows: int = 60) -> None:
        """A batch that the home has not seen."""
        number = len(self.manifest.drops)
        name = f"batch{number}.jsonl"
        self.manifest.drops.add(name)
        self.home.drop(self._world, number % 5, name, num_rows, seed=number)

    def step(self) -> str:
        """The step of the round that runs; empty when none does."""
        return str(self._shown().get("step") or "")

    def kill(self, victim: Victim) -> None:
        """kill -9; of a service that is gone already nothing is left to kill."""
        assert self._service is not None
        step = self.step() or "no round"
        workers = _children(self._service.pid)
        pids = {"service": [self._service.pid], "worker": workers, "both": [self._service.pid, *workers]}[victim]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim != "worker":
            self._service.wait()
        self.tally.kills[victim, step] += 1

    def until(self, condition: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
        """Wait for something that a living service brings about."""
        deadline = time.monotonic() + wait_s
        while not condition():
            assert self._service is not None
            assert self._service.poll() is None, f"the service ended with {self._service.returncode}\n{self._log()}"
            assert time.monotonic() < deadline, f"waited {wait_s:.0f} s for {what}\n{self._log()}"
            time.sleep(0.02)

    def until_step(self, step: str) -> None:
        """Wait until a round is at a step or behind it, with batches enough that one gets there."""
        self.start()
        if not self.num_waiting():
            self.drop()
        at = STEPS["batch"].index(step)
        self.until(lambda: self.step() in STEPS["batch"][at:], f"step {step}")

    def linger(self) -> None:
        """Let some time pass, so that not always the beginning of something is hit."""
        time.sleep(self._draw.uniform(0, MAX_DELAY_S))

    def check(self) -> None:
        """Hold the home to what was promised, while the service may be at work."""
        self.tally.num_checks += 1
        self.start()
        self.until(lambda: self._shown().get("pid") == self._pid(), "the service to serve")
        with Store.open(self.home.path) as store:
            self.tally.broken += [
                f"after kill {sum(self.tally.kills.values())}: {what}" for what in self._broken(store)
            ]
            self.manifest.see(store)

    def drain(self) -> None:
        """Let every batch come to its end, stop the service, and hold what is left to the promises of a service at rest."""
        self.start()
        self.until(self._is_idle, "every batch to come to its end", WAIT_S * (1 + self.num_waiting()))
        assert self._service is not None
        self._service.terminate()
        self._service.wait(60)
        with Store.open(self.home.path) as store:
            self.tally.broken += [f"at rest: {what}" for what in (*self._broken(store), *self._at_rest(store))]

    def stop(self) -> None:
        """Kill what runs; no check."""
        if self._service is not None and self._service.poll() is None:
            self.kill("both")

    def resident_mib(self) -> int:
        """What the supervisor has in memory; 0 when it does not run."""
        with contextlib.suppress(FileNotFoundError, StopIteration):
            lines = Path(f"/proc/{self._pid()}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024
        return 0

    def _broken(self, store: Store) -> Iterator[str]:
        yield from (f"verify: {finding.path.name}: {finding.what}" for finding in verify(store, deep=True))
        rows = {row.id: row.record or "" for row in store.ledger.versions()}
        seen = self.manifest.versions.items()
        yield from (f"v{number} is lost or another" for number, record in seen if rows.get(number) != record)
        # looked for before the ledger is read: a drop that is claimed in between is then in both, and not in neither
        waiting = {name for name in self.manifest.drops if self._is_waiting(name, store)}
        claimed = Counter(row.name for row in store.ledger.batches())
        for name in sorted(self.manifest.drops - waiting):
            if claimed[name] != 1:
                yield f"{name} is there {claimed[name]} times"
        yield from (f"audit: {what}" for what in audit.verify(store))

    def _is_waiting(self, name: str, store: Store) -> bool:
        """Whether a drop is in the inbox or in the spool still; looked for in the order in which it moves."""
        return (self.home.path / "inbox" / name).exists() or any(
            path.name.endswith(name) for path in store.spool.iterdir()
        )

    def _at_rest(self, store: Store) -> Iterator[str]:
        yield from (f"{row.name} is {row.state}" for row in store.ledger.batches() if row.state not in _ENDED)
        yield from (f"{path.name} is left in scratch" for path in store.scratch_root.iterdir())
        yield from (f"{path} is left" for path in self.home.path.rglob("over_safety*.safetensors"))
        with tempfile.TemporaryDirectory(dir=self.home.path.parent) as aside:
            versions = [row.id for row in store.ledger.versions()]
            yield from (f"drill: {finding.what}" for finding in drill(store, versions, Path(aside)))

    def _is_idle(self) -> bool:
        return not self.num_waiting() and not self.step()

    def num_waiting(self) -> int:
        """Drops that have not come to their end."""
        with Store.open(self.home.path) as store:
            states = {row.name: row.state for row in store.ledger.batches()}
        return sum(states.get(name) not in _ENDED for name in self.manifest.drops)

    def _shown(self) -> dict[str, object]:
        try:
            return dict(json.loads((self.home.path / PROGRESS_FILE).read_bytes()))
        except (FileNotFoundError, ValueError):
            return {}

    def _pid(self) -> int:
        assert self._service is not None
        return self._service.pid

    def _log(self) -> str:
        return self.log.read_text()[-3000:]


_ENDED: Final = ("published", "rejected", "quarantined", "rolled_back", "reverted")


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def patient_home(path: Path, world: World) -> Home:
    """A home whose rounds take seconds and are tried again however often they were killed."""
    home = made_home(path, world)
    home.hurry()
    with (path / "service.toml").open("a") as file:
        file.write(PATIENT)
    return home


def kill_at(machine: Machine, step: str, victim: Victim) -> None:
    """One kill at a step, and the check after the start that follows."""
    machine.until_step(step)
    machine.linger()
    machine.kill(victim)
    machine.check()


def kill_while_it_recovers(machine: Machine, times: int = 1) -> None:
    """Kill the service, and then again, as often as is said, in the first moments of its next start."""
    machine.start()
    machine.kill("both")
    for _ in range(times):
        machine.start()
        machine.linger()
        machine.kill("both")
    machine.check()


def kill_at_random(machine: Machine, draw: random.Random) -> None:
    """One kill of some kind at some time."""
    machine.start()
    if draw.random() < 0.3:
        machine.drop()
    time.sleep(draw.uniform(0, 6))
    if draw.random() < 0.2:
        kill_while_it_recovers(machine, draw.randint(1, 2))
        return
    machine.kill(draw.choice(VICTIMS))
    machine.check()


def main(argv: list[str] | None = None) -> int:
    """Kill, check, and print what was tried; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="kills at random times, after one at each step")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    began = time.monotonic()
    world, draw = World.generate(0), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(patient_home(Path(folder) / "home", world), world, seed=options.seed)
        try:
            for step in STEPS["batch"]:
                for victim in VICTIMS:
                    kill_at(machine, step, victim)
                    _show(machine)
            for _ in range(options.kills):
                kill_at_random(machine, draw)
                _show(machine)
            machine.drain()
        finally:
            machine.stop()
    tally = machine.tally
    for (hit, step), num in sorted(tally.kills.items()):
        print(f"{hit:8} {step:12} {num}")
    print(f"kills             {sum(tally.kills.values())}")
    print(f"checks            {tally.num_checks}")
    print(f"batches           {len(machine.manifest.drops)}")
    print(f"versions          {len(machine.manifest.versions)}")
    print(f"seconds           {time.monotonic() - began:.0f}")
    print(f"broken promises   {len(tally.broken)}")
    print("".join(f"  {line}\n" for line in tally.broken[:40]), end="")
    return 1 if tally.broken else 0


def _show(machine: Machine) -> None:
    if sys.stderr.isatty():
        print(f"\r{sum(machine.tally.kills.values())} kills", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
