"""The real service and its workers are killed, and everything that was promised is looked for; `tests.kills` does it for long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state.store import Store
from tests.kills import kill_at, kill_while_held, kill_while_it_recovers, tiny_drops, tiny_home
from tests.machine import Machine, StuckError
from tests.promises import Manifest, broken_at_rest, broken_for_readers
from tests.round_world import opened

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def machine(tmp_path: Path, tiny_folder: Path) -> Iterator[Machine]:
    home = tiny_home(tmp_path / "home", tiny_folder)
    made = Machine(home, tiny_drops(home))
    yield made
    made.stop()


def _flip_a_byte(path: Path) -> None:
    path.chmod(0o600)
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def _cut_short(models: Path) -> None:
    (models / "v0" / "tokenizer.json").unlink()


def _point_nowhere(models: Path) -> None:
    (models / "current").unlink()
    (models / "current").symlink_to("v7")


def test_killed_at_several_places_every_promise_is_kept(machine: Machine) -> None:
    kill_while_it_recovers(machine, times=2)
    kill_at(machine, "worker", "round over_safety begins")
    kill_at(machine, "service", "round safety ends")
    kill_at(machine, "both", "round mask begins")
    kill_at(machine, "worker", "round outcome")
    kill_at(machine, "service", "before _place_files")
    kill_at(machine, "service", "after _enroll")
    kill_at(machine, "service", "before recover")
    machine.drain()
    assert machine.tally.broken == []
    with Store.open(machine.home.path) as store:
        assert store.current().id == len(machine.manifest.drops) >= 1


@pytest.mark.parametrize("number", [8, 24, 60, 90])
def test_killed_while_it_makes_its_store_it_makes_it(machine: Machine, number: int) -> None:
    kill_at(machine, "service", f"call {number}")
    assert machine.tally.kills == {("service", f"call {number}"): 1} and machine.tally.broken == []
    assert machine.manifest.published == [[1, 0]] and machine.manifest.drops == set()


def test_killed_when_a_drop_was_claimed_its_marker_goes_with_it(machine: Machine) -> None:
    machine.drop()
    kill_at(machine, "service", "after claim_batch")
    machine.drain()
    assert machine.tally.broken == []


def test_a_hold_outlives_a_kill(machine: Machine) -> None:
    machine.drop()
    machine.check()
    machine.until(machine.is_idle, "a version")
    kill_while_held(machine, "both")
    assert machine.manifest.published == [[1, 0], [2, 1], [3, 0]] and machine.tally.broken == []


def test_what_would_break_a_promise_is_seen(machine: Machine) -> None:
    machine.start()
    machine.check()
    assert machine.tally.broken == []
    machine.kill("service")
    machine.manifest.drops.add("never.jsonl")
    machine.manifest.batches["a digest"] = "acknowledged.jsonl"
    machine.manifest.versions[7] = "a digest"
    machine.manifest.published.append([2, 7])
    machine.manifest.held = "for a reason"
    _flip_a_byte(machine.home.path / "models" / "v0" / "config.json")
    machine.check()
    found = "\n".join(machine.tally.broken)
    for what in (
        "current: config.json of v0 is not what VERSION.json says",
        "verify: config.json",
        "never.jsonl is there 0 times",
        "acknowledged.jsonl was acknowledged and is lost",
        "v7 is lost or another",
        "the changes of current are not those that were seen",
        "the hold is gone: for a reason",
    ):
        assert what in found


def test_what_is_left_behind_is_seen(tmp_path: Path, tiny_folder: Path) -> None:
    with opened(tmp_path / "home", tiny_folder) as home:
        (home.path / "inbox").mkdir()
        assert list(broken_at_rest(home.store, Manifest())) == []
        for left in (
            "store/scratch/r000009/over_safety.safetensors",
            "store/.tmp-x/over_safety.safetensors",
            "inbox/late",
        ):
            (home.path / left).parent.mkdir(parents=True, exist_ok=True)
            (home.path / left).touch()
        home.drop(1)
        found = "\n".join(broken_at_rest(home.store, Manifest(over={"r000009"})))
    for what in (
        "r000009 had ended, and its scratch folder is there",
        "store/.tmp-x: an over-safety patch outside of scratch",
        "r000009 is left in scratch",
        "late is left",
        "store/.tmp-x is left",
        "batch1.jsonl is queued",
        "batch1.jsonl was taken in, and nobody dropped it",
    ):
        assert what in found


@pytest.mark.parametrize("damage", [_cut_short, _point_nowhere])
def test_a_current_that_is_not_whole_is_seen(tmp_path: Path, tiny_folder: Path, damage: Callable[[Path], None]) -> None:
    with opened(tmp_path / "home", tiny_folder) as home:
        assert list(broken_for_readers(home.path)) == []
        damage(home.path / "models")
        assert list(broken_for_readers(home.path))


def test_a_service_that_does_not_come_up_is_a_broken_promise(machine: Machine) -> None:
    (machine.home.path / "service.toml").write_text("what = 1\n")
    with pytest.raises(StuckError, match="the service ended with 78"):
        machine.check()


def test_a_kill_is_a_kill(machine: Machine) -> None:
    machine.start()
    machine.until_served()
    pid = machine.pid()
    assert not machine.kill("worker") and machine.kill("service")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert machine.tally.kills == {("service", "idle"): 1}
