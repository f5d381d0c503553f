"""A service and a user who does at random what users do, for as long as is asked; every promise is checked all the while.

`python -m tests.soak --minutes 60` prints what was done, how often, and what was not true.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blake3 import blake3

from benchmarks.world.world import World
from daemon import exitcodes
from state.store import Store
from tests.disks import fill, mounted
from tests.kills import demo_drops, kill_while_it_recovers, patient_home
from tests.machine import VICTIMS, Machine
from tests.product import ROOT, environment

DISK_MIB: Final = 1024
MAX_RESIDENT_MIB: Final = 80
MAX_WAITING: Final = 3
READERS_TRIES: Final = 5
CHANGES: Final = frozenset((exitcodes.OK, exitcodes.REFUSED, exitcodes.LOCKED, exitcodes.TRY_AGAIN))
"""What a command that changes something may answer to somebody who asks at any time."""
ANSWERS: Final = {"status": frozenset((exitcodes.OK, exitcodes.DEGRADED))}
"""What other commands may."""
ANSWERS_ON_A_FULL_DISK: Final = CHANGES | {exitcodes.FAILED}
BAD_DROPS: Final = {
    "cut": '{"prompt": "zorp", "response": "bl',
    "few": '{"prompt": "zorp", "response": "blip"}\n',
    "columns": "colour,size\nred,3\n",
    "empty": "",
}


@dataclass
class Soak:
    """One user, one service, one small disk."""

    machine: Machine
    disk: Path
    draw: random.Random
    acts: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    max_resident_mib: int = 0

    def act(self) -> None:
        """Do something that users do, and check."""
        name, act = self.draw.choice(self._acts())
        act()
        self.acts[name] += 1
        self.machine.check()
        self._look()

    def finish(self) -> None:
        """Let everything come to its end."""
        self.command("resume")
        self.machine.drain()
        self._look()

    def command(self, *words: str, answers: frozenset[int] | None = None) -> None:
        """One alignd command; anything but an answer that is known for it is a broken promise."""
        answers = answers or ANSWERS.get(words[0], CHANGES)
        line = [sys.executable, "-m", "daemon", "-c", str(self.machine.home.path), *words]
        done = subprocess.run(
            line, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        self.answers[f"{words[0]} {done.returncode}"] += 1
        if done.returncode not in answers or "Traceback" in done.stderr:
            self.machine.tally.broken.append(f"{words} ended with {done.returncode}: {done.stderr[-300:]}")

    def _acts(self) -> list[tuple[str, Callable[[], None]]]:
        """What may be done, the frequent ones several times."""
        return [
            *[("drop", self._drop)] * 5,
            *[("bad drop", self._bad_drop)] * 2,
            *[("wait", self._wait)] * 4,
            *[("kill", self._kill)] * 3,
            ("killed while it recovers", lambda: kill_while_it_recovers(self.machine)),
            *[("rollback", lambda: self.command("rollback", "--reason", "soak"))] * 2,
            *[("resume", lambda: self.command("resume"))] * 4,
            ("promote", lambda: self.command("promote", self._some_version(), "--force", "--reason", "soak")),
            ("revert", lambda: self.command("revert", self._some_version(), "--reason", "soak")),
            ("revert anew", lambda: self.command("revert", self._some_version(), "--anew", "--reason", "soak")),
            ("consolidate", lambda: self.command("consolidate", "--reason", "soak")),
            ("pin", lambda: self.command("pin", self._some_version())),
            ("unpin", lambda: self.command("unpin", self._some_version())),
            ("tag", lambda: self.command("tag", "kept", self._some_version())),
            ("gc", lambda: self.command("gc")),
            ("status", lambda: self.command("status")),
            ("disk full", self._fill),
        ]

    def _drop(self) -> None:
        if self.machine.num_waiting() < MAX_WAITING:
            self.machine.drop()

    def _bad_drop(self) -> None:
        kind = self.draw.choice(sorted(BAD_DROPS))
        # a comment line of its own makes every one another content
        text = BAD_DROPS[kind] + (f"{len(self.machine.manifest.drops)}\n" if kind in ("cut", "columns") else "")
        name = f"{kind}{len(self.machine.manifest.drops)}.{'csv' if kind == 'columns' else 'jsonl'}"
        if kind in ("few", "empty") and any(known.startswith(kind) for known in self.machine.manifest.drops):
            return
        aside = self.machine.home.path / f".{name}"
        aside.write_text(text)
        aside.rename(self.machine.home.path / "inbox" / name)
        self.machine.manifest.drops.add(name)

    def _wait(self) -> None:
        time.sleep(self.draw.uniform(0, 10))

    def _kill(self) -> None:
        self.machine.start()
        time.sleep(self.draw.uniform(0, 3))
        self.machine.kill(self.draw.choice(VICTIMS))

    def _fill(self) -> None:
        """Every byte of the disk is taken for some seconds; a rollback works all the same."""
        filler = fill(self.disk)
        try:
            if self.draw.random() < 0.5:
                self.command("rollback", "--reason", "soak on a full disk", answers=ANSWERS_ON_A_FULL_DISK)
            time.sleep(self.draw.uniform(1, 5))
        finally:
            filler.unlink()

    def _some_version(self) -> str:
        with Store.open(self.machine.home.path) as store:
            return self.draw.choice([row.name for row in store.ledger.versions()])

    def _look(self) -> None:
        """The model that an engine would load now is one whole version; the supervisor stays small."""
        self.machine.tally.broken += self._mixed()
        resident = self.machine.resident_mib()
        self.max_resident_mib = max(self.max_resident_mib, resident)
        if resident > MAX_RESIDENT_MIB:
            self.machine.tally.broken.append(f"the supervisor takes {resident} MiB")

    def _mixed(self) -> Iterator[str]:
        for _ in range(READERS_TRIES):
            folder = (self.machine.home.path / "models" / "current").resolve()
            try:
                found = {path.name: f"blake3:{blake3(path.read_bytes()).hexdigest()}" for path in folder.iterdir()}
                break
            except FileNotFoundError:  # collected under the reader's hands, when it was current no more
                continue
        else:
            yield f"current led nowhere {READERS_TRIES} times"
            return
        with Store.open(self.machine.home.path) as store:
            expected = store.version_record(int(folder.name.removeprefix("v")))["files"]
        if found != expected:
            yield f"what current led to is not {folder.name} as its record has it"


def main(argv: list[str] | None = None) -> int:
    """Soak, and print what was done; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    began, world = time.monotonic(), World.generate(0)
    with tempfile.TemporaryDirectory() as folder, mounted(Path(folder) / "disk", DISK_MIB) as disk:
        home = patient_home(disk / "home", world)
        machine = Machine(home, demo_drops(home, world), log=Path(folder) / "service.log", seed=options.seed)
        soak = Soak(machine, disk, random.Random(options.seed))
        try:
            while time.monotonic() - began < 60 * options.minutes:
                soak.act()
                _show(soak, time.monotonic() - began)
            soak.finish()
        finally:
            machine.stop()
        _tell(soak, time.monotonic() - began)
    return 1 if machine.tally.broken else 0


def _show(soak: Soak, seconds: float) -> None:
    if sys.stderr.isatty():
        num_acts, num_broken = sum(soak.acts.values()), len(soak.machine.tally.broken)
        print(f"\r{seconds / 60:.0f} min, {num_acts} acts, {num_broken} broken", end="", file=sys.stderr, flush=True)


def _tell(soak: Soak, seconds: float) -> None:
    tally, manifest = soak.machine.tally, soak.machine.manifest
    with Store.open(soak.machine.home.path) as store:
        states = Counter(row.state for row in store.ledger.batches())
        num_lines = store.audit_path.read_bytes().count(b"\n")
    for title, counts in (("act", soak.acts), ("answer", soak.answers), ("batch", states)):
        for name, num in sorted(counts.items()):
            print(f"{title:8} {name:28} {num}")
    kills = Counter(victim for (victim, _), num in tally.kills.items() for _ in range(num))
    print(
        f"kills             {sum(kills.values())}: {', '.join(f'{num} {name}' for name, num in sorted(kills.items()))}"
    )
    print(f"checks            {tally.num_checks}")
    print(f"drops             {len(manifest.drops)}")
    print(f"versions          {len(manifest.versions)}")
    print(f"audit lines       {num_lines}")
    print(f"supervisor        {soak.max_resident_mib} MiB at most")
    print(f"minutes           {seconds / 60:.1f}")
    print(f"broken promises   {len(tally.broken)}")
    print("".join(f"  {line}\n" for line in tally.broken[:40]), end="")


if __name__ == "__main__":
    sys.exit(main())
