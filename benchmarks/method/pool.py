"""Jobs in processes of their own: one that dies takes no other with it, and none outlives who started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from argparse import ArgumentTypeError
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NoReturn, TypeVar

GRACE_S = 5.0
"""How long a process may take to remove its temporary files."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Of the environment of every process: there are as many of them as cores."""
JobT = TypeVar("JobT")


def worker_count(word: str) -> int:
    """What `run_each` takes, from a command line; raises `argparse.ArgumentTypeError`."""
    if not word.isdecimal() or int(word) < 1:
        raise ArgumentTypeError(f"{word} is no number of processes: at least 1")
    return int(word)


def run_each(
    jobs: Sequence[JobT], work: Callable[[JobT], object], num_workers: int
) -> Iterator[tuple[JobT, str | None]]:
    """Do every job in one of several spawned processes; give each as it ends, with what went wrong or None.

    A process that dies costs the job that it had, and is replaced. All end when the caller stops asking, is interrupted, or
    is killed.

    Args:
        work: at the top of a module, so that a spawned process finds it. It has `ONE_THREAD`, and so has what it starts.
        num_workers: at least 1.
    Raises:
        ValueError: fewer workers.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers}: at least 1")
    waiting, idle = deque(jobs), list[_Worker[JobT]]()
    busy: dict[Any, _Worker[JobT]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < num_workers:
                worker = idle.pop() if idle else _Worker(work)
                worker.take(waiting.popleft())
                busy[worker.connection] = worker
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                error, is_alive = worker.outcome()
                if is_alive:
                    idle.append(worker)
                yield worker.job, error
    finally:
        for worker in busy.values():
            worker.process.terminate()
        for worker in (*busy.values(), *idle):
            worker.end()


class _Worker(Generic[JobT]):
    """One process and the job that it has."""

    job: JobT

    def __init__(self, work: Callable[[JobT], object]) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()  # so that its end is the end of the connection

    def take(self, job: JobT) -> None:
        """Give it its next job."""
        self.job = job
        with suppress(OSError):  # it is dead, which `outcome` tells
            self.connection.send(job)

    def outcome(self) -> tuple[str | None, bool]:
        """What went wrong with its job, and whether it can take another one."""
        try:
            return self.connection.recv(), True
        except (EOFError, OSError):
            self.end()
            return f"its process died ({_how(self.process.exitcode)})", False

    def end(self) -> None:
        """Wait for its end, not for ever; what it started ends with it."""
        self.connection.close()
        self.process.join(GRACE_S)
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is started meanwhile has `ONE_THREAD`: libraries look there as they are loaded, before any code of ours."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return f"signal {signal.Signals(-exit_code).name}"


class _Leaving(SystemExit):
    """Unwinds, so that temporary folders go."""


def _serve(connection: Connection, work: Callable[[Any], object]) -> None:
    """Do jobs until there are no more, or until this process is asked to end."""
    os.setpgrp()  # ctrl-C is for the parent alone, and what is started here can be ended with this process
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _do_jobs(connection, work)
    except _Leaving:
        os.killpg(0, signal.SIGKILL)


def _do_jobs(connection: Connection, work: Callable[[Any], object]) -> None:
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        error = None
        try:
            work(job)
        except Exception as err:  # noqa: BLE001 - whatever it is, the others go on
            error = f"{type(err).__name__}: {err}"
        connection.send(error)


def _leave(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is to break into the clearing away
    raise _Leaving


def _end_with_parent() -> None:
    """Wait for the parent's death, however it comes; then end this process and those that it started."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)
