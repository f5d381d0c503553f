"""Worker processes: heard, ended, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from daemon.child import Child, Exit, worker_argv, worker_env
from daemon.progress import DoneEvent, Event, ProgressEvent, StepEvent
from tests.fakes_service import wait_until

ROOT = Path(__file__).resolve().parent.parent
ALIVE = 'import sys; print(\'{"event":"progress","step":"a","fraction":0.5}\', flush=True); '


def _child(code: str) -> Child:
    return Child([sys.executable, "-S", "-c", code], env=dict(os.environ), wake=lambda: None)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_events_come_in_order_and_the_end_comes_after_the_last() -> None:
    child = _child(ALIVE + 'print(\'{"event":"done","outcome":"ready"}\')')
    wait_until(lambda: child.ended() is not None)
    assert child.ended() == Exit(0)
    assert child.events() == [ProgressEvent("a", 0.5), DoneEvent("ready")]
    assert child.events() == []
    child.close()


def test_other_output_is_passed_over() -> None:
    child = _child("print('Loading weights: 50%'); " + ALIVE)
    wait_until(lambda: child.ended() is not None)
    assert child.events() == [ProgressEvent("a", 0.5)]
    child.close()


def test_a_kill_is_told_from_an_exit_code() -> None:
    child = _child("import os; os.kill(os.getpid(), 9)")
    wait_until(lambda: child.ended() is not None)
    assert str(child.ended()) == "signal SIGKILL; out of memory is the usual cause"
    child.close()
    assert str(Exit(3)) == "exit code 3"
    assert str(Exit(-signal.SIGSEGV)) == "signal SIGSEGV"


def test_ending_takes_along_what_the_worker_started() -> None:
    child = _child(
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']);"
        'print(\'{"event":"step","step":"a","result":{"pid": %d}}\' % p.pid, flush=True); time.sleep(60)'
    )
    found: list[Event] = []

    def has_spoken() -> bool:
        found.extend(child.events())
        return bool(found)

    wait_until(has_spoken)
    assert isinstance(found[0], StepEvent)
    grandchild = found[0].result["pid"]
    assert _is_running(grandchild)
    child.end(grace_s=0.5)
    wait_until(lambda: not _is_running(grandchild))
    assert not _is_running(child.pid)


def test_a_worker_that_ignores_sigterm_is_killed() -> None:
    child = _child("import signal, time; signal.signal(15, signal.SIG_IGN); " + ALIVE + "time.sleep(60)")
    wait_until(lambda: bool(child.events()))
    started = time.monotonic()
    child.end(grace_s=0.2)
    assert time.monotonic() - started < 30
    assert child.ended() == Exit(-signal.SIGKILL)


def test_silence_is_counted_from_the_latest_event() -> None:
    now = [100.0]
    child = Child(["sleep", "60"], env=dict(os.environ), wake=lambda: None, clock=lambda: now[0])
    now[0] = 107.5
    assert child.silent_s() == 7.5
    child.end(grace_s=0.2)


def test_worker_environment_hides_the_service_manager_and_sets_threads() -> None:
    env = worker_env({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "PATH": "/bin"}, 2)
    assert "NOTIFY_SOCKET" not in env and "WATCHDOG_USEC" not in env
    assert (env["PATH"], env["OMP_NUM_THREADS"], env["HF_HUB_OFFLINE"]) == ("/bin", "2", "1")
    assert "OMP_NUM_THREADS" not in worker_env({}, 0)


def test_worker_command_has_an_absolute_home(tmp_path: Path) -> None:
    argv = worker_argv(tmp_path, "round", "r000001")
    settings = str(tmp_path / "service.toml")
    assert argv[1:] == ["-m", "daemon.worker", str(tmp_path), "round", "r000001", "auto", settings]


def test_worker_reads_the_settings_that_the_service_was_given(tmp_path: Path) -> None:
    argv = worker_argv(tmp_path, "intake", "00", config_path=tmp_path / "prod.toml")
    assert argv[-1] == str(tmp_path / "prod.toml")


def _supervisor_of_one(tmp_path: Path) -> tuple["subprocess.Popen[bytes]", int]:
    """A process that starts a worker as the supervisor does, and the worker's pid."""
    note = tmp_path / "pid"
    worker = (
        "import time; from daemon.worker import _die_with_parent; _die_with_parent(); "
        f"import os; open({str(note)!r} + '.new', 'w').write(str(os.getpid())); "
        f"os.rename({str(note)!r} + '.new', {str(note)!r}); time.sleep(60)"
    )
    code = (
        "import os, sys, time; from daemon.child import Child; "
        f"Child([sys.executable, '-c', {worker!r}], env=dict(os.environ), wake=lambda: None); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, cwd=ROOT)
    wait_until(note.exists)
    return process, int(note.read_text())


def test_a_worker_dies_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    process, worker = _supervisor_of_one(tmp_path)
    assert _is_running(worker)
    process.kill()
    process.wait()
    wait_until(lambda: not _is_running(worker))
