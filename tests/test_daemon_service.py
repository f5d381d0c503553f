"""The supervisor's loop, with real files and workers that only pretend."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import exitcodes
from daemon.config import Config, ConfigError
from daemon.service import Service
from state import durable, lock
from state.filesystem import use
from state.layout import PROGRESS_FILE
from state.rows import BatchRow, RoundRow
from state.store import Store
from tests.disks import FullDisk, make_deep
from tests.fakes_service import (
    NOW,
    FakeWorker,
    Running,
    drop,
    fast_config,
    make_model,
    wait_until,
    write_probes,
)
from tests.state_world import hold

ROOT = Path(__file__).resolve().parent.parent
REJECTED = {"event": "done", "outcome": "rejected", "reasons": ["harm is 0.4, allowed is 0.1"]}
READY = {"event": "done", "outcome": "ready"}


def _progress(step: str, fraction: float, loss: float | None = None) -> dict[str, Any]:
    return {"event": "progress", "step": step, "fraction": fraction, "loss": loss}


def _step(step: str) -> dict[str, Any]:
    return {"event": "step", "step": step, "result": {"from": step}}


def _failed(reason: str, **more: bool) -> dict[str, Any]:
    return {"event": "failed", "reason": reason, "retry": True, **more}


def _once(home: Path, worker: FakeWorker, config: Config | None = None) -> int:
    return Service(home, config or fast_config(), once=True, argv=worker.argv, tick_s=0.1).run()


def _forever(home: Path, worker: FakeWorker, config: Config | None = None, **more: Any) -> Running:
    return Running(Service(home, config or fast_config(), once=False, argv=worker.argv, tick_s=0.1, **more))


def _batches(home: Path) -> list[BatchRow]:
    with Store.open(home) as store:
        return store.ledger.batches()


def _rounds(home: Path) -> list[RoundRow]:
    with Store.open(home) as store:
        return store.ledger.rounds()


def _current(home: Path) -> str:
    return os.readlink(home / "models" / "current")  # noqa: PTH115 - the text of the link is what is asked for


def _shown(home: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((home / PROGRESS_FILE).read_text())
    except FileNotFoundError:
        return {}
    return content


def test_once_drains_the_inbox_in_order_and_exits_with_zero(home: Path, worker: FakeWorker) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        drop(home, name, f"{name}\n")
    assert _once(home, worker) == exitcodes.OK
    assert [(row.name, row.state) for row in _batches(home)] == [("a.jsonl", "published"), ("b.jsonl", "published")]
    assert [row.batch for row in _rounds(home)] == [row.sha256 for row in _batches(home)]
    assert _batches(home)[0].stats == {"num_rows": 50}
    assert _current(home) == "v2"


def test_once_with_an_empty_inbox_ends_at_once(home: Path, worker: FakeWorker) -> None:
    started = time.monotonic()
    assert _once(home, worker) == exitcodes.OK
    assert time.monotonic() - started < 10 and worker.starts("intake") == []


def test_once_waits_for_a_file_that_is_still_growing(home: Path, worker: FakeWorker) -> None:
    code = (
        "import sys, time\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    for row in range(4):\n"
        "        file.write(f'row {row}\\n'); file.flush(); time.sleep(0.2)\n"
    )
    path = home / "inbox" / "a.jsonl"
    with subprocess.Popen([sys.executable, "-S", "-c", code, str(path)]) as writer:
        wait_until(path.exists)
        assert _once(home, worker) == exitcodes.OK
        writer.wait()
    (row,) = _batches(home)
    assert row.num_bytes == len("row 0\n") * 4


def test_a_batch_dropped_twice_is_trained_once(home: Path, worker: FakeWorker) -> None:
    drop(home, "a.jsonl")
    drop(home, "b.jsonl")
    assert _once(home, worker) == exitcodes.OK
    assert len(worker.starts("round")) == 1
    assert _once(home, worker) == exitcodes.OK
    assert len(worker.starts("round")) == 1


def test_a_rejected_round_is_recorded_and_the_queue_goes_on(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", REJECTED)
    drop(home, "a.jsonl", "one\n")
    drop(home, "b.jsonl", "two\n")
    assert _once(home, worker) == exitcodes.DEGRADED
    assert [row.state for row in _batches(home)] == ["rejected", "published"]
    assert _rounds(home)[0].reason == "harm is 0.4, allowed is 0.1"
    assert _current(home) == "v1"


def test_a_batch_that_intake_refuses_is_quarantined_with_its_reason(home: Path, worker: FakeWorker) -> None:
    worker.script("intake-1", {"event": "done", "outcome": "quarantined", "reasons": ["a.jsonl row 3: no prompt"]})
    drop(home, "a.jsonl", "one\n")
    drop(home, "b.jsonl", "two\n")
    assert _once(home, worker) == exitcodes.DEGRADED
    assert [row.state for row in _batches(home)] == ["quarantined", "published"]
    (reason,) = home.glob("quarantine/*/reason.json")
    assert json.loads(reason.read_text())["reason"] == "a.jsonl row 3: no prompt"


def test_a_symbolic_link_makes_once_exit_with_degraded(home: Path, worker: FakeWorker) -> None:
    (home / "inbox" / "a.jsonl").symlink_to("/etc/hostname")
    assert _once(home, worker) == exitcodes.DEGRADED
    assert worker.starts("intake") == []


def test_a_worker_that_dies_is_resumed_after_its_last_finished_step(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", _progress("derive", 0.5), _step("derive"), {"kill": 9})
    drop(home, "a.jsonl")
    assert _once(home, worker) == exitcodes.OK
    (row,) = _rounds(home)
    assert (row.state, row.attempts, row.step) == ("published", 2, "derive")
    assert row.artefacts["derive"] == {"from": "derive"}
    assert worker.starts("round") == [row.id, row.id]


def test_after_max_attempts_the_batch_is_quarantined_and_the_next_one_runs(home: Path, worker: FakeWorker) -> None:
    for nth in (1, 2, 3):
        worker.script(f"round-{nth}", {"exit": 7})
    drop(home, "a.jsonl", "one\n")
    drop(home, "b.jsonl", "two\n")
    assert _once(home, worker) == exitcodes.DEGRADED
    first, second = _batches(home)
    assert (first.state, second.state) == ("quarantined", "published")
    assert "exit code 7" in first.reason and "3 times" in first.reason
    assert [row.state for row in _rounds(home)] == ["failed", "published"]


def test_an_intake_that_keeps_dying_quarantines_its_batch(home: Path, worker: FakeWorker) -> None:
    worker.script("intake", {"kill": 11})
    drop(home, "a.jsonl")
    assert _once(home, worker) == exitcodes.DEGRADED
    assert len(worker.starts("intake")) == 3
    assert "SIGSEGV" in _batches(home)[0].reason


def test_a_failure_that_cannot_be_helped_is_not_tried_again(home: Path, worker: FakeWorker) -> None:
    worker.script("round", {"event": "failed", "reason": "the model has no such layer", "retry": False})
    drop(home, "a.jsonl")
    assert _once(home, worker) == exitcodes.DEGRADED
    assert len(worker.starts("round")) == 1


def test_a_full_disk_blames_no_batch_and_ends_once(home: Path, worker: FakeWorker) -> None:
    worker.script("round", _failed("no space left on the disk", blameless=True))
    drop(home, "a.jsonl")
    assert _once(home, worker, fast_config(schedule={"retry_s": 60.0})) == exitcodes.DEGRADED
    (row,) = _rounds(home)
    assert (row.state, row.attempts) == ("running", 1)
    worker.script("round", READY)
    assert _once(home, worker) == exitcodes.OK
    assert _rounds(home)[0].state == "published"


def test_settings_that_break_while_it_runs_are_named_and_not_the_disk(home: Path, worker: FakeWorker) -> None:
    cause = "the settings or probes cannot be used: service.toml: unknown key `seeed`"
    worker.script("intake-1", _failed(cause, blameless=True))
    drop(home, "a.jsonl")
    with _forever(home, worker, fast_config(schedule={"retry_s": 60.0})):
        wait_until(lambda: cause in _shown(home).get("message", ""))
        message = _shown(home)["message"]
    assert "a.jsonl" in message and "disk" not in message
    worker.script("intake-2", {"event": "done", "outcome": "accepted", "result": {"num_rows": 50}})
    worker.script("round", _failed(cause, blameless=True))
    with _forever(home, worker, fast_config(schedule={"retry_s": 60.0})):
        wait_until(lambda: cause in _shown(home).get("message", ""))
        message = _shown(home)["message"]
    assert "r000001" in message and "disk" not in message


def test_a_round_that_kills_the_service_counts_an_attempt_each_time(home: Path, worker: FakeWorker) -> None:
    worker.script("round", _progress("derive", 0.5), {"sleep": 60})
    drop(home, "a.jsonl")
    for attempts in (1, 2):
        _kill_at_work(home, worker)
        assert [(row.state, row.attempts) for row in _rounds(home)] == [("running", attempts)]
    assert _once(home, worker, fast_config(schedule={"max_attempts": 2})) == exitcodes.DEGRADED
    (row,) = _rounds(home)
    assert row.state == "failed" and "the service died" in row.reason and "2 times" in row.reason
    assert _batches(home)[0].state == "quarantined" and len(worker.starts("round")) == 2


def _kill_at_work(home: Path, worker: FakeWorker) -> None:
    """Ends a service as the kernel does while a round is at work."""
    code = (
        "import sys; from pathlib import Path; from daemon.service import Service;"
        "from tests.fakes_service import fast_config;"
        f"argv = lambda *job: [{sys.executable!r}, *{worker.argv('', '')[1:-2]!r}, *job];"
        f"Service(Path({str(home)!r}), fast_config(), once=False, argv=argv, tick_s=0.1).run()"
    )
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        wait_until(lambda: _shown(home).get("step") == "derive" and _shown(home)["pid"] == process.pid)
        os.kill(_worker_of(process.pid), signal.SIGKILL)  # a fake worker does not watch its parent
        process.kill()


def _worker_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_silent_worker_is_ended_and_its_round_resumed(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", _progress("derive", 0.1), {"sleep": 60})
    drop(home, "a.jsonl")
    assert _once(home, worker, fast_config(schedule={"phase_limit_s": 2.0, "max_attempts": 6})) == exitcodes.OK
    assert _rounds(home)[0].attempts >= 2


def test_below_the_disk_floor_nothing_is_claimed_and_nothing_is_lost(home: Path, worker: FakeWorker) -> None:
    drop(home, "a.jsonl")
    config = fast_config(inbox={"min_free_bytes": 1 << 60})
    assert _once(home, worker, config) == exitcodes.DEGRADED
    assert _batches(home) == [] and (home / "inbox" / "a.jsonl").exists()
    assert _once(home, worker) == exitcodes.OK


def test_a_full_disk_stops_claiming_and_says_so_until_there_is_room(home: Path, worker: FakeWorker) -> None:
    disk = FullDisk(is_full=False)
    with use(disk), _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("state") == "idle")
        disk.is_full = True
        drop(home, "a.jsonl")
        wait_until(lambda: "No space left" in _shown(home).get("message", ""))
        assert store.ledger.batches() == []
        disk.is_full = False
        wait_until(lambda: [row.state for row in store.ledger.batches()] == ["published"])
        wait_until(lambda: _shown(home).get("message") == "")


def _odd_name(folder: Path) -> Path:
    """A file whose name is no UTF-8."""
    return folder / os.fsdecode(b"caf\xe9.jsonl")


def _write_under_an_odd_name(inbox: Path) -> None:
    _odd_name(inbox).write_text("row\n")


def _make_empty_under_an_odd_name(inbox: Path) -> None:
    (inbox / os.fsdecode(b"empty\xe9")).mkdir()


def _hide_a_link_under_an_odd_name(inbox: Path) -> None:
    (inbox / "many").mkdir()
    _odd_name(inbox / "many").symlink_to("/etc/hostname")


def _hide_a_pipe_under_an_odd_name(inbox: Path) -> None:
    (inbox / "many").mkdir()
    os.mkfifo(_odd_name(inbox / "many"))


def _link_under_a_long_odd_name(inbox: Path) -> None:
    (inbox / os.fsdecode(b"\xe9" * 250)).symlink_to("/etc/hostname")


def _use_the_longest_name(inbox: Path) -> None:
    (inbox / "many").mkdir()
    (inbox / "many" / f"{'m' * 249}.jsonl").write_text("row\n")


def _dig(inbox: Path) -> None:
    make_deep(inbox / "deep")


@pytest.mark.parametrize(
    ("make", "states", "reason", "problem"),
    [
        (_write_under_an_odd_name, ["published"] * 2, "", ""),
        (_use_the_longest_name, ["published"] * 2, "", ""),
        (_hide_a_link_under_an_odd_name, ["published"], r"^caf\\udce9\.jsonl: is a symbolic link; drop the file", ""),
        (_hide_a_pipe_under_an_odd_name, ["published"], r"^caf\\udce9\.jsonl: is no regular file", ""),
        (_link_under_a_long_odd_name, ["published"], "is a symbolic link", ""),
        (_make_empty_under_an_odd_name, ["published"], "", r"^empty\\udce9: the folder is empty"),
        (_dig, ["published"], "", "^deep: .*d: holds folders deeper than 64 levels; flatten them"),
    ],
)
def test_a_drop_of_an_odd_make_is_told_and_costs_neither_the_service_nor_the_next_drop(
    home: Path,
    worker: FakeWorker,
    make: Callable[[Path], None],
    states: list[str],
    reason: str,
    problem: str,
) -> None:
    make(home / "inbox")
    config = fast_config(inbox={"mode": "poll"})
    try:
        with _forever(home, worker, config), Store.open(home) as store:
            drop(home, "z.jsonl", "next\n")
            wait_until(lambda: [row.state for row in store.ledger.batches()] == states)
            wait_until(lambda: bool(store.quarantined()) == bool(reason))
            wait_until(lambda: [bool(re.search(problem, told)) for told in _problems(home)] == [True] * bool(problem))
            assert [bool(re.search(reason, entry.reason)) for entry in store.quarantined()] == [True] * bool(reason)
        assert _once(home, worker, config) == (exitcodes.DEGRADED if problem else exitcodes.OK)
    finally:
        durable.remove_tree(home / "inbox")  # too deep for pytest


def _problems(home: Path) -> list[str]:
    shown = _shown(home)
    return list(shown["inbox"]["problems"]) if shown else ["no service yet"]


def test_an_inbox_that_cannot_be_listed_is_told_until_it_can_and_prevents_no_start_nor_reload(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, closed = os.scandir, [True]

    def scandir(path: Any = ".") -> Any:
        if closed and str(path) == str(home / "inbox"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    drop(home, "a.jsonl")
    (home / "service.toml").write_text("[inbox]\nsettle_s = 0.05\nmin_free_bytes = 0\n")
    running = _forever(home, worker)
    with running, Store.open(home) as store:
        wait_until(lambda: "nothing is claimed: Permission denied" in _shown(home).get("message", ""))
        running.service.reload()
        time.sleep(0.5)
        assert running.code is None
        closed.clear()
        wait_until(lambda: [row.state for row in store.ledger.batches()] == ["published"])
        wait_until(lambda: _shown(home).get("message") == "")


def test_missing_probes_hold_rounds_back_but_not_claims(home: Path, worker: FakeWorker) -> None:
    (home / "probes" / "utility.jsonl").unlink()
    drop(home, "a.jsonl")
    assert _once(home, worker) == exitcodes.DEGRADED
    assert _batches(home)[0].state == "queued" and worker.starts("round") == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: write_probes(path, 9), "probes/utility.jsonl: "),
        (lambda path: path.write_text('{"prompt": "ok"}\n{"promt": "zim"}\n'), 'utility.jsonl, line 2: needs "prompt"'),
    ],
    ids=["too_few", "broken_line"],
)
def test_probes_that_cannot_judge_are_told_on_the_status_until_they_are_mended(
    home: Path, worker: FakeWorker, damage: Callable[[Path], object], said: str
) -> None:
    probes = home / "probes" / "utility.jsonl"
    damage(probes)
    drop(home, "a.jsonl")
    config = fast_config(inbox={"rescan_s": 0.2})
    with _forever(home, worker, config), Store.open(home) as store:
        wait_until(lambda: said in _shown(home).get("message", ""))
        assert _shown(home)["state"] == "waiting" and worker.starts("round") == []
        write_probes(probes)
        wait_until(lambda: [row.state for row in store.ledger.batches()] == ["published"])
        wait_until(lambda: _shown(home).get("message") == "")


def test_a_closed_training_window_holds_rounds_back(home: Path, worker: FakeWorker) -> None:
    drop(home, "a.jsonl")
    config = fast_config(schedule={"training_window": "0 0 29 2 *"})
    assert _once(home, worker, config) == exitcodes.DEGRADED
    assert worker.starts("round") == []


def test_with_approval_the_version_waits_and_so_does_the_next_batch(home: Path, worker: FakeWorker) -> None:
    drop(home, "a.jsonl", "one\n")
    drop(home, "b.jsonl", "two\n")
    config = fast_config(publish={"approval": True})
    assert _once(home, worker, config) == exitcodes.DEGRADED
    assert _current(home) == "v0"
    with Store.open(home) as store:
        assert [row.name for row in store.ledger.versions("awaiting_approval")] == ["v1"]
        store.approve("candidate", actor="test", now=NOW)
    _once(home, worker, config)
    assert _current(home) == "v1" and len(worker.starts("round")) == 2


def test_a_hold_stops_the_running_round_and_resume_trains_the_batch_again(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", _progress("derive", 0.1), {"sleep": 60})
    drop(home, "a.jsonl")
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "derive")
        hold(store, "look at it")
        wait_until(lambda: [row.state for row in store.ledger.rounds()] == ["superseded"])
        assert store.ledger.batches()[0].state == "queued"
        assert not store.scratch("r000001").exists()
        wait_until(lambda: _shown(home).get("state") == "held")
        store.resume(actor="test", now=NOW)
        wait_until(lambda: _current(home) == "v1")


def test_a_rollback_while_a_round_runs_sends_its_batch_back_to_the_queue(home: Path, worker: FakeWorker) -> None:
    drop(home, "a.jsonl", "one\n")
    worker.script("round-2", _progress("derive", 0.1), {"sleep": 60})
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _current(home) == "v1")
        drop(home, "b.jsonl", "two\n")
        wait_until(lambda: _shown(home).get("step") == "derive")
        store.rollback(reason="it answers wrongly", actor="test", now=NOW)
        wait_until(lambda: store.ledger.rounds()[-1].state == "superseded")
        assert [row.state for row in store.ledger.batches()] == ["rolled_back", "queued"]
        store.resume(actor="test", now=NOW)
        wait_until(lambda: store.ledger.batches()[1].state == "published")
        assert store.current().parent == 0


def test_a_round_that_was_aborted_from_outside_is_ended(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", _progress("derive", 0.1), {"sleep": 60})
    drop(home, "a.jsonl")
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "derive")
        store.end_round("r000001", "aborted", reason="abort", now=NOW, actor="test", batch_state="rejected")
        wait_until(lambda: _shown(home).get("state") == "idle")
        assert [row.state for row in store.ledger.rounds()] == ["aborted"]


def test_pause_lets_the_running_round_finish_and_starts_no_other(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", _progress("derive", 0.1), {"sleep": 0.6}, READY)
    drop(home, "a.jsonl", "one\n")
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "derive")
        store.pause(reason="holiday", actor="test", now=NOW)
        drop(home, "b.jsonl", "two\n")
        wait_until(lambda: len(store.ledger.batches()) == 2 and _shown(home).get("state") == "paused")
        assert (_current(home), len(worker.starts("round"))) == ("v1", 1)


def test_a_revert_request_runs_before_queued_batches(home: Path, worker: FakeWorker) -> None:
    for name in ("a", "b"):
        drop(home, f"{name}.jsonl", f"{name}\n")
    assert _once(home, worker) == exitcodes.OK
    with Store.open(home) as store:
        store.request_revert("v1", actor="test", reason="wrong batch", now=NOW)
    drop(home, "c.jsonl", "three\n")
    worker.script("round-3", REJECTED)
    worker.script("round-4", REJECTED)
    assert _once(home, worker) == exitcodes.DEGRADED
    assert [row.kind for row in _rounds(home)] == ["batch", "batch", "revert", "batch"]
    assert worker.starts("round")[2] == _rounds(home)[2].id


def _every(count: int) -> Config:
    return fast_config(derive={"consolidate_every": count})


def _learn(home: Path, worker: FakeWorker, name: str, config: Config | None = None) -> int:
    drop(home, f"{name}.jsonl", f"{name}\n")
    return _once(home, worker, config)


def test_after_so_many_batches_all_are_learnt_together_and_then_after_as_many_again(
    home: Path, worker: FakeWorker
) -> None:
    codes = [_learn(home, worker, name, _every(2)) for name in "abcde"]
    assert codes == [exitcodes.OK] * 5
    kinds = [row.kind for row in _rounds(home)]
    assert kinds == ["batch", "batch", "consolidation", "batch", "batch", "consolidation", "batch"]
    asked = _rounds(home)[2]
    assert (asked.state, asked.batch, asked.target) == ("published", None, None)
    assert _current(home) == "v7"


def test_they_are_learnt_together_before_the_next_batch_that_waits(home: Path, worker: FakeWorker) -> None:
    for name in "abc":
        drop(home, f"{name}.jsonl", f"{name}\n")
    assert _once(home, worker, _every(2)) == exitcodes.OK
    assert [row.kind for row in _rounds(home)] == ["batch", "batch", "consolidation", "batch"]


def test_what_takes_a_batch_out_comes_before_learning_all_together(home: Path, worker: FakeWorker) -> None:
    for name in "abc":
        _learn(home, worker, name)
    with Store.open(home) as store:
        store.request_consolidation(actor="test", reason="", now=NOW)
        store.request_revert("v1", actor="test", reason="wrong batch", now=NOW)
    assert _once(home, worker) == exitcodes.OK
    found = sorted(_rounds(home), key=lambda row: row.version or 0)
    assert [row.kind for row in found][3:] == ["revert", "consolidation"]


def test_a_consolidation_that_was_overtaken_is_made_on_what_came_into_service(home: Path, worker: FakeWorker) -> None:
    for name in "abc":
        _learn(home, worker, name)
    worker.script("round-4", _progress("teach", 0.1), {"sleep": 60})
    with _forever(home, worker, _every(3)), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "teach")
        store.promote("v2", reason="for now", actor="test", now=NOW)
        wait_until(lambda: store.round("r000004").state == "superseded")
    with Store.open(home) as store:
        assert store.learnt_alone(9) == 2


def test_nothing_is_learnt_together_where_that_is_switched_off(home: Path, worker: FakeWorker) -> None:
    for name in "abc":
        _learn(home, worker, name, _every(0))
    assert {row.kind for row in _rounds(home)} == {"batch"}


def test_a_consolidation_that_gains_nothing_is_no_trouble_and_waits_for_more_batches(
    home: Path, worker: FakeWorker
) -> None:
    worker.script("round-3", REJECTED)
    codes = [_learn(home, worker, name, _every(2)) for name in "abcd"]
    assert codes == [exitcodes.OK] * 4
    assert [(row.kind, row.state) for row in _rounds(home)] == [
        ("batch", "published"),
        ("batch", "published"),
        ("consolidation", "rejected"),
        ("batch", "published"),
        ("batch", "published"),
        ("consolidation", "published"),
    ]


def test_a_consolidation_that_fails_for_good_is_trouble(home: Path, worker: FakeWorker) -> None:
    worker.script("round-3", {"event": "failed", "reason": "out of luck", "retry": False})
    codes = [_learn(home, worker, name, _every(2)) for name in "ab"]
    assert codes == [exitcodes.OK, exitcodes.DEGRADED]
    assert [row.state for row in _rounds(home)] == ["published", "published", "failed"]


def test_what_a_consolidation_was_to_leave_out_is_asked_for_again_where_it_was_overtaken(
    home: Path, worker: FakeWorker
) -> None:
    for name in "abc":
        _learn(home, worker, name)
    with Store.open(home) as store:
        store.request_revert("v1", is_anew=True, actor="test", reason="wrong batch", now=NOW)
    worker.script("round-4", _progress("teach", 0.1), {"sleep": 60})
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "teach")
        store.promote("v2", reason="for now", actor="test", now=NOW)
        wait_until(lambda: len(store.ledger.rounds()) == 5)
    assert [(row.kind, row.target, row.reason) for row in _rounds(home)][4] == ("consolidation", 1, "wrong batch")


def test_an_intake_runs_beside_a_round(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", _progress("derive", 0.1), {"sleep": 60})
    drop(home, "a.jsonl", "one\n")
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: _shown(home).get("step") == "derive")
        drop(home, "b.jsonl", "two\n")
        wait_until(lambda: [bool(row.stats) for row in store.ledger.batches()] == [True, True])


def test_progress_file_is_private_says_what_happens_and_goes_away(home: Path, worker: FakeWorker) -> None:
    losses = [_progress("derive", (nth + 1) / 500, loss=float(nth)) for nth in range(250)]
    worker.script("round-1", _progress("parse", 0.0), _step("parse"), *losses, {"sleep": 60})
    drop(home, "a.jsonl")
    with _forever(home, worker):
        wait_until(lambda: _shown(home).get("fraction") == 0.5)
        shown = _shown(home)
        assert (shown["state"], shown["kind"], shown["round"], shown["batch"]) == (
            "training",
            "batch",
            "r000001",
            "a.jsonl",
        )
        assert (shown["step"], shown["steps_done"], shown["loss"]) == ("derive", ["parse"], 249.0)
        assert shown["losses"]["derive"] == [float(nth) for nth in range(0, 250, 2)]
        assert shown["eta_s"] is not None and shown["pid"] == os.getpid()
        assert stat.S_IMODE((home / PROGRESS_FILE).stat().st_mode) == 0o600
    assert not (home / PROGRESS_FILE).exists()


def test_stopping_ends_the_worker_within_seconds_and_the_next_start_resumes(home: Path, worker: FakeWorker) -> None:
    worker.script("round-1", _step("derive"), _progress("merge", 0.1), {"sleep": 60})
    drop(home, "a.jsonl")
    running = _forever(home, worker)
    with running:
        wait_until(lambda: _shown(home).get("step") == "merge")
        started = time.monotonic()
        assert running.stop() == exitcodes.OK
        assert time.monotonic() - started < 40
    (row,) = _rounds(home)
    assert (row.state, row.step, row.attempts) == ("running", "derive", 1)
    assert _once(home, worker) == exitcodes.OK
    assert [row.state for row in _rounds(home)] == ["published"]


def test_a_round_that_a_rollback_overtook_while_the_service_was_down_is_not_resumed(
    home: Path, worker: FakeWorker
) -> None:
    drop(home, "a.jsonl", "one\n")
    assert _once(home, worker) == exitcodes.OK
    worker.script("round-2", _progress("derive", 0.1), {"sleep": 60})
    drop(home, "b.jsonl", "two\n")
    with _forever(home, worker):
        wait_until(lambda: _shown(home).get("step") == "derive")
    with Store.open(home) as store:
        store.rollback(reason="bad", actor="test", now=NOW)
    assert _once(home, worker) == exitcodes.DEGRADED
    assert [row.state for row in _rounds(home)] == ["published", "superseded"]
    assert _current(home) == "v0"


def test_a_second_service_on_the_same_home_is_refused(home: Path, worker: FakeWorker) -> None:
    with _forever(home, worker):
        wait_until(lambda: bool(_shown(home)))
        assert _once(home, worker) == exitcodes.LOCKED


def test_a_service_waits_for_a_lock_that_the_child_of_a_killed_one_still_holds(home: Path, worker: FakeWorker) -> None:
    drop(home, "a.jsonl")
    with (home / "store" / "service.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = subprocess.Popen(["sleep", "0.5"], pass_fds=[held.fileno()])
    with child:
        assert lock.holder(home / "store" / "service.lock") is not None
        assert _once(home, worker) == exitcodes.OK
    assert [row.state for row in _batches(home)] == ["published"]


def test_a_home_without_a_store_gets_one_from_the_base(tmp_path: Path) -> None:
    home = tmp_path / "new"
    make_model(home / "models" / "base")
    worker = FakeWorker(tmp_path / "worker", home)
    assert _once(home, worker) == exitcodes.OK
    assert _current(home) == "v0"


def test_a_home_without_store_and_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    worker = FakeWorker(tmp_path / "worker", tmp_path / "new")
    assert _once(tmp_path / "new", worker) == exitcodes.NO_STORE


def test_a_base_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "new" / "models" / "base")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    worker = FakeWorker(tmp_path / "worker", tmp_path / "new")
    assert _once(tmp_path / "new", worker) == exitcodes.CONFIG


def test_a_current_version_with_a_missing_file_stops_the_start(home: Path, worker: FakeWorker) -> None:
    folder = home / "models" / "v0"
    folder.chmod(0o755)
    (folder / "config.json").unlink()
    assert _once(home, worker) == exitcodes.INTEGRITY


def test_a_wrong_cron_expression_is_a_configuration_error(home: Path, worker: FakeWorker) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.training_window"):
        _once(home, worker, fast_config(schedule={"training_window": "at night"}))


def test_reload_takes_new_settings_and_refuses_broken_ones(home: Path, worker: FakeWorker) -> None:
    running = _forever(home, worker)
    (home / "other").mkdir()
    with running, Store.open(home) as store:
        wait_until(lambda: _shown(home).get("state") == "idle")
        (home / "service.toml").write_text("[inbox]\nsettle_s = 0.05\nmin_free_bytes = 0\npth = 'other'\n")
        running.service.reload()
        wait_until(lambda: "pth" in _shown(home).get("message", ""))
        (home / "service.toml").write_text("[inbox]\nsettle_s = 0.05\nmin_free_bytes = 0\npath = 'other'\n")
        running.service.reload()
        wait_until(lambda: _shown(home).get("message") == "")
        (home / "other" / "a.jsonl").write_text("row\n")
        wait_until(lambda: [row.state for row in store.ledger.batches()] == ["published"])


def test_a_released_batch_is_read_again(home: Path, worker: FakeWorker) -> None:
    worker.script("intake-1", {"event": "done", "outcome": "quarantined", "reasons": ["no probes yet"]})
    drop(home, "a.jsonl")
    with _forever(home, worker), Store.open(home) as store:
        wait_until(lambda: bool(store.quarantined()))
        store.release("a.jsonl", actor="test", now=NOW)
        wait_until(lambda: store.ledger.batches()[0].state == "published")
    assert len(worker.starts("intake")) == 2


def test_the_service_manager_hears_ready_after_recovery_and_then_status(
    tmp_path: Path, home: Path, worker: FakeWorker
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        heard: list[str] = []
        with _forever(home, worker, env=env):
            while "WATCHDOG=1" not in heard:
                heard.append(manager.recv(4096).decode())
        while heard[-1] != "STOPPING=1":
            heard.append(manager.recv(4096).decode())
    first = [line.partition("=")[0] for line in heard]
    assert first.index("EXTEND_TIMEOUT_USEC") < first.index("READY") < first.index("STATUS")


def _command(home: Path, *flags: str) -> list[str]:
    code = (
        "import sys; from pathlib import Path; from daemon.service import Service; from daemon import config;"
        f"s = Service(Path({str(home)!r}), config.parse({{'inbox': {{'settle_s': 0.05}}}}), once={'--once' in flags});"
        "code = s.run(); heavy = {'torch', 'transformers', 'pyarrow'} & set(sys.modules);"
        "line = next(x for x in open('/proc/self/status') if x.startswith('VmHWM'));"
        "print(sorted(heavy), int(line.split()[1]) // 1024); sys.exit(code)"
    )
    return [sys.executable, "-c", code]


def test_the_supervisor_is_small_and_imports_nothing_heavy(home: Path) -> None:
    done = subprocess.run(_command(home, "--once"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    heavy, _, resident_mib = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert int(resident_mib) <= 80


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_the_process_with_their_code(home: Path, number: int, code: int) -> None:
    with subprocess.Popen(_command(home), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: bool(_shown(home)))
        process.send_signal(number)
        assert process.wait(20) == code
    assert not (home / PROGRESS_FILE).exists()


def test_a_service_that_was_killed_leaves_no_batch_behind(home: Path, worker: FakeWorker) -> None:
    with subprocess.Popen(_command(home), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: bool(_shown(home)))
        drop(home, "a.jsonl")
        wait_until(lambda: not (home / "inbox" / "a.jsonl").exists())
        process.kill()
    assert _once(home, worker) == exitcodes.OK
    assert [row.state for row in _batches(home)] == ["published"]
