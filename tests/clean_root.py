"""A root of its own, in which a package is installed as on a machine of its own and nothing of the real one can be changed.

Needs root, unshare, nsenter and an overlay file system. No systemd runs in it, and dpkg knows only what it is told is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SCRIPT: Final = Path(__file__).with_suffix(".sh")
_UNSHARE: Final = (
    "unshare",
    "--pid",
    "--mount",
    "--net",
    "--ipc",
    "--fork",
    "--kill-child",
    "--propagation",
    "private",
)
_TRY: Final = """\
mount -t tmpfs tmpfs /srv && mkdir /srv/u /srv/w /srv/m
mount -t overlay -o lowerdir=/usr,upperdir=/srv/u,workdir=/srv/w overlay /srv/m"""
_STANZA: Final = """\
Package: {name}
Status: install ok installed
Priority: optional
Section: misc
Maintainer: nobody <nobody@localhost>
Architecture: {architecture}
Version: {version}
Description: said to be there

"""


def why_not() -> str:
    """What this machine lacks for it, in words; empty where one can be had."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("unshare", "nsenter", "dpkg", "systemd-sysusers") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    done = subprocess.run([*_UNSHARE, "bash", "-euc", _TRY], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no overlay can be mounted here: {done.stderr.strip()}"


class CleanRoot:
    """One root; a context manager that leaves nothing of it.

    Args:
        place: an empty folder.
        given: a folder that is /srv/given inside, read-only.
        installed: packages that dpkg is told are there, with their versions.
    """

    def __init__(self, place: Path, given: Path, installed: dict[str, str]) -> None:
        self._place, self._given = place, given
        architecture = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
        ).stdout
        stanzas = [
            _STANZA.format(name=name, version=version, architecture=architecture.strip())
            for name, version in installed.items()
        ]
        self._status = place.parent / "status"
        self._status.write_text("".join(stanzas))

    def __enter__(self) -> CleanRoot:
        with tempfile.NamedTemporaryFile(dir="/tmp", prefix="alignd-guard-") as canary:
            self._outer = subprocess.Popen(
                [*_UNSHARE, "bash", "-eu", str(SCRIPT)],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "PLACE": str(self._place),
                    "GIVEN": str(self._given),
                    "PACKAGES": sysconfig.get_paths()["purelib"],
                    "STATUS": str(self._status),
                    "CANARY": canary.name,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                self._wait_until_ready()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._outer.kill()  # its child, process 1 of the namespace, is killed with it, and the mounts go with that
        self._outer.wait()
        if self._outer.stdout:
            self._outer.stdout.close()

    def run(self, *command: str, user: str = "root", code: int | None = 0, timeout_s: float = 300) -> str:
        """A command inside; its stdout and stderr. The exit code must be ``code`` (None: any)."""
        done = self._start(command if user == "root" else _as(user, command), timeout_s)
        assert code in (None, done.returncode), f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def _start(self, command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "OMP_NUM_THREADS=1"]
        inner = ["nsenter", "-t", str(self._inner()), "--pid", "--mount", "--net", "--ipc", "--", *clean, *command]
        return subprocess.run(
            inner,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
            cwd="/",
            check=False,
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._outer.poll() is None, f"the root could not be made: {self._said()}"
            if self._inner() and self._start(["test", "-e", "/run/ready"], 60).returncode == 0:
                # what guards the machine must have been passed by now: nothing runs before
                return
            time.sleep(0.05)
        raise TimeoutError("the root is not ready")

    def _said(self) -> str:
        return self._outer.stdout.read() if self._outer.stdout else ""

    def _inner(self) -> int:
        """Process 1 of the namespace, by the number that it has outside; 0 while there is none."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0]) if children else 0


def _as(user: str, command: Sequence[str]) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
