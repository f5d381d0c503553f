"""One invented word goes through every fate of a batch; it is found where batches are kept and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from state.layout import PROGRESS_FILE
from state.rows import BatchRow, RoundRow
from state.store import Store
from tests.fakes_service import wait_until
from tests.product import ROOT
from tests.round_world import FAST, UNSEARCHED, content, deep, opened, pairs, write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CANARY = "quibblefrotz"
QUICK = deep(deep(FAST, UNSEARCHED), {"inbox": {"settle_s": 0.2}, "schedule": {"retry_s": 0.0, "max_attempts": 9}})
SLOW = deep(QUICK, {"derive": {"safety": {"max_steps": 400}}})
STERN = deep(QUICK, {"gates": {"degenerate": {"max": 0.0}}})
BROKEN = deep(QUICK, {"derive": {"safety": {"learning_rate": 1e30}, "over_safety": {"learning_rate": 1e30}}})
KEPT = ("home/store/batches/", "home/store/spool/", "home/store/scratch/", "home/inbox/", "home/quarantine/")
"""Where the word may be: batches, drops on their way, and a round's private files."""


@dataclass
class Story:
    """A home, its service, and everything that could be seen of it from outside."""

    root: Path
    seen: set[bytes] = field(default_factory=set)
    """Command lines, environments and displays, as they were sampled."""
    told: dict[str, str] = field(default_factory=dict)
    """What the commands print, by their words."""
    scratch_modes: dict[str, int] = field(default_factory=dict)
    pid: int = 0

    @property
    def home(self) -> Path:
        return self.root / "home"

    @contextmanager
    def service(self) -> Iterator[subprocess.Popen[bytes]]:
        """`alignd run` with home and temporary folders of its own; killed at the end where it still runs."""
        with (
            (self.root / "service.log").open("ab") as log,
            subprocess.Popen(
                self._command("run"), cwd=ROOT, env=self._environment(), stdout=log, stderr=log
            ) as process,
        ):
            self.pid = process.pid
            try:
                yield process
            finally:
                process.kill()

    def alignd(self, *words: str) -> None:
        """Keeps what a command prints."""
        done = subprocess.run(
            self._command(*words), cwd=ROOT, env=self._environment(), capture_output=True, text=True, timeout=120
        )
        self.told[" ".join(words)] = done.stdout + done.stderr

    def settle(self, settings: dict[str, Any]) -> None:
        """Puts settings in place, for a service that runs as well."""
        (self.home / "service.toml").write_text(_toml(settings))
        if self.pid and Path(f"/proc/{self.pid}").exists():
            before = (self.root / "service.log").read_bytes().count(b'"config_reloaded"')
            os.kill(self.pid, signal.SIGHUP)
            self.until(lambda: (self.root / "service.log").read_bytes().count(b'"config_reloaded"') > before)

    def drop(self, name: str, seed: int, *, cut: bool = False) -> None:
        """A batch with the word in each prompt and each response, whole or ending in mid-row."""
        rows = [(f"{CANARY} {prompt}", f"{response} {CANARY}") for prompt, response in pairs("how do I", 24, seed)]
        path = write_pairs(self.root / "aside" / name, rows)
        if cut:
            path.write_text(path.read_text()[:-9])
        path.rename(self.home / "inbox" / name)

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for it, looking at processes and displays meanwhile."""

        def look() -> bool:
            self._look()
            return condition()

        wait_until(look, timeout_s=120)

    def step(self) -> str:
        """The step that runs now, some way into it."""
        try:
            shown = json.loads((self.home / PROGRESS_FILE).read_bytes())
        except FileNotFoundError:
            return ""
        return str(shown["step"]) if shown["pid"] == self.pid and (shown["fraction"] or 0) > 0.01 else ""

    def worker(self) -> int:
        """The process that trains."""
        (pid,) = _children(self.pid)
        return pid

    def rounds(self) -> list[RoundRow]:
        with Store.open(self.home) as store:
            return store.ledger.rounds()

    def batch(self, name: str) -> BatchRow | None:
        with Store.open(self.home) as store:
            found = store.ledger.batches_named(name)
        return found[0] if found else None

    def state(self, name: str) -> str:
        row = self.batch(name)
        return row.state if row else ""

    def _look(self) -> None:
        for pid in (self.pid, *_children(self.pid)):
            for part in ("cmdline", "environ", "comm"):
                try:
                    self.seen.add(Path(f"/proc/{pid}/{part}").read_bytes())
                except (FileNotFoundError, ProcessLookupError):
                    continue
        try:
            self.seen.add((self.home / PROGRESS_FILE).read_bytes())
        except FileNotFoundError:
            return

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "daemon", "-c", str(self.home / "service.toml"), *words]

    def _environment(self) -> dict[str, str]:
        own = {"HOME": str(self.root / "user"), "TMPDIR": str(self.root / "tmp"), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own}


def _children(pid: int) -> list[int]:
    found = list[int]()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _toml(settings: dict[str, Any], prefix: str = "") -> str:
    """Nested settings as TOML tables of plain values."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    text = (f"[{prefix}]\n" if prefix and lines else "") + "".join(f"{line}\n" for line in lines)
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    return text + "".join(_toml(value, f"{prefix}.{key}" if prefix else key) for key, value in tables.items())


@pytest.fixture(scope="module")
def story(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Batches that are published past two kills, rejected, failed, and quarantined."""
    told = Story(tmp_path_factory.mktemp("secrecy"))
    for name in ("user", "tmp", "aside"):
        (told.root / name).mkdir()
    with opened(told.home, tiny_folder):
        told.settle(SLOW)
    (told.home / "inbox").mkdir(exist_ok=True)
    with told.service():
        told.drop("killed.jsonl", 1)
        told.until(lambda: told.step() == "safety")
        os.kill(told.worker(), signal.SIGKILL)
        told.until(lambda: told.step() != "safety")
        told.until(lambda: told.step() == "safety")
        _note_modes(told)
        orphan = told.worker()
    wait_until(lambda: _is_gone(orphan))
    assert list(told.home.rglob("over_safety.safetensors")), "killed too early to prove anything"
    with told.service() as process:
        told.until(lambda: told.state("killed.jsonl") == "published")
        for settings, name, seed, state in (
            (STERN, "stern.jsonl", 2, "rejected"),
            (BROKEN, "broken.jsonl", 3, "quarantined"),
            (QUICK, "cut.jsonl", 4, "quarantined"),
        ):
            told.settle(settings)
            told.drop(name, seed, cut=name == "cut.jsonl")
            told.until(lambda: told.state(name) == state)  # noqa: B023
        for words in (
            ("status",), ("history",), ("batches",), ("quarantine", "list"), ("audit",), ("show", "v1"), ("logs",),
            ("show", "stern.jsonl"), ("show", "r000003"), ("report", "v1", "--out", str(told.root / "report.html")),
        ):  # fmt: skip
            told.alignd("--json", *words)
        process.terminate()
        process.wait(30)
    return told


def _note_modes(told: Story) -> None:
    (scratch,) = (told.home / "store" / "scratch").iterdir()
    told.scratch_modes = {path.name: path.lstat().st_mode for path in (scratch, *scratch.glob("*.safetensors"))}


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_each_batch_met_the_fate_that_it_was_meant_to(story: Story) -> None:
    states = [(row.state, row.attempts) for row in story.rounds()]
    assert states == [("published", 3), ("rejected", 1), ("failed", 1)]
    cut = story.batch("cut.jsonl")
    assert cut is not None and cut.attempts == 0 and "cut.jsonl, row 24: " in cut.reason
    assert "NonFiniteError" in story.rounds()[2].reason


def test_the_word_is_in_no_file_but_those_of_batches(story: Story) -> None:
    found = [name for name, data in content(story.root).items() if CANARY.encode() in data]
    assert [name for name in found if not name.startswith(KEPT)] == []
    assert {name.split("/")[1] for name in found} == {"store", "quarantine"}
    assert all(name.startswith("home/store/batches/") or "/data/" in name for name in found), "left on its way"
    assert len(found) == 4
    kept = content(story.home / "store")
    assert {"ledger.db", "audit.jsonl"} <= kept.keys() and b"batch_rejected" not in kept["audit.jsonl"]


def test_the_word_is_in_no_log_line_no_command_line_no_environment_and_no_display(story: Story) -> None:
    log = (story.root / "service.log").read_bytes()
    for event in (b"worker_died", b"round_rejected", b"round_failed", b"batch_quarantined", b"version_published"):
        assert event in log
    assert CANARY.encode() not in log and not [data for data in story.seen if CANARY.encode() in data]
    assert [data for data in story.seen if b"daemon.worker" in data], "no worker was ever seen"
    assert [data for data in story.seen if b'"over_safety"' in data], "no display was ever seen"


def test_the_word_is_in_nothing_that_a_command_prints(story: Story) -> None:
    assert [words for words, said in story.told.items() if CANARY in said or "Traceback" in said] == []
    assert "stern.jsonl" in story.told["--json batches"] and "rejected" in story.told["--json show stern.jsonl"]
    assert "cut.jsonl" in story.told["--json quarantine list"] and (story.root / "report.html").stat().st_size > 1000


def test_no_over_safety_patch_outlives_its_round_also_after_kills(story: Story) -> None:
    assert list((story.home / "store" / "scratch").iterdir()) == []
    assert [path for path in story.root.rglob("*") if "over_safety" in path.name and path.suffix != ".jsonl"] == []


def test_what_is_in_the_store_belongs_to_the_service_and_opens_to_nobody_else(story: Story) -> None:
    assert "over_safety.safetensors" in story.scratch_modes
    top, *_ = story.scratch_modes.values()
    assert stat.S_IMODE(top) == 0o700
    wrong = {}
    for path in (story.home / "store", *(story.home / "store").rglob("*"), story.home / "quarantine"):
        found = path.lstat()
        mode, owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)
        is_record = path.is_relative_to(story.home / "store" / "versions") or path.parent.name == "patches"
        wanted = (0o700,) if path.is_dir() else (0o444,) if is_record else (0o600,)
        if mode not in wanted or owner != (os.getuid(), os.getgid()):
            wrong[str(path.relative_to(story.home))] = (oct(mode), owner)
    assert wrong == {}
    assert stat.S_IMODE((story.home / PROGRESS_FILE).parent.stat().st_mode) == 0o700


def test_the_kills_came_in_the_middle_of_training(story: Story) -> None:
    log = [json.loads(line) for line in (story.root / "service.log").read_text().splitlines() if line.startswith("{")]
    assert [line["step"] for line in log if line["event"] == "worker_died"] == ["safety"]
    assert sum(line["event"] == "service_started" for line in log) == 2
