"""Jobs in processes of their own: real ones, that raise, die, are killed from outside, and lose their parent."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.method import pool
from tests.fakes_service import WAIT_S

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path

from benchmarks.method.pool import run_each

FOLDER = Path(sys.argv[1])


def note(name, *pids):
    staged = FOLDER / f"{name}.part"
    staged.write_text(json.dumps(pids))
    staged.rename(FOLDER / f"{name}.pids")


def work(job):
    name, what = job
    if what == "raise":
        raise ValueError("grolt")
    if what == "exit":
        sys.exit(3)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "last":
        while len(list(FOLDER.glob("*.done"))) < 1:
            time.sleep(0.01)
    if what == "wait":
        child = subprocess.Popen(["sleep", "600"])
        note(name, os.getpid(), child.pid)
        child.wait()
    if what == "spin":
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix="scratch-"):
            note(name, os.getpid())
            while True:
                pass
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(name, os.getpid())
        while True:
            time.sleep(1)
    if what == "threads":
        print(os.environ["OMP_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"], flush=True)
    (FOLDER / f"{name}.done").write_text(str(os.getpid()))


if __name__ == "__main__":
    jobs = [tuple(job) for job in json.loads(sys.argv[2])]
    for (name, _), error in run_each(jobs, work, int(sys.argv[3])):
        print(json.dumps([name, error]), flush=True)
"""


def start(folder: Path, jobs: list[tuple[str, str]], num_workers: int) -> subprocess.Popen[str]:
    """The script above, as a user would start it: in a process group of its own."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), json.dumps(jobs), str(num_workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": ""}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def outcomes(folder: Path, jobs: list[tuple[str, str]], num_workers: int) -> dict[str, str | None]:
    """What each job came to."""
    out, err = start(folder, jobs, num_workers).communicate(timeout=WAIT_S)
    assert err == ""
    return dict(json.loads(line) for line in out.splitlines())


def until(is_so: Callable[[], bool]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process does anything yet; one that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_of(folder: Path, names: list[str]) -> list[int]:
    """The processes that jobs run in, once all do."""
    files = [folder / f"{name}.pids" for name in names]
    until(lambda: all(file.exists() for file in files))
    found = [pid for file in files for pid in json.loads(file.read_text())]
    assert all(map(is_running, found))
    return found


@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_a_job_that_raises_exits_or_dies_is_told_with_its_reason_and_all_others_are_done(
    tmp_path: Path, num_workers: int
) -> None:
    jobs = [("a", "do"), ("b", "die"), ("c", "raise"), ("d", "do"), ("e", "exit"), ("f", "do")]
    assert outcomes(tmp_path, jobs, num_workers) == {
        "a": None,
        "b": "its process died (signal SIGKILL)",
        "c": "ValueError: grolt",
        "d": None,
        "e": "its process died (exit code 3)",
        "f": None,
    }
    assert {path.stem for path in tmp_path.glob("*.done")} == {"a", "d", "f"}


def test_a_process_that_dies_leaves_the_job_beside_it_alone(tmp_path: Path) -> None:
    found = outcomes(tmp_path, [("a", "last"), ("b", "die"), ("c", "do")], 2)
    assert found == {"a": None, "b": "its process died (signal SIGKILL)", "c": None}


def test_a_process_is_used_again_and_no_jobs_are_no_trouble(tmp_path: Path) -> None:
    assert outcomes(tmp_path, [("a", "do"), ("b", "raise"), ("c", "do")], 1)["c"] is None
    assert (tmp_path / "a.done").read_text() == (tmp_path / "c.done").read_text()
    assert outcomes(tmp_path, [], 2) == {}


def test_a_job_has_one_thread_and_who_asked_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    out, _ = start(tmp_path, [("a", "threads")], 1).communicate(timeout=WAIT_S)
    assert out.splitlines()[0] == "1 false"
    before = dict(os.environ)
    with pool._one_thread():
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert dict(os.environ) == before


@pytest.mark.parametrize("number", [0, -1])
def test_no_process_at_all_is_a_wrong_argument(number: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(pool.run_each([1], print, number))
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        pool.worker_count(str(number))


def test_what_a_killed_process_had_started_ends_with_it(tmp_path: Path) -> None:
    parent = start(tmp_path, [("a", "wait"), ("b", "do")], 1)
    worker, child = pids_of(tmp_path, ["a"])
    os.kill(worker, signal.SIGKILL)
    out, _ = parent.communicate(timeout=WAIT_S)
    assert [json.loads(line) for line in out.splitlines()] == [["a", "its process died (signal SIGKILL)"], ["b", None]]
    until(lambda: not is_running(child))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_jobs_end_with_the_parent_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    parent = start(tmp_path, [("a", "wait"), ("b", "spin"), ("c", "do")], 2)
    pids = pids_of(tmp_path, ["a", "b"])
    os.killpg(parent.pid, how) if how == signal.SIGINT else parent.send_signal(how)
    parent.communicate(timeout=WAIT_S)
    until(lambda: not any(map(is_running, pids)))
    assert not list(tmp_path.glob("scratch-*")) and not list(tmp_path.glob("*.done"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_job_that_will_not_end_is_killed_after_a_while(tmp_path: Path, how: signal.Signals) -> None:
    parent = start(tmp_path, [("a", "deaf")], 1)
    pids = pids_of(tmp_path, ["a"])
    parent.send_signal(how)
    parent.communicate(timeout=WAIT_S)
    until(lambda: not any(map(is_running, pids)))
