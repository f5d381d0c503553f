"""The child process: one outcome whatever happens, and no batch text in it."""

import errno
import io
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon import config as settings
from daemon import worker
from daemon.progress import DoneEvent, Event, FailedEvent, Outcome, ProgressEvent, Reporter, decode_event
from patches.errors import NonFiniteError
from state.errors import LockedError, ModelFormatError, StoreCorruptError, StoreError
from state.store import Store
from tests.fakes_service import NOW, drop, make_home

ROOT = Path(__file__).resolve().parent.parent
SECRET = "borogove"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = make_home(tmp_path)
    (home / "service.toml").write_text("seed = 3\n")
    return home


def _run(home: Path, kind: str, name: str) -> list[Event | None]:
    out = io.StringIO()
    worker.run(home, kind, name, Reporter(out))
    return [decode_event(line) for line in out.getvalue().splitlines()]


def _put_in_place(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[..., Outcome]) -> None:
    module = types.ModuleType(f"daemon.{name}")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"daemon.{name}", module)
    import daemon

    monkeypatch.setattr(daemon, name, module, raising=False)


def _round_of(home: Path, config: dict[str, Any]) -> str:
    drop(home, "a.jsonl")
    with Store.open(home) as store:
        (home / "inbox" / "a.jsonl").rename(store.spool / "a.jsonl")
        claim = store.claim_batch(store.spool / "a.jsonl", name="a.jsonl", actor="test", now=NOW)
        return store.begin_round(claim.batch.sha256, config=config, now=NOW).id


def test_a_round_runs_with_the_settings_it_began_with(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    round_id = _round_of(home, settings.to_dict(settings.parse({"seed": 77})))

    def run(store: Store, config: settings.Config, row: Any, reporter: Reporter) -> Outcome:
        reporter.progress("derive", 0.5)
        return Outcome("ready", ("fine",), {"seed": config.seed, "round": row.id})

    _put_in_place(monkeypatch, "round", run)
    assert _run(home, "round", round_id) == [
        ProgressEvent("derive", 0.5),
        DoneEvent("ready", ["fine"], {"seed": 77, "round": round_id}),
    ]


def test_an_intake_runs_with_the_settings_of_today(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put_in_place(
        monkeypatch, "intake", lambda store, config, sha256, reporter: Outcome("accepted", (), {"seed": config.seed})
    )
    assert _run(home, "intake", "0" * 64) == [DoneEvent("accepted", [], {"seed": 3})]


def test_a_base_whose_files_were_changed_is_no_fault_of_the_batch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put_in_place(monkeypatch, "intake", lambda *_: Outcome("accepted"))
    path = home / "models" / "v0" / "config.json"
    path.chmod(0o600)
    path.write_text("{")
    (event,) = _run(home, "intake", "0" * 64)
    assert isinstance(event, FailedEvent) and event.retry and event.blameless
    assert f"the store is damaged: {path} is not what was written" in event.reason


def test_a_broken_service_toml_is_no_fault_of_the_batch(home: Path) -> None:
    (home / "service.toml").write_text("sed = 3\n")
    (event,) = _run(home, "intake", "0" * 64)
    assert isinstance(event, FailedEvent) and event.retry and event.blameless
    assert "seed" in event.reason and "the settings or probes cannot be used" in event.reason
    assert str(home / "service.toml") in event.reason


@pytest.mark.parametrize(
    ("error", "retry", "blameless", "said"),
    [
        (NonFiniteError("loss is NaN at step 3"), False, False, "NonFiniteError: loss is NaN at step 3"),
        (StoreError("no such thing", "look"), False, False, "no such thing; look"),
        (LockedError("busy"), True, False, "busy"),
        (StoreCorruptError("v3: digest differs"), True, True, "the store is damaged: v3: digest differs"),
        (ModelFormatError("models/v3: no shard"), True, True, "the store is damaged: models/v3: no shard"),
        (MemoryError(), True, False, "MemoryError"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), True, True, "no space left on the disk (/x/y)"),
        (OSError(errno.EIO, "Input/output error"), True, True, "OSError: Input/output error"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), True, True, "OSError: Read-only file system (/x)"),
        (PermissionError(errno.EACCES, "Permission denied"), True, False, "PermissionError: Permission denied"),
        (RuntimeError(SECRET), True, False, "RuntimeError at "),
        (KeyError(SECRET), True, False, "KeyError at "),
    ],
)
def test_every_error_becomes_a_failed_event_that_says_what_helps(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, retry: bool, blameless: bool, said: str
) -> None:
    def run(*_: object) -> Outcome:
        prompt = SECRET
        raise error from ValueError(prompt)

    _put_in_place(monkeypatch, "intake", run)
    with capture_logs() as logs:
        (event,) = _run(home, "intake", "0" * 64)
    assert isinstance(event, FailedEvent)
    assert (event.retry, event.blameless) == (retry, blameless)
    assert said in event.reason
    assert SECRET not in event.reason and SECRET not in json.dumps(logs)


def test_a_result_that_is_no_json_fails_the_job_instead_of_the_worker(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_in_place(monkeypatch, "intake", lambda *_: Outcome("accepted", (), {"model": object()}))
    assert isinstance(_run(home, "intake", "0" * 64)[-1], FailedEvent)


def test_a_check_of_the_store_lists_what_it_found(home: Path) -> None:
    assert _run(home, "verify", "all")[-1] == DoneEvent("accepted", [], {})
    model = home / "models" / "v0" / "model.safetensors"
    model.chmod(0o600)
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    last = _run(home, "verify", "all")[-1]
    assert isinstance(last, DoneEvent) and "model.safetensors" in last.reasons[0]


def _process(*args: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "daemon.worker", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)


def test_standard_output_holds_events_only_and_errors_go_to_the_log(home: Path) -> None:
    with _process(str(home), "verify", "all", "json") as process:
        assert process.stdout is not None
        out = process.stdout.read()
        process.wait(60)  # before the block closes its standard input, which would end it
    assert process.returncode == 0
    assert decode_event(out.splitlines()[-1]) == DoneEvent("accepted", [], {})
    assert all(decode_event(line) is not None for line in out.splitlines())


def test_wrong_arguments_are_refused_with_the_usage(home: Path) -> None:
    with _process(str(home), "train", "all") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and b"HOME intake SHA256" in err


def test_what_libraries_print_does_not_reach_the_supervisor() -> None:
    code = (
        "from daemon.worker import _take_stdout; own = _take_stdout(); print('noise', flush=True);"
        "own.write('event\\n'); own.flush()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("event\n", "noise\n")


def test_the_worker_ends_when_its_standard_input_does(home: Path) -> None:
    code = "import time; from daemon.worker import _die_with_parent; _die_with_parent(); time.sleep(60)"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, start_new_session=True) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == -9
