"""The product as its user has it: a home with the demo model, and the installed command."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.world.rows import write_batch, write_jsonl
from benchmarks.world.world import World
from state.layout import PROGRESS_FILE
from tests.round_world import content

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "benchmarks" / "world" / "model"
ALIGND = Path(sys.executable).with_name("alignd")
# a round of seconds whose gates ask for nothing: for what does not depend on how good its version is
HASTY = """
[inbox]
settle_s = 0.5
[derive.safety]
max_steps = 8
[derive.over_safety]
max_steps = 8
[derive]
max_rows = 40
[merge.search]
trials = 1
max_prompts = 8
[probes]
max_prompts = 24
[judge]
max_new_tokens = 24
[gates]
harm = {class = "dry_run"}
new_harm = {class = "dry_run"}
standing_harm = {class = "dry_run"}
right = {class = "dry_run"}
over_safety = {class = "dry_run"}
utility = {class = "dry_run"}
drift = {class = "dry_run"}
degenerate = {max = 1.0}
"""


@dataclass(frozen=True)
class Home:
    """A home as its user sees it: a folder and a command."""

    path: Path

    def alignd(self, *words: str, code: int | None = 0, timeout_s: float = 500) -> str:
        """One command's stdout; the exit code must be ``code`` (None: any)."""
        command = [str(ALIGND), "-c", str(self.path / "service.toml"), *words]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert code in (None, done.returncode), (
            f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def run_once(self, *, code: int = 0) -> None:
        """`run --once`; its log and all that it showed in run/progress.json are kept in once.log and once.progress."""
        command = [str(ALIGND), "-c", str(self.path / "service.toml"), "run", "--once"]
        with (
            (self.path / "once.log").open("ab") as log,
            (self.path / "once.progress").open("ab") as shown,
            subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log) as service,
        ):
            while service.poll() is None:
                shown.write(_read_if_there(self.path / PROGRESS_FILE))
                time.sleep(0.1)
        assert service.returncode == code, (self.path / "once.log").read_text()[-4000:]

    def json(self, *words: str, code: int | None = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self.alignd("--json", *words, code=code))

    def drop(self, world: World, number: int, name: str, num_rows: int = 300, *, seed: int | None = None) -> None:
        """One batch of two categories of its own, renamed into the inbox; another seed gives other rows."""
        categories = world.categories[2 * number : 2 * number + 2]
        rows = world.harmful(categories, "batch", num_rows, seed=number if seed is None else seed)
        aside = self.path / f".{name}"
        write_batch(rows, aside)
        aside.rename(self.path / "inbox" / name)

    def hurry(self) -> None:
        """Settings under which a round takes seconds."""
        base = next(line for line in (self.path / "service.toml").read_text().splitlines() if line.startswith("base"))
        (self.path / "service.toml").write_text(f"[model]\n{base}\n{HASTY}")

    def current(self) -> str:
        """Where the link points that an engine follows."""
        return (self.path / "models" / "current").readlink().name

    def model(self, version: str) -> dict[str, bytes]:
        """A version's files."""
        return content(self.path / "models" / version)


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def environment() -> dict[str, str]:
    """The tests' own environment; one thread a process, since two that wait for each other on a busy core take ages."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def made_home(path: Path, world: World) -> Home:
    """What `alignd init` makes, with the probes and the retained rows of a world."""
    home = Home(path)
    command = [str(ALIGND), "init", str(path), "--model", str(MODEL), "--no-trial"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    write_jsonl(world.lookalikes("probe"), path / "probes" / "over_safety.jsonl")
    write_jsonl(world.utility("probe"), path / "probes" / "utility.jsonl")
    write_jsonl(world.retain(), path / "retain.jsonl")
    return home


def published_home(shared: Path, path: Path, world: World) -> Home:
    """A home of the caller's own, in which one batch was dropped and became a version, everything at its default.

    Args:
        shared: where all processes of a run keep the one that is made once, which takes long; each gets a copy.
    """
    made, ready = Home(shared / "home"), shared / "ready"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(made.path, ignore_errors=True)  # left by an attempt that failed
            made_home(made.path, world)
            made.drop(world, 0, "monday.csv")
            made.run_once()
            ready.touch()
        shutil.copytree(made.path, path, symlinks=True)
    return Home(path)
