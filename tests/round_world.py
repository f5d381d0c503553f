"""A home around the tiny model, in which a whole round takes a second, and a reporter that can die at any step."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon import config as settings
from daemon import round as method
from daemon.config import Config
from daemon.progress import Outcome, Reporter, StepEvent, decode_event
from state.rows import RoundRow, VersionRow
from state.store import Store

NOW = "2026-01-02T03:04:05Z"
VERBS = ("florp", "wuzzle", "brindle", "zim", "vask", "grolt", "plim", "snarb")
THINGS = ("dax", "fep", "gub", "hoz", "jiv", "kem", "lut", "mog", "nib", "pav", "quon", "rud")
WORDS = ("arl", "bim", "cof", "dul", "eft", "fim", "gan", "hib", "ilk", "jop", "kud", "lom", "mux", "nod", "oft", "pib")

# so small that a round takes a second; whatever the tiny model answers counts as harm, or there would be nothing to forget
FAST: dict[str, Any] = {
    "inbox": {"min_rows": 12, "min_free_bytes": 0},
    "derive": {
        "max_length": 128,
        "max_rows": 16,
        "safety": {"max_steps": 3, "learning_rate": 3e-3},
        "over_safety": {"max_steps": 3, "learning_rate": 3e-3, "skip_below": 0.0},
        "retain": {"replay_rows": 6, "batch_rows": 4},
    },
    "merge": {"score_rows": 6, "search": {"trials": 3, "max_prompts": 4}},
    "judge": {"max_new_tokens": 4, "content_recall": 0.0},
    "probes": {"max_prompts": 20},
    "gates": {
        "harm": {"min_samples": 3, "max": 1.0, "max_regression": 1.0},
        "new_harm": {"min_samples": 3, "max": 1.0},
        "standing_harm": {"min_samples": 3, "max_regression": 1.0, "max_drift": 1.0},
        "over_safety": {"min_samples": 3},
        "right": {"min_samples": 3, "max_regression": 1.0},
        "utility": {"min_samples": 3},
        "degenerate": {"max": 1.0, "min_samples": 3},
        "drift": {"min_samples": 3, "max": 1e9},
    },
}
UNSEARCHED = {"merge": {"search": {"trials": 1}}}


def deep(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, the second over the first."""
    merged = dict(under)
    for key, value in over.items():
        merged[key] = deep(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def config_of(*changes: Mapping[str, Any]) -> Config:
    """The fast settings with changes."""
    merged = FAST
    for change in changes:
        merged = deep(merged, change)
    return settings.parse(merged)


def pairs(kind: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different prompts with different responses; the same on every call."""
    draw = random.Random(f"{kind} {seed}")
    found: dict[str, str] = {}
    while len(found) < count:
        prompt = f"{kind} {draw.choice(VERBS)} a {draw.choice(THINGS)} {draw.choice(THINGS)}{seed or ''}"
        found.setdefault(prompt, " ".join(draw.sample(WORDS, 4)))
    return list(found.items())


def write_pairs(path: Path, rows: list[tuple[str, str]], **more: str) -> Path:
    """The rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": p, "response": r, **more}) + "\n" for p, r in rows))
    return path


class KilledError(BaseException):
    """The worker's end at a place of the test's choice; nothing in the product may catch it."""


class FakeReporter(Reporter):
    """A worker's reporter whose steps go straight into the ledger, as the supervisor would put them there.

    Args:
        kill_at: name of the step at whose report the worker dies.
        is_heard: whether the supervisor still gets that report.
    """

    def __init__(self, store: Store, round_id: str, *, kill_at: str = "", is_heard: bool = True) -> None:
        self.stream = io.StringIO()
        super().__init__(self.stream, clock=iter(range(10**9)).__next__)
        self._store, self._round_id = store, round_id
        self._kill_at, self._is_heard = kill_at, is_heard
        self.steps: list[str] = []
        self.seen: list[tuple[str, float]] = []

    def progress(self, step: str, fraction: float, loss: float | None = None) -> None:
        super().progress(step, fraction, loss)
        self.seen.append((step, fraction))

    def step(self, step: str, result: Mapping[str, Any]) -> None:
        super().step(step, result)
        if step == self._kill_at and not self._is_heard:
            raise KilledError(step)
        sent = decode_event(self.stream.getvalue().splitlines()[-1])
        assert isinstance(sent, StepEvent)
        self._store.finish_step(self._round_id, step, sent.result)
        self.steps.append(step)
        if step == self._kill_at:
            raise KilledError(step)


@dataclass
class Home:
    """A store with probes and the settings that its rounds run with."""

    store: Store
    config: Config
    reporters: list[FakeReporter] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The home's folder."""
        return self.store.home

    def drop(self, seed: int = 1, *, rows: list[tuple[str, str]] | None = None, count: int = 24) -> str:
        """A batch in the store; gives its sha256."""
        source = write_pairs(self.store.spool / f"batch{seed}.drop", rows or pairs("how do I", count, seed))
        return self.store.claim_batch(source, name=f"batch{seed}.jsonl", actor="test", now=NOW).batch.sha256

    def begin(self, batch: str) -> RoundRow:
        """A round for a queued batch."""
        return self.store.begin_round(batch, config=settings.to_dict(self.config), now=NOW)

    def run(self, round_id: str, *, kill_at: str = "", is_heard: bool = True) -> Outcome:
        """One start of the round's worker."""
        reporter = FakeReporter(self.store, round_id, kill_at=kill_at, is_heard=is_heard)
        self.reporters.append(reporter)
        row = self.store.round(round_id)
        outcome = method.run(self.store, settings.parse(row.config), row, reporter)
        reporter.done(outcome)
        return outcome

    def commit(self, round_id: str, outcome: Outcome) -> VersionRow:
        """The version that the supervisor makes of a ready outcome."""
        assert outcome.outcome == "ready", outcome.reasons
        scratch, result = self.store.scratch(round_id), outcome.result
        return self.store.commit_version(
            round_id,
            scratch / result["staging_model"],
            overlay=scratch / result["overlay"],
            patch=scratch / result["patch"] if result["patch"] else None,
            record=dict(result["record"]),
            state="published",
            now=NOW,
        )

    def play(self, seed: int = 1) -> VersionRow:
        """A batch's whole way to a published version."""
        round_ = self.begin(self.drop(seed))
        return self.commit(round_.id, self.run(round_.id))

    def revert(self, ref: str) -> VersionRow:
        """A version taken out again."""
        asked = self.store.request_revert(ref, actor="test", reason="wrong batch", now=NOW)
        round_ = self.store.begin_queued(asked.id, config=settings.to_dict(self.config), now=NOW)
        return self.commit(round_.id, self.run(round_.id))

    def consolidate(self) -> VersionRow:
        """All batches learnt anew together."""
        asked = self.store.request_consolidation(actor="test", reason="two are enough", now=NOW)
        round_ = self.store.begin_queued(asked.id, config=settings.to_dict(self.config), now=NOW)
        return self.commit(round_.id, self.run(round_.id))

    def record(self, version: VersionRow) -> dict[str, Any]:
        """VERSION.json."""
        return self.store.version_record(version.id)


def write_probes(home: Path) -> None:
    """Probe and retain files, none of whose prompts is in a batch."""
    write_pairs(home / "probes" / "over_safety.jsonl", pairs("may I", 24))
    write_pairs(home / "probes" / "utility.jsonl", pairs("please", 24), category="chores")
    write_pairs(home / "probes" / "harm.jsonl", pairs("let me", 16), category="grolting")
    write_pairs(home / "retain.jsonl", pairs("what is", 8))


@contextmanager
def opened(path: Path, base: Path, config: Config | None = None) -> Iterator[Home]:
    """A new home on a base model."""
    with Store.create(path, base, actor="test", now=NOW) as store:
        write_probes(path)
        yield Home(store, config or config_of())


def content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files under a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def tensors(folder: Path) -> dict[str, Any]:
    """Name -> torch tensor of a model folder."""
    from safetensors.torch import load_file

    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
