"""A version written, rebuilt, kept and switched to, beside the same bytes copied."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from benchmarks.speed.models import SHAPES, make
from benchmarks.speed.rows import Row, interleaved, peak_mib, processor_seconds, seconds
from daemon.candidate import MODEL_FOLDER, MergedEdits, write_candidate
from state import durable, materialize, overlay
from state.store import Store
from state.tensors import ModelFolder

NOW: Final = "2026-01-01T00:00:00+00:00"
COPY_BYTES: Final = 4 << 20
ROOT: Final = Path(__file__).resolve().parent.parent.parent


class RandomEntries(Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """So many entries of every decoder matrix, drawn when they are looked up: what a patch file would give."""

    def __init__(self, model: ModelFolder, share: float) -> None:
        self._sizes = {
            name: info.num_entries for name, info in model.tensors.items() if ".layers." in name and "norm" not in name
        }
        self._share = share

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(len(name) + self._sizes[name])
        indices = np.flatnonzero(draw.random(self._sizes[name], np.float32) < self._share)
        return indices, draw.normal(0, 0.02, len(indices)).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def made_store(folder: Path, size: str) -> Store:
    """A home in the folder whose base is a model of this size."""
    base = make(SHAPES[size], folder / "base")
    (folder / "home").mkdir()
    return Store.create(folder / "home", base, actor="bench", now=NOW)


def commit(store: Store, number: int, *, share: float) -> None:
    """Write and publish a version in which this share of the decoder's entries differs from the current one's."""
    from tests.state_world import begin

    round_id = begin(store, number)
    scratch = store.scratch(round_id)
    durable.make_folder(scratch)
    parent = store.current().id
    model = ModelFolder.open(store.model_path(parent))
    made = write_candidate(store, parent, scratch, edits=MergedEdits(model, RandomEntries(model, share)), patch=None)
    record = {**made.digests.to_record(), "touched": made.touched, "metrics": {}}
    store.commit_version(round_id, made.model, overlay=made.overlay, record=record, state="published", now=NOW)


def drawn_edits(store: Store, share: float) -> MergedEdits:
    """Of v0, drawn beforehand and kept in memory, so that drawing is in no time that is measured."""
    model = ModelFolder.open(store.model_path(0))
    return MergedEdits(model, dict(RandomEntries(model, share)))


def remove(*folders: Path) -> None:
    """Remove what an earlier call wrote, untimed: a disk that discards each freed block takes seconds for that."""
    for folder in folders:
        durable.remove_tree(folder)


def _copy(source: Path, target: Path) -> None:
    """Every file read, written and flushed, as cp and sync would."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        with path.open("rb") as given, (target / path.name).open("wb") as out:
            while chunk := given.read(COPY_BYTES):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())


def write_version(folder: Path, size: str = "1B", share: float = 0.05) -> list[Row]:
    """Merge 5 % of the decoder's entries and write the candidate; its memory is a row of its own."""
    with made_store(folder, size) as store:
        scratch = folder / "scratch"
        scratch.mkdir()
        edits = drawn_edits(store, share)

        def ours() -> None:
            write_candidate(store, 0, scratch, edits=edits, patch=None)

        mine, copied = interleaved(
            ours,
            lambda: _copy(store.model_path(0), folder / "copy"),
            prepare=partial(remove, scratch / MODEL_FOLDER, folder / "copy"),
        )
    return [
        Row(
            "merge and write a version",
            mine,
            "s",
            "copying the same bytes with fsync",
            copied,
            1.3,
            "at most",
            f"{size}, {share:.0%} touched; every byte in two BLAKE3 digests, its file's and its tensor's",
        )
    ]


def memory_at_1b(folder: Path) -> list[Row]:
    """The most memory of a process that merges and writes one version, and does nothing else."""
    return _memory(folder, "1B")


def memory_at_3b(folder: Path) -> list[Row]:
    """Likewise of a model three times as large."""
    return _memory(folder, "3B")


def _memory(folder: Path, size: str) -> list[Row]:
    made_store(folder, size).close()
    probe = "from benchmarks.speed.store import write_once; import sys; write_once(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", probe, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Row(f"memory of that at {size}", float(done.stdout), "MiB", "", None, 1536, "at most", "5 % touched")]


def write_once(folder: str) -> None:
    """For `_memory`: one version of the store that is there; prints the process's peak in MiB."""
    with Store.open(Path(folder) / "home") as store:
        (Path(folder) / "scratch").mkdir(exist_ok=True)
        model = ModelFolder.open(store.model_path(0))
        write_candidate(
            store, 0, Path(folder) / "scratch", edits=MergedEdits(model, RandomEntries(model, 0.05)), patch=None
        )
    print(peak_mib())


def rebuild(folder: Path, size: str = "1B") -> list[Row]:
    """A version from base and overlay, checked against its record."""
    with made_store(folder, size) as store:
        commit(store, 1, share=0.05)
        mine, copied = interleaved(
            lambda: materialize.rebuild(store, 1, folder / "again"),
            lambda: _copy(store.model_path(0), folder / "copy"),
            prepare=partial(remove, folder / "again", folder / "copy"),
        )
    return [
        Row(
            "rebuild a version",
            mine,
            "s",
            "copying the same bytes with fsync",
            copied,
            1.5,
            "at most",
            f"{size}, 5 % touched; every byte checked by BLAKE3",
        )
    ]


def version_size(folder: Path, size: str = "0.3B") -> list[Row]:
    """Bytes of an overlay, beside the model's; and of every fourth layer, beside the dense difference in zstd -19."""
    base = make(SHAPES[size], folder / "base")
    model = ModelFolder.open(base)
    whole = sum(path.stat().st_size for path in model.files.values())
    rows = []
    for share, budget in ((0.05, 0.12), (0.01, 0.03)):
        edits = MergedEdits(model, RandomEntries(model, share))
        path = folder / f"overlay-{share}"
        overlay.write(path, {name: edits[name] for name in edits}, {})
        mine = path.stat().st_size
        name = f"version on disk at {share:.0%} touched"
        rows.append(Row(name, mine / 2**20, "MiB", "the full model", whole / 2**20, budget, "at most", size))
        some = {name: edits[name] for name in edits if int(name.split(".")[2]) % 4 == 0}  # zstd -19: 2 MB a second
        overlay.write(folder / "some", some, {})
        mine, dense = (folder / "some").stat().st_size, _zstd_bytes(model, some)
        against = "the dense bf16 difference in zstd -19"
        note = f"every fourth layer of {size}"
        rows.append(Row(name, mine / 2**20, "MiB", against, dense / 2**20, 1.0, "at most", note))
    return rows


def _zstd_bytes(model: ModelFolder, edits: Mapping[str, overlay.Edit]) -> int:
    """What the new bits, exclusive-or the old ones, come to: zeros where nothing changed."""
    codec, total = pa.Codec("zstd", compression_level=19), 0
    for name in edits:
        old = np.array(model.read_raw(name))
        new = old.copy()
        edit = edits[name]
        new[edit.indices] = edit.values
        total += len(codec.compress((new ^ old).tobytes(), asbytes=True))
    return total


def rollback(folder: Path) -> list[Row]:
    """The whole command, between two versions that are kept, beside a Python that does nothing."""
    with made_store(folder, "0.1B") as store:
        for number in (1, 2):
            commit(store, number, share=0.01)
        home = store.home
    (home / "service.toml").touch()
    alignd = [sys.executable, "-m", "daemon", "-c", str(home)]
    targets = itertools.cycle(("v1", "v2"))

    def ours() -> None:
        words = ["promote", next(targets), "--force", "--reason", "bench"]
        _run([*alignd, *words])

    def nothing() -> None:
        _run([sys.executable, "-c", "pass"])

    mine, bare = interleaved(ours, nothing, 5)
    used = statistics.median(processor_seconds(ours) for _ in range(5))
    loaded = "import sys, daemon.cli, daemon.commands_control, state.store; print('torch' in sys.modules)"
    has_torch = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    note = f"{used:.3f} s of the processor; `python -c pass` takes {bare:.3f} s; torch imported: {has_torch.stdout.strip()}"
    return [Row("switch to a kept version, whole process", mine, "s", "", None, 0.3, "at most", note)]


def ledger(folder: Path) -> list[Row]:
    """`history` over 10,000 versions, beside 1,000."""
    from tests.state_world import make_store

    taken = {}
    for num in (1000, 10_000):
        (folder / str(num)).mkdir()
        with make_store(folder / str(num)) as store:
            _fill(store, num)
            home = store.home
        command = [sys.executable, "-m", "daemon", "-c", str(home), "--json", "history", "--limit", "20"]
        taken[num] = statistics.median(seconds(partial(_run, command)) for _ in range(3))
    note = f"{taken[1000]:.2f} s at 1,000 versions; the whole process"
    return [Row("history of the newest 20 of 10,000 versions", taken[10_000], "s", "", None, 0.5, "at most", note)]


def _run(command: list[str]) -> None:
    """As it is run where it is installed: with the bytecode of its modules kept from one run to the next."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)


def _fill(store: Store, num: int) -> None:
    from dataclasses import replace

    from state.rows import RoundRow

    base = store.version(0)
    with store.ledger.transaction():
        for number in range(1, num + 1):
            store.ledger.save(RoundRow(f"r{number:06d}", "batch", None, None, number - 1, "published", None, NOW))
            store.ledger.save(replace(base, id=number, parent=number - 1, state="published", round=f"r{number:06d}"))
