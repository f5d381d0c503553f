"""The real service and its workers are killed, and everything that was promised is looked for; `tests.kills` does it for long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.world.world import World
from state.store import Store
from tests.kills import Machine, kill_at, kill_while_it_recovers, patient_home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    world = World.generate(0)
    made = Machine(patient_home(tmp_path / "home", world), world)
    yield made
    made.stop()


def test_killed_at_several_steps_and_while_it_recovers_every_promise_is_kept(machine: Machine) -> None:
    kill_at(machine, "over_safety", "worker")
    kill_at(machine, "safety", "service")
    kill_while_it_recovers(machine, times=2)
    kill_at(machine, "evaluate", "both")
    machine.drain()
    assert machine.tally.broken == []
    assert sum(machine.tally.kills.values()) == 6
    with Store.open(machine.home.path) as store:
        assert store.current().id == len(machine.manifest.drops) >= 1


def test_what_would_break_a_promise_is_seen(machine: Machine) -> None:
    machine.manifest.drops.add("never.jsonl")
    machine.manifest.versions[7] = "a digest"
    damaged = machine.home.path / "models" / "v0" / "config.json"
    damaged.chmod(0o600)
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    machine.start()
    machine.check()
    broken = " ".join(machine.tally.broken)
    assert "never.jsonl is there 0 times" in broken and "v7 is lost or another" in broken and "config.json" in broken


def test_a_kill_is_a_kill(machine: Machine) -> None:
    machine.start()
    machine.until(lambda: bool(machine._shown()), "the service to serve")
    pid = machine._pid()
    machine.kill("service")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert machine.tally.kills == {("service", "no round"): 1}
