"""A shell in which the commands of a page are typed one after the other, in a checkout of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.doc_pages import Command, Page, unlike
from tests.product import ROOT, environment

LIMIT_S = 120
HURRIED = """
[inbox]
settle_s = 0.2
[derive]
max_rows = 24
max_length = 64
[derive.safety]
max_steps = 3
[derive.over_safety]
max_steps = 3
[derive.retain]
wrapped_rows = 0
replay_rows = 8
standing_rows = 8
batch_rows = 4
[merge]
score_rows = 8
[merge.search]
trials = 1
max_prompts = 4
[probes]
max_prompts = 12
[judge]
max_new_tokens = 6
content_recall = 0.0
[gates]
harm = {class = "dry_run"}
new_harm = {class = "dry_run"}
standing_harm = {class = "dry_run"}
right = {class = "dry_run"}
over_safety = {class = "dry_run"}
utility = {class = "dry_run"}
drift = {class = "dry_run"}
degenerate = {max = 1.0, min_samples = 1}
"""
"""Rounds of a few seconds, which show that commands do what a page says, and nothing of the method."""
WEB_PORT = "8420"
"""The port of the page in the texts; a test takes one that is free."""


class PageError(AssertionError):
    """A page says something that is not so."""


class Shell:
    """One reader's terminals, in a folder that looks like the checkout, with an empty `var/`."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder
        self._environment = folder.parent / f"{folder.name}.environment"
        self._others: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._port = str(_free_port())
        folder.mkdir()
        for path in ROOT.iterdir():
            if not path.name.startswith(".") and path.name != "var":
                (folder / path.name).symlink_to(path)
        (folder / "var").mkdir()

    def follow(self, page: Page) -> None:
        """Does all that the page says, and nothing else.

        Raises:
            PageError: a command ended otherwise than the page has it, or said something else.
        """
        try:
            for step in page.steps:
                if isinstance(step, str):
                    self._heed(step)
                elif step.kind == "console" and not step.remark.startswith("not run"):
                    for command in step.commands():
                        self._type(command, step.remark)
        except PageError as err:
            raise PageError(f"{page.path.name}: {err}") from None
        finally:
            self.interrupt()

    def run(self, line: str) -> tuple[int, str]:
        """One command to its end: exit code, and stdout and stderr as a terminal shows them."""
        done = subprocess.run(
            ["bash", "-c", self._script(line)],
            cwd=self.cwd,
            env=self._surroundings(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
        )
        told, _, cwd = done.stdout.decode().rpartition("\n\0")
        self.cwd = Path(cwd.strip() or self.cwd)
        return done.returncode, told

    def interrupt(self) -> None:
        """Ctrl-C in each of the other terminals."""
        for line, process in self._others:
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=LIMIT_S)
            if code not in (0, 130):
                raise PageError(f"`{line}` in another terminal ended with {code}")
        self._others = []

    def _heed(self, remark: str) -> None:
        kind, _, rest = remark.partition(": ")
        if kind == "Ctrl-C there":
            self.interrupt()
        elif kind == "in a hurry":
            hurry(self.cwd / rest)
        elif kind == "prepare":
            code, told = self.run(rest)
            if code:
                raise PageError(f"`{rest}` was to prepare something and ended with {code}:\n{told}")

    def _type(self, command: Command, remark: str) -> None:
        if remark == "another terminal":
            return self._start(command.line)
        wanted = int(remark.rpartition(" ")[2]) if remark else 0
        code, told = self.run(command.line)
        if code != wanted:
            raise PageError(f"`{command.line}` ended with {code}, not with {wanted}:\n{told}")
        if missing := unlike(command.shown, told):
            raise PageError(f"`{command.line}` does not say `{missing}` there, but:\n{told}")
        return None

    def _start(self, line: str) -> None:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {self._with_port(line)}"],
            cwd=self.cwd,
            env=self._surroundings(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._others.append((line, process))
        if line.endswith(" run"):
            words = line.split()
            home = words[words.index("-c") + 1] if "-c" in words else "."
            self._wait_for_service(home, process)

    def _wait_for_service(self, home: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and process.poll() is None:
            _, told = self.run(f"alignd -c {home} --json status 2>/dev/null")
            if told and json.loads(told)["service"]["running"]:
                return
            time.sleep(0.2)
        raise PageError(f"no service came up in {home}")

    def _script(self, line: str) -> str:
        # what a command sets and where it goes holds for the next one, as in a terminal
        saved = self._environment
        return (
            f"[ -e '{saved}' ] && . '{saved}'; {self._with_port(line)}\n"
            f"code=$?; export -p > '{saved}'; printf '\\n\\0%s' \"$PWD\"; exit $code"
        )

    def _with_port(self, line: str) -> str:
        return line.replace(WEB_PORT, self._port)

    def _surroundings(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            **environment(),
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "250",
        }


def hurry(home: Path) -> None:
    """The home's settings, but for its base, as `HURRIED` has them."""
    file = home / "service.toml"
    base = next(line for line in file.read_text().splitlines() if line.startswith("base"))
    file.write_text(f"[model]\n{base}\n{HURRIED}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
