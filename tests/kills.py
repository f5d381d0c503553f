"""kill -9 of the real service and of its workers, and what must be true afterwards.

`python -m tests.kills --kills 300 --seed 0` kills at every place of a round that has a name (`killable`) and then at random,
prints what it tried, and ends with 1 when a promise was broken (`promises`).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.world.world import World
from tests.killable import SERVICE_PLACES, WORKER_PLACES, children
from tests.machine import VICTIMS, Drop, Machine, StuckError, Victim
from tests.product import Home, made_home
from tests.round_world import FAST, deep, pairs, write_pairs, write_probes

ROUND_S: Final = 8.0
CLAIM_CALLS: Final = 40
MAX_CALLS: Final = 160
"""Calls of the disk that a service makes, from its start on, until it has claimed a batch, and has ended with it; roughly."""
MAX_WAITING: Final = 3
# a killed round is tried again at once and for ever, so that every batch comes to its own end
PATIENT: Final = {"schedule": {"max_attempts": 100000, "retry_s": 0.0}}


def patient_home(path: Path, world: World) -> Home:
    """A home with the demo model, whose rounds take seconds and are tried again however often they were killed."""
    home = made_home(path, world)
    home.hurry()
    with (path / "service.toml").open("a") as file:
        file.write("".join(f"{line}\n" for line in toml_lines(PATIENT)))
    return home


def demo_drops(home: Home, world: World) -> Drop:
    """Batches of the demo's world."""
    return lambda name, number: home.drop(world, number % 5, name, 60, seed=number)


def tiny_home(path: Path, base: Path) -> Home:
    """A home, still without a store, with the tiny model, whose rounds take a second; likewise patient."""
    (path / "inbox").mkdir(parents=True)
    write_probes(path)
    own = {"model": {"base": str(base)}, "inbox": {"settle_s": 0.2}}
    (path / "service.toml").write_text("\n".join(toml_lines(deep(deep(FAST, own), PATIENT))))
    return Home(path)


def tiny_drops(home: Home) -> Drop:
    """Batches for the tiny model, renamed into the inbox; one in two with a marker that it is complete."""

    def drop(name: str, number: int) -> None:
        inbox = home.path / "inbox"
        write_pairs(home.path / f".{name}", pairs("how do I", 24, number)).rename(inbox / name)
        if number % 2:
            (inbox / f"{name}.done").touch()

    return drop


def toml_lines(table: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Nested tables of numbers and strings as TOML."""
    if name:
        yield f"[{name}]"
    yield from (f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping))
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from toml_lines(value, f"{name}.{key}".lstrip("."))


def kill_at(machine: Machine, victim: Victim, place: str) -> None:
    """One kill at a place, and the check after the start that follows; what is only passed at a start gets one."""
    if place.endswith("recover") or place.startswith("call"):
        machine.kill("both")
    machine.spring(victim, place)
    machine.check()


def kill_at_a_call(machine: Machine, number: int) -> None:
    """One kill of the service before a call of the disk, counted from its start on, with a drop to claim."""
    machine.start()
    machine.until_served()
    if machine.num_waiting() < MAX_WAITING:
        machine.drop()
    kill_at(machine, "service", f"call {number}")


def kill_while_it_recovers(machine: Machine, times: int = 1) -> None:
    """Kill the service, and then again, as often as is said, in the first moments of its next start."""
    machine.start()
    machine.kill("both")
    for _ in range(times):
        machine.start()
        machine.linger()
        machine.kill("both")
    machine.check()


def kill_while_held(machine: Machine, victim: Victim) -> None:
    """Roll back while it is at work, kill, see that the hold is there, and lift it."""
    machine.hold()
    machine.linger()
    machine.kill(victim)
    machine.check()
    machine.let_go()


def kill_at_some_time(machine: Machine, victim: Victim) -> None:
    """One kill at a time of no choice, while there is work."""
    machine.start()
    machine.until_served()
    if not machine.num_waiting():
        machine.drop()
    machine.until(lambda: victim == "service" or bool(children(machine.pid())), "a worker")
    machine.linger(ROUND_S)
    machine.kill(victim)
    machine.check()


def kill_at_random(machine: Machine, draw: random.Random) -> None:
    """One kill of some kind."""
    kind = draw.random()
    if kind < 0.15:
        kill_while_it_recovers(machine, draw.randint(1, 2))
    elif kind < 0.35:
        kill_at_a_call(machine, draw.randint(1, draw.choice((CLAIM_CALLS, MAX_CALLS))))
    elif kind < 0.45:
        kill_while_held(machine, draw.choice(VICTIMS))
    else:
        kill_at_some_time(machine, draw.choice(VICTIMS))


def at_places(machine: Machine) -> Iterator[Callable[[], None]]:
    """Kills without a store yet, and of whoever there is at every place that has a name."""
    yield partial(kill_while_it_recovers, machine)
    for place in WORKER_PLACES:
        yield from (partial(kill_at, machine, victim, place) for victim in VICTIMS)
    yield from (partial(kill_at, machine, "service", place) for place in SERVICE_PLACES)


def at_random(machine: Machine, num: int, draw: random.Random) -> Iterator[Callable[[], None]]:
    """Kills of some kind at some time."""
    return (partial(kill_at_random, machine, draw) for _ in range(num))


def main(argv: list[str] | None = None) -> int:
    """Kill, check, and print what was tried; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="at random, after those at every place (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--places", action=argparse.BooleanOptionalAction, default=True, help="kill at every place first"
    )
    parser.add_argument("--minutes", type=float, default=600, help="begin no further kill after so many")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="alignd-kills-"))
    machine = made_machine(folder, options.seed)
    draw, began = random.Random(options.seed), time.monotonic()
    kills = [*(at_places(machine) if options.places else ()), *at_random(machine, options.kills, draw)]
    _run(machine, kills, began + 60 * options.minutes)
    _tell(machine, time.monotonic() - began)
    if machine.tally.broken:
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def made_machine(folder: Path, seed: int) -> Machine:
    """A machine with the tiny model, all of it in a folder."""
    from tests import tiny_model

    home = tiny_home(folder / "home", tiny_model.save(folder / "base"))
    return Machine(home, tiny_drops(home), seed=seed)


def _run(machine: Machine, kills: Sequence[Callable[[], None]], deadline: float) -> None:
    try:
        for one_more in kills:
            one_more()
            if sys.stderr.isatty():
                print(f"\r{sum(machine.tally.kills.values())} kills", end="", file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                break
        machine.drain()
    except StuckError as err:
        victim, where = machine.last
        machine.tally.broken.append(f"after {victim}, {where}: {err}")
    finally:
        machine.stop()


def _tell(machine: Machine, seconds: float) -> None:
    tally, manifest = machine.tally, machine.manifest
    print(f"{'where':32} {'victim':8} kills  recoveries  mean s  longest s")
    for (victim, where), num in sorted(tally.kills.items(), key=lambda item: item[0][::-1]):
        took_s = tally.recoveries_s.get((victim, where), [])
        spent = f"{statistics.mean(took_s):7.2f} {max(took_s):10.2f}" if took_s else ""
        print(f"{where:32} {victim:8} {num:5} {len(took_s):11} {spent}")
    by_victim = Counter(victim for victim, _ in tally.kills.elements())
    print(f"kills             {sum(by_victim.values())}: {', '.join(f'{by_victim[name]} {name}' for name in VICTIMS)}")
    print(f"checks            {tally.num_checks}")
    print(
        f"batches           {len(manifest.drops)} dropped, {len(manifest.batches)} acknowledged, {len(manifest.ended)} ended"
    )
    print(f"versions          {len(manifest.versions)}, {len(manifest.published)} changes of current")
    print(f"seconds           {seconds:.0f}")
    print(f"broken promises   {len(tally.broken)}")
    print("".join(f"  {line}\n" for line in tally.broken[:40]), end="")


if __name__ == "__main__":
    sys.exit(main())
