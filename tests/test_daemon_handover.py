"""The service and the commands around the replicas: publishing waits for none, and a killed hand-over is done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import exitcodes
from daemon.config import Config
from daemon.service import Service
from state.store import Store
from tests import engine_stands as stands
from tests.command_world import Alignd
from tests.engine_stands import Stand
from tests.fakes_service import NOW, FakeWorker, Running, drop, fast_config, wait_until

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"retry_s": 0.1, "max_retry_s": 0.5, "check_s": 3600.0}


@pytest.fixture
def engine() -> Iterator[Stand]:
    with stands.sglang() as made:
        yield made


def _config(*engines: Stand, **handover: Any) -> Config:
    tables = [{"name": f"r{i}", "kind": "sglang", "url": e.url, "timeout_s": 300} for i, e in enumerate(engines)]
    return fast_config(serving=tables, handover={**QUICK, **handover})  # type: ignore[arg-type]


def _settings(home: Path, *engines: Stand) -> None:
    """The same in service.toml, for commands and for a real service."""
    text = "[inbox]\nsettle_s = 0.05\nmin_free_bytes = 0\n[handover]\nretry_s = 0.1\nmax_retry_s = 0.5\n"
    for i, engine in enumerate(engines):
        text += f'[[serving]]\nname = "r{i}"\nkind = "sglang"\nurl = "{engine.url}"\ntimeout_s = 20\n'
    (home / "service.toml").write_text(text)


def _publish(home: Path, worker: FakeWorker, *names: str) -> None:
    for name in names:
        drop(home, name, f"{name}\n")
        assert Service(home, fast_config(), once=True, argv=worker.argv, tick_s=0.1).run() == exitcodes.OK


def _forever(home: Path, worker: FakeWorker, config: Config) -> Running:
    return Running(Service(home, config, once=False, argv=worker.argv, tick_s=0.1))


def _current(home: Path) -> str:
    return (home / "models" / "current").resolve().name


def test_a_published_version_reaches_the_engine(home: Path, worker: FakeWorker, engine: Stand) -> None:
    with _forever(home, worker, _config(engine)):
        wait_until(lambda: engine.label == "v0")
        drop(home, "a.jsonl")
        wait_until(lambda: engine.label == "v1")
        with Store.open(home) as store:
            store.rollback(reason="bad", actor="tester", now=NOW)
        wait_until(lambda: engine.label == "v0")


def test_publishing_neither_waits_for_an_engine_nor_fails_with_one(
    home: Path, worker: FakeWorker, engine: Stand
) -> None:
    engine.fail("/update_weights_from_disk", 100.0)
    with Stand({}) as useless, _forever(home, worker, _config(engine, useless, parallel=2)):
        wait_until(lambda: "POST /update_weights_from_disk" in engine.paths())
        drop(home, "a.jsonl")
        wait_until(lambda: _current(home) == "v1")
        assert engine.label == "default"  # it has not answered yet


def test_once_tells_the_engines_before_it_ends_and_tells_of_degraded_ones(
    home: Path, worker: FakeWorker, engine: Stand
) -> None:
    drop(home, "a.jsonl")
    assert Service(home, _config(engine), once=True, argv=worker.argv, tick_s=0.1).run() == exitcodes.OK
    assert engine.label == "v1"
    engine.stop()
    drop(home, "b.jsonl", "other\n")
    assert Service(home, _config(engine), once=True, argv=worker.argv, tick_s=0.1).run() == exitcodes.DEGRADED
    assert _current(home) == "v2"


def test_a_service_that_stops_in_the_middle_does_not_leave_the_engine_paused(
    home: Path, worker: FakeWorker, engine: Stand
) -> None:
    engine.fail("/update_weights_from_disk", 1.0)
    with _forever(home, worker, _config(engine)) as running:
        wait_until(lambda: "POST /update_weights_from_disk" in engine.paths())
        began = time.monotonic()
        assert running.stop() == exitcodes.INTERRUPTED or time.monotonic() - began < 10
    assert not engine.is_paused


@pytest.mark.parametrize(
    "at", ["/pause_generation", "/update_weights_from_disk", "/continue_generation", "/model_info"]
)
def test_a_service_killed_in_the_middle_of_a_hand_over_does_it_again(
    home: Path, worker: FakeWorker, engine: Stand, at: str
) -> None:
    _publish(home, worker, "a.jsonl")
    _settings(home, engine)
    engine.fail(at, 3.0)
    with _process(home) as first:
        wait_until(lambda: any(at in path for path in engine.paths()), timeout_s=60)
        time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
        first.wait(10)
    told = len(engine.calls)
    with _process(home):
        wait_until(
            lambda: engine.label == "v1" and not engine.is_paused and _replica(home)["observed"] == 1, timeout_s=60
        )
    paths = engine.paths()[told:]
    assert ("POST /update_weights_from_disk" in paths) or at == "/model_info"


def _process(home: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "daemon", "-c", str(home), "run"]
    return _Ended(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class _Ended(subprocess.Popen[bytes]):
    """A process that is killed at the end of the block."""

    def __exit__(self, *_: Any) -> None:
        self.kill()
        self.wait(10)


def _replica(home: Path) -> dict[str, Any]:
    with Store.open(home) as store:
        return store.replicas.get("r0") or {"observed": None}


def test_a_rollback_without_a_service_tells_the_engines_itself(
    home: Path, worker: FakeWorker, engine: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    _publish(home, worker, "a.jsonl", "b.jsonl")
    _settings(home, engine)
    alignd = Alignd(home, capsys)
    code, out, err = alignd("rollback", "--reason", "bad")
    assert (code, engine.label, engine.is_paused) == (exitcodes.OK, "v1", False)
    assert "replica r0 serves v1" in err and "replica" not in out
    assert alignd.json("rollback")["replicas"][0]["state"] == "in_sync"
    assert engine.label == "v0"
    alignd("resume")
    alignd("promote", "v2", "--force", "--reason", "fine")
    assert engine.label == "v2"


def test_a_rollback_never_fails_for_an_engine(
    home: Path, worker: FakeWorker, engine: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    _publish(home, worker, "a.jsonl")
    _settings(home, engine)
    engine.stop()
    alignd = Alignd(home, capsys)
    code, _, err = alignd("rollback")
    assert code == exitcodes.OK and _current(home) == "v0"
    assert "replica r0 should serve v0 and serves something unknown" in err and "cannot be reached" in err
    (home / "service.toml").write_text("[[serving]]\nname = 3\n")
    code, _, err = alignd("promote", "v1", "--force", "--reason", "x")
    assert code == exitcodes.OK and "no replica was told" in err


def test_serving_lists_replicas_and_sync_tells_them(
    home: Path, worker: FakeWorker, engine: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    _publish(home, worker, "a.jsonl")
    alignd = Alignd(home, capsys)
    (home / "service.toml").write_text("")
    assert alignd.text("serving") == "no replica is told: service.toml has no [[serving]]\n"
    _settings(home, engine)
    (view,) = alignd.json("serving")
    assert (view["state"], view["desired"], view["observed"], view["error"]) == ("pending", "v1", None, "")
    engine.fail("/update_weights_from_disk", (400, {"success": False, "message": "no room"}))
    engine.fail("/model_info", *[(200, {"weight_version": "default"})] * 1)
    assert "degraded" in alignd.text("serving", "sync", code=exitcodes.DEGRADED)
    text = alignd.text("serving", code=exitcodes.DEGRADED)
    assert "answered 400: no room" in text and all(len(line) <= 80 for line in text.splitlines())
    status = alignd.json("status", code=exitcodes.DEGRADED)
    assert status["serving"][0]["state"] == "degraded"
    assert any("replica r0 should serve v1" in problem for problem in status["problems"])
    assert "0 of 1 in sync, r0 degraded" in alignd.text("status", code=exitcodes.DEGRADED)
    (view,) = alignd.json("serving", "sync")
    assert (view["state"], view["observed"], engine.label) == ("in_sync", "v1", "v1")
    assert "1 of 1 in sync" in alignd.text("status")


def test_sync_goes_through_the_service_where_one_runs(
    home: Path, worker: FakeWorker, engine: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    _settings(home, engine)
    alignd = Alignd(home, capsys)
    with _forever(home, worker, _config(engine, retry_s=3600.0, max_retry_s=3600.0)):
        wait_until(lambda: _replica(home)["observed"] == 0)
        engine.label = "default"
        code, out, _ = alignd("serving", "sync", "--timeout", "20")
        assert code == exitcodes.OK and "in_sync" in out and engine.label == "v0"
        engine.fail("/model_info", *[5.0] * 3)
        alignd("serving", "sync", "--timeout", "0.5")
        code, _, err = alignd("serving", "sync", "--timeout", "0.5")
        assert code == exitcodes.TRY_AGAIN and "not done after 0.5 s" in err


def test_settings_of_a_round_do_not_say_who_serves_the_model(home: Path, worker: FakeWorker, engine: Stand) -> None:
    drop(home, "a.jsonl")
    assert Service(home, _config(engine), once=True, argv=worker.argv, tick_s=0.1).run() == exitcodes.OK
    with Store.open(home) as store:
        (row,) = store.ledger.rounds()
        record = store.version_record(1)
    assert "serving" not in row.config and engine.url not in json.dumps([row.config, record])


def test_settings_that_are_read_again_bring_replicas_and_take_them_away(
    home: Path, worker: FakeWorker, engine: Stand
) -> None:
    service = Service(home, fast_config(), once=False, argv=worker.argv, tick_s=0.1)
    with Running(service):
        _settings(home, engine)
        service.reload()
        wait_until(lambda: engine.label == "v0")
        (home / "service.toml").write_text("")
        service.reload()
        wait_until(lambda: _replica(home)["observed"] is None)


def test_doctor_asks_each_replica(home: Path, engine: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    from daemon import doctor
    from daemon.config import load

    _settings(home, engine)
    assert [check.status for check in doctor._replicas(home, load(home / "service.toml"))] == ["ok"]
    engine.stop()
    (check,) = doctor._replicas(home, load(home / "service.toml"))
    assert check.status == "warn" and "cannot be reached" in check.detail
