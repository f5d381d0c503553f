"""The real service and its real workers, which die where a trap is set for them.

`python -m tests.killable TRAP -c HOME run` is `python -m daemon -c HOME run`; likewise its workers. At every place that has
a name it looks at the file TRAP. "VICTIM PLACE" in there means: at that place, once, the victim is killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

from daemon import child, cli, worker
from daemon.progress import Outcome, Reporter
from daemon.steps import STEPS
from state import audit, durable, gc
from state.filesystem import FileSystem
from state.store import Store

_CHANGES: Final[Mapping[str, object]] = {
    "recover": Store,
    "claim_batch": Store,
    "set_batch_stats": Store,
    "begin_round": Store,
    "note_at_work": Store,
    "finish_step": Store,
    "commit_version": Store,
    "_place_patch": Store,
    "_place_files": Store,
    "_enroll": Store,
    "replace_symlink": durable,
    "flush": audit,
    "run": gc,
}
"""What the service does to its store, and what it belongs to."""
SERVICE_PLACES: Final = tuple(f"{when} {name}" for name in _CHANGES for when in ("before", "after"))
STEP_PLACES: Final = tuple(f"round {step} {when}" for step in STEPS["batch"] for when in ("begins", "ends"))
WORKER_PLACES: Final = ("intake parse begins", "intake outcome", *STEP_PLACES, "round outcome")
_LONG_S: Final = 60.0


@dataclass(frozen=True)
class Trap:
    """Lies in a file, for a process that is the service or one of its workers."""

    path: Path
    in_worker: bool

    def reach(self, place: str) -> None:
        """Kill when the trap was set for this place; it goes off once."""
        try:
            victim, _, wanted = self.path.read_text().partition(" ")
        except FileNotFoundError:
            return
        if wanted == place:
            self.path.unlink()
            self._kill(victim)

    def _kill(self, victim: str) -> None:
        workers = [os.getpid()] if self.in_worker else children(os.getpid())
        service = os.getppid() if self.in_worker else os.getpid()
        pids = {"service": [service], "worker": workers, "both": [service, *workers]}[victim]
        for pid in sorted(pids, key=os.getpid().__eq__):  # itself as the last
            kill(pid)
        if self.in_worker:
            time.sleep(_LONG_S)  # it dies with its service, and gets no further until then


def main() -> int:
    """A service when the arguments begin with an option, else a worker."""
    path = Path(sys.argv.pop(1))
    if not sys.argv[1].startswith("-"):
        arm_worker(Trap(path, in_worker=True), kind=sys.argv[2])
        return worker.main()
    arm_service(Trap(path, in_worker=False))
    return cli.main()


def arm_service(trap: Trap) -> None:
    """Look at the trap around every change of the store, before every call of the disk, and in the workers."""
    for name, owner in _CHANGES.items():
        change = _between(trap, getattr(owner, name), before=f"before {name}", after=f"after {name}")
        setattr(owner, name, change)
    calls = itertools.count(1)
    for name in [name for name in vars(FileSystem) if not name.startswith("_")]:
        setattr(FileSystem, name, _counted(trap, getattr(FileSystem, name), calls))
    ordinary = child.worker_argv

    def worker_argv(*args: Any, **more: Any) -> list[str]:
        python, _, _, *rest = ordinary(*args, **more)
        return [python, "-m", "tests.killable", str(trap.path), *rest]

    child.worker_argv = worker_argv


def arm_worker(trap: Trap, kind: str) -> None:
    """Look at the trap where a step begins, where it ends and nobody was told, and where the outcome was not told."""
    progress, step, done = Reporter.progress, Reporter.step, Reporter.done

    def trapped_progress(self: Reporter, name: str, fraction: float, loss: float | None = None) -> None:
        progress(self, name, fraction, loss)
        trap.reach(f"{kind} {name} begins")

    def trapped_step(self: Reporter, name: str, result: Mapping[str, Any]) -> None:
        trap.reach(f"{kind} {name} ends")
        step(self, name, result)

    def trapped_done(self: Reporter, outcome: Outcome) -> None:
        trap.reach(f"{kind} outcome")
        done(self, outcome)

    for name, trapped in {"progress": trapped_progress, "step": trapped_step, "done": trapped_done}.items():
        setattr(Reporter, name, trapped)


def _between(trap: Trap, change: Callable[..., Any], *, before: str, after: str) -> Callable[..., Any]:
    @wraps(change)
    def trapped(*args: Any, **more: Any) -> Any:
        trap.reach(before)
        made = change(*args, **more)
        trap.reach(after)
        return made

    return trapped


def _counted(trap: Trap, call: Callable[..., Any], calls: Iterator[int]) -> Callable[..., Any]:
    @wraps(call)
    def trapped(*args: Any) -> Any:
        trap.reach(f"call {next(calls)}")
        return call(*args)

    return trapped


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def kill(pid: int) -> None:
    """SIGKILL; what is gone already needs none."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
