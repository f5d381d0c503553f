"""A real systemd manager as process 1 of its own namespaces, with alignd installed under /opt/alignd and nothing else in reach.

Needs root, unshare, nsenter and systemd; no message bus. Limits on memory and processes are accepted there and not enforced.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SYSTEMD: Final = Path("/lib/systemd/systemd")
SCRIPT: Final = Path(__file__).with_suffix(".sh")
LIBRARIES: Final = "LD_LIBRARY_PATH=/opt/python/lib"
"""What a Python with a shared library needs where it was moved; a real installation has it where it was built."""
_TARGETS: Final = {
    "only.target": "[Unit]\nDescription=Nothing but the unit under test\nDefaultDependencies=no\n",
    "basic.target": "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n",
    "sysinit.target": "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n",
    "shutdown.target": "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n",
}


def why_not() -> str:
    """What this machine lacks for a sandbox, in words; empty where one can be had."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("unshare", "nsenter", "systemctl", "findmnt") if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"{', '.join(missing) or SYSTEMD} is not installed"
    if _cgroups() is None:
        return "no cgroup2 hierarchy is mounted"
    done = subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/srv"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"namespaces cannot be made here: {done.stderr.strip()}"


_UNSHARE: Final = (
    "unshare", "--pid", "--mount", "--cgroup", "--net", "--fork", "--kill-child", "--propagation", "private",
)  # fmt: skip


class Sandbox:
    """One manager with some units; a context manager that ends everything in it.

    Args:
        home: a folder that is /var/lib/alignd inside.
        units: file names, drop-ins among them ("alignd.service.d/test.conf"), and their text.
        log: where the manager's own log goes.
    """

    def __init__(self, home: Path, units: Mapping[str, str], log: Path) -> None:
        self._home, self._log = home, log
        self._units = log.parent / "units"
        for name, text in {**_TARGETS, **units}.items():
            (self._units / name).parent.mkdir(parents=True, exist_ok=True)
            (self._units / name).write_text(text)
        self._group = _cgroups() or Path("/nonexistent")
        self._group /= f"alignd-test-{os.getpid()}-{os.urandom(4).hex()}"

    def __enter__(self) -> Sandbox:
        self._group.mkdir()
        with tempfile.NamedTemporaryFile(dir="/tmp", prefix="alignd-guard-") as canary, self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                [*_UNSHARE, "bash", "-eu", str(SCRIPT)],
                env=self._variables(Path(canary.name)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: (self._group / "cgroup.procs").write_text("0"),
            )
            try:
                self._wait_until_up()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._outer.kill()  # its child, process 1 of the namespace, is killed with it, and everything else with that
        self._outer.wait()
        for folder in sorted((path for path in self._group.rglob("*") if path.is_dir()), reverse=True):
            _remove_group(folder)
        _remove_group(self._group)

    def run(self, *command: str, timeout_s: float = 120, code: int | None = 0) -> str:
        """A command inside, as root; its stdout. The exit code must be ``code`` (None: any)."""
        inner = ["nsenter", "-t", str(self._inner()), "--pid", "--mount", "--net", "--", *command]
        done = subprocess.run(
            inner, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, cwd="/"
        )
        assert code in (None, done.returncode), (
            f"{command}: {done.returncode} {done.stdout} {done.stderr}\n{self.log()}"
        )
        return done.stdout

    def alignd(self, *words: str, code: int | None = 0) -> str:
        """An alignd command on the home, as the service's own user; its stdout."""
        user = ["setpriv", "--reuid=alignd", "--regid=alignd", "--clear-groups", "env", LIBRARIES]
        return self.run(*user, "/opt/alignd/bin/alignd", "-c", "/var/lib/alignd/service.toml", *words, code=code)

    def systemctl(self, *words: str, code: int | None = 0, timeout_s: float = 120) -> str:
        """`systemctl WORDS`; its stdout."""
        return self.run("systemctl", *words, code=code, timeout_s=timeout_s).strip()

    def show(self, name: str) -> str:
        """One property of the service."""
        return self.systemctl("show", "--value", "--property", name, "alignd.service")

    def kill_main(self, number: signal.Signals) -> int:
        """Send the service's main process a signal; its id inside."""
        pid = int(self.show("MainPID"))
        assert pid > 1, "the service does not run"  # 0 would be the caller's own process group
        self.run("kill", f"-{int(number)}", str(pid))
        return pid

    def log(self) -> str:
        """The end of what the manager said."""
        return self._log.read_text(errors="replace")[-6000:]

    def _variables(self, canary: Path) -> dict[str, str]:
        python = Path(sys.executable).resolve()
        return {
            "PATH": os.environ["PATH"],
            "SRC": str(ROOT),
            "PACKAGES": sysconfig.get_paths()["purelib"],
            "PYTHON_HOME": sys.base_prefix,
            "PYTHON": python.name,
            "HOME_DIR": str(self._home),
            "UNITS": str(self._units),
            "LOG": str(self._log),
            "CANARY": str(canary),
        }

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._outer.poll() is None, f"the sandbox ended with {self._outer.returncode}:\n{self.log()}"
            if self._inner() and self.run("systemctl", "is-active", "only.target", code=None).strip() == "active":
                return
            time.sleep(0.1)
        raise TimeoutError(f"the manager is not up:\n{self.log()}")

    def _inner(self) -> int:
        """Process 1 of the namespace, by the number that it has outside; 0 while there is none."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0]) if children else 0


def _cgroups() -> Path | None:
    """Where the machine's cgroup2 hierarchy is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((Path(target) for _, target, kind, *_ in mounts if kind == "cgroup2"), None)


def _remove_group(folder: Path) -> None:
    """A control group goes when its last process has been reaped."""
    for _ in range(100):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
