"""A tiny home and a worker that does no work, for the tests of the supervisor."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from daemon import config as settings
from daemon.config import Config
from daemon.service import Service
from state.store import Store

WAIT_S: Final = 120.0
"""Until a test gives up. One that passes does not wait this long, so it is several times what a busy machine needs."""

NOW = "2026-03-01T12:00:00+00:00"

WORKER = '''\
"""Plays one script: the events of <kind>.json, or of <kind>-<n>.json at its n-th start where that exists."""
import json, os, sys, time
from pathlib import Path

here, home, kind, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
with (here / "starts.log").open("a") as file:
    file.write(f"{kind} {name}\\n")
nth = sum(line.startswith(kind + " ") for line in (here / "starts.log").read_text().splitlines())
script = here / f"{kind}-{nth}.json"
script = script if script.exists() else here / f"{kind}.json"

def send(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()

def play(event):
    if "sleep" in event:
        time.sleep(event["sleep"])
    elif "exit" in event:
        os._exit(event["exit"])
    elif "kill" in event:
        os.kill(os.getpid(), event["kill"])
    elif "raw" in event:
        send(event["raw"])
    elif event.get("outcome") == "ready" and "result" not in event:
        sys.path.insert(0, str(here))
        from candidate import build
        send(json.dumps({**event, "result": build(home, name)}))
    else:
        send(json.dumps(event))

for event in json.loads(script.read_text()):
    play(event)
'''

CANDIDATE = '''\
import sys
sys.path.insert(0, {root!r})
import numpy as np
from state import durable, materialize, overlay
from state.overlay import Edit
from state.store import Store
from state.tensors import ModelFolder

def build(home, round_id):
    """A candidate that differs from its parent in one entry."""
    with Store.open(home) as store:
        row = store.round(round_id)
        scratch = store.scratch(round_id)
        durable.remove_tree(scratch)
        durable.make_folder(scratch)
        edits = {{"w": Edit(np.array([3], dtype=np.int64), np.array([int(round_id[1:])], dtype=np.uint32))}}
        overlay.write(scratch / "overlay.safetensors", edits, {{}})
        parent = ModelFolder.open(store.model_path(row.parent))
        digests = materialize.build_folder(parent, edits, scratch / "model")
        known = store.version_record(row.parent)
    recipe = known.get("lineage") or {{"patches": [], "batches": []}}
    if row.kind == "consolidation":
        recipe = {{**recipe, "patches": [round_id], "num_together": len(recipe["batches"])}}
    elif row.batch:
        recipe = {{**recipe, "patches": [*recipe["patches"], round_id], "batches": [*recipe["batches"], row.batch]}}
    record = {{
        "lineage": recipe,
        **digests.to_record(),
        "touched": {{"num_entries": 1, "fraction": 0.01, "per_tensor": {{"w": 1}}}},
        "metrics": {{"harm_rate": 0.1}},
    }}
    return {{"staging_model": "model", "overlay": "overlay.safetensors", "record": record}}
'''


def make_model(path: Path) -> Path:
    """A model folder with one float32 tensor, as small as one can be."""
    path.mkdir(parents=True)
    data = np.arange(100, dtype=np.float32).tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [10, 10], "data_offsets": [0, len(data)]}}).encode()
    header += b" " * (-len(header) % 8)
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 10}))
    return path


def make_home(root: Path) -> Path:
    """A home with a store, probes and an empty inbox."""
    home = root / "home"
    (home / "inbox").mkdir(parents=True)
    (home / "probes").mkdir()
    for name in ("over_safety", "utility"):
        write_probes(home / "probes" / f"{name}.jsonl")
    Store.create(home, make_model(root / "base"), actor="test", now=NOW).close()
    return home


def write_probes(path: Path, num_rows: int = 120) -> None:
    """Probes with references; of 120, enough are in the gate part for every gate."""
    rows = [
        {"prompt": f"How does a frob glim {number}?", "response": f"It zims {number}."} for number in range(num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fast_config(**tables: dict[str, Any]) -> Config:
    """Settings under which a test does not wait."""
    inbox = {"settle_s": 0.05, "rescan_s": 5, "min_free_bytes": 0, **tables.pop("inbox", {})}
    schedule = {"retry_s": 0.0, "verify": "", **tables.pop("schedule", {})}
    return settings.parse({"inbox": inbox, "schedule": schedule, **tables})


# without `site` a worker starts in a third of the time; numpy and the rest come by path
_SITE = [path for path in sys.path if path.endswith("site-packages")]
_BOOT = f"import sys; sys.path += {_SITE!r}; exec(open(sys.argv[1] + '/worker.py').read())"


class FakeWorker:
    """Scripts for the workers of a service, and a count of their starts."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root = root
        self.home = home
        root.mkdir()
        (root / "worker.py").write_text(WORKER)
        code = Path(__file__).resolve().parent.parent
        (root / "candidate.py").write_text(CANDIDATE.format(root=str(code)))
        self.script("intake", {"event": "done", "outcome": "accepted", "result": {"num_rows": 50}})
        self.script("round", {"event": "done", "outcome": "ready"})

    def script(self, name: str, *events: dict[str, Any]) -> None:
        """What workers of this kind (``round``), or their n-th start (``round-2``), do."""
        (self.root / f"{name}.json").write_text(json.dumps(events))

    def argv(self, kind: str, name: str) -> list[str]:
        """The command that `Service` is given."""
        return [sys.executable, "-S", "-c", _BOOT, str(self.root), str(self.home), kind, name]

    def starts(self, kind: str) -> list[str]:
        """Names of the jobs of this kind that were started, in order."""
        log = self.root / "starts.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split(" ", 1)[1] for line in lines if line.startswith(kind + " ")]


class Running:
    """A service in a thread, stopped at the end of the block."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int | None:
        """Ends it and gives its exit code."""
        self.service.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the service did not stop"
        return self.code

    def _run(self) -> None:
        self.code = self.service.run()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = WAIT_S) -> None:
    """Returns once the condition holds; fails the test when it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def drop(home: Path, name: str, content: str = "row\n") -> None:
    """Renames a file into the inbox, as `alignd submit` does."""
    aside = home / f"aside-{name}"
    aside.write_text(content)
    aside.rename(home / "inbox" / name)


def utc(text: str = NOW) -> datetime:
    """An aware time."""
    return datetime.fromisoformat(text).astimezone(UTC)
