"""Every reader of the product that meets files which others made, as `tests.fuzz` calls it, and what it must hold to."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from hypothesis import strategies as st

from daemon import config, intake, probes, worker
from daemon.arrival import manifest_matches
from daemon.basemodel import check_base
from daemon.config_checks import ANSWER_ROOM
from daemon.formats import BatchError, Limits, ParsedBatch, read_batch
from daemon.progress import DoneEvent, FailedEvent, Reporter, decode_event
from state import audit, gaps, overlay, patchfile
from state.errors import ModelFormatError, StoreCorruptError
from state.header import read_header, read_metadata
from state.store import Store
from tests import fuzz_inputs as inputs
from tests.fuzz_inputs import SECRET, Mutation, mutate, mutate_header, repacked
from tests.state_world import NOW

CANARY: Final = "grault outside corge"
"""Stands in files beside the folder that a reader was given, and must not be seen by it."""
LIMITS: Final = Limits(
    max_rows=2000, max_bytes=8 << 20, max_document_bytes=4 << 20, max_cell_chars=20_000, max_files=50
)


class BrokenPromiseError(Exception):
    """A reader took something in that it must not, or said something that it must not."""


@dataclass(frozen=True)
class Reader:
    """One reader: what valid files are, what reading is, and which errors say no."""

    name: str
    read: Callable[[Path, bytes], None]
    """Puts the bytes into a new folder and reads them; raises an error of the product, or `BrokenPromiseError`."""
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Sequence[bytes]]
    place: str = ""
    """What every message must name."""
    mutate: Mutation = mutate
    scratch: st.SearchStrategy[bytes] = field(default_factory=lambda: st.binary(max_size=200))


def _require(is_kept: bool, what: str) -> None:
    if not is_kept:
        raise BrokenPromiseError(what)


def read_rows(folder: Path, data: bytes) -> None:
    """One file as a batch."""
    (folder / "drop").write_bytes(data)
    check_rows(read_batch(folder / "drop", LIMITS))


def check_rows(batch: ParsedBatch) -> None:
    """Every text is text that may be stored, learnt and counted; every report may be printed."""
    for row in batch.rows:
        texts = [row.response, *(turn.content for turn in row.messages)]
        _require(all(isinstance(text, str) and "\0" not in text for text in texts), "a text with NUL, or none")
        _require(all(len(text) <= LIMITS.max_cell_chars for text in texts), "a text over the limit")
        _require(all(turn.role in ("user", "assistant", "system") for turn in row.messages), "an unknown role")
        _require(row.category is None or row.category.strip() != "", "a blank category")
        for text in (*texts, row.category or "", row.source):
            text.encode()
        _require(CANARY not in " ".join(texts), "text from outside of the folder")
        _require(row.row >= 1 and row.source.isprintable(), "a row without a place")
    _require(len(batch.rows) <= 2 * LIMITS.max_rows, "more rows than are allowed")
    told = [*batch.warnings, *(f"{report.name} {report.ignored_columns}" for report in batch.files)]
    _require(all(text.isprintable() and SECRET not in text for text in told), "a report that must not be printed")


def read_tree(folder: Path, data: bytes) -> None:
    """A folder as a batch; the bytes are JSON that says what is in it, see `_grow`."""
    try:
        plan = json.loads(data)
    except (ValueError, RecursionError):
        return
    drop = folder / "drop"
    drop.mkdir()
    (folder / "outside.jsonl").write_text(json.dumps({"prompt": CANARY, "response": CANARY}) + "\n")
    for entry in plan if isinstance(plan, list) else ():
        if isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, str) for part in entry):
            if SECRET in entry[1]:
                return  # a name may be told
            _grow(folder, drop, *entry)
    check_rows(read_batch(drop, LIMITS))


def _grow(root: Path, drop: Path, kind: str, name: str, content: str) -> None:
    """Put a file, folder, link, second name or pipe into a drop, where the system allows such a name."""
    path = drop / name
    try:
        if not os.path.abspath(path).startswith(f"{drop}{os.sep}"):  # noqa: PTH100 - `resolve` would follow links
            return
        if not path.parent.resolve().is_relative_to(drop) or os.path.lexists(path):
            return  # what is written here must not follow links, nor wait for a pipe
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "file":
            path.write_bytes(content.encode("utf-8", "surrogateescape"))
        elif kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(content)
        elif kind == "outside":
            path.symlink_to(root / "outside.jsonl")
        elif kind == "pipe":
            os.mkfifo(path)
    except (OSError, ValueError):
        pass


def read_probes(folder: Path, data: bytes) -> None:
    """A probe file."""
    (folder / "probes.jsonl").write_bytes(data)
    rows, digest = probes.read(folder / "probes.jsonl")
    for row in rows:
        _require(bool(row.key) and isinstance(row.is_gate, bool), "a probe without a prompt")
        json.dumps([row.messages, row.response, row.category]).encode()
    _require(len(digest) == 64, "no digest")


def read_settings(folder: Path, data: bytes) -> None:
    """A service.toml, and the probe files that it names."""
    (folder / "service.toml").write_bytes(data)
    found = config.load(folder / "service.toml")
    _require(config.parse(json.loads(json.dumps(config.to_dict(found)))) == found, "settings that do not come back")
    probes.load(folder, found)


def read_safetensors(folder: Path, data: bytes) -> None:
    """The header of a safetensors file."""
    path = folder / "m.safetensors"
    path.write_bytes(data)
    infos = read_header(path, path.name)
    metadata = read_metadata(path)
    _require(
        all(0 <= info.start <= info.start + info.num_bytes <= len(data) for info in infos), "a tensor out of bounds"
    )
    _require(sum(info.num_bytes for info in infos) <= len(data), "tensors that overlap")
    _require(all(isinstance(text, str) for text in metadata.values()), "metadata that is no text")


def model_file(name: str) -> Callable[[Path, bytes], None]:
    """A reader of a base model whose file ``name`` are the bytes."""

    def read(folder: Path, data: bytes) -> None:
        for file, valid in _model_files().items():
            (folder / file).write_bytes(data if file == name else valid)
        check_base(folder)
        if name == "config.json":
            _require(intake.sequence_limit(folder, config.Config()) > ANSWER_ROOM, "a context without room")
        if name == "tokenizer.json":
            counter = intake._TokenCounter(folder)
            turns = [[probes_turn] for probes_turn in _TURNS]
            lengths, most = counter.num_tokens(turns), counter.most()
            _require(most is None or all(n <= most(t) for n, t in zip(lengths, turns, strict=True)), "a bound too low")

    return read


@dataclass(frozen=True)
class _Turn:
    role: str
    content: str


_TURNS: Final = tuple(_Turn("user", text) for text in ("", "a", "zorb  vek\n", "é三🙂", SECRET * 3))


@functools.cache
def _model_files() -> dict[str, bytes]:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"?": 0, "zorb": 1, "vek": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
    weights: dict[str, np.ndarray[Any, Any]] = {
        "a.weight": np.arange(8, dtype=np.float32),
        "b.weight": np.ones(4, np.uint16),
    }
    index = {"metadata": {"total_size": 40}, "weight_map": dict.fromkeys(weights, "model.safetensors")}
    return {
        "config.json": json.dumps({"model_type": "llama", "max_position_embeddings": 64, "hidden_size": 8}).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}", "model_max_length": 64}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model.safetensors": inputs.safetensors(weights, {"a.weight": "F32", "b.weight": "BF16"}, format="pt"),
    }


def read_overlay(folder: Path, data: bytes) -> None:
    """An overlay file, all its edits."""
    (folder / "overlay.safetensors").write_bytes(data)
    found = overlay.read(folder / "overlay.safetensors")
    for edit in found.values():
        _require(len(edit.indices) == len(edit.values), "positions without values")
        _require(bool((np.diff(edit.indices, prepend=-1) > 0).all()), "positions that do not rise")
        _require(edit.values.dtype.kind == "u", "values that are no raw entries")
    _require(all(isinstance(text, str) for text in found.metadata.values()), "metadata that is no text")


class _Patches:
    """As much of a store as the reading of patch files needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def patch_path(self, digest: str) -> Path:
        return self._folder / f"{digest}.safetensors"


def read_patch(folder: Path, data: bytes) -> None:
    """A patch file: entries, kinds and provenance."""
    store: Any = _Patches(folder)
    store.patch_path("f00d").write_bytes(data)
    for indices, deltas in patchfile.load(store, "f00d").values():
        _require(indices.shape == deltas.shape and deltas.dtype == np.float32, "entries that do not pair up")
    for indices, kinds in patchfile.load_kinds(store, "f00d").values():
        _require(indices.shape == kinds.shape and kinds.dtype == np.uint8, "kinds that do not pair up")
    _require(all(isinstance(text, str) for text in patchfile.provenance(store, "f00d").values()), "provenance")


@functools.cache
def _gap_file(kind: str) -> bytes:
    edits: dict[str, tuple[Any, Any]] = {
        "w": (np.array([0, 3, 700]), np.array([5, 6, 7], np.uint16)),
        "v": (np.array([2]), np.array([9], np.uint32)),
    }
    if kind == "packed overlay":  # only of long lists anything is packed
        edits["v"] = (np.arange(90) * 7, np.arange(90, dtype=np.uint16))
    deltas: dict[str, tuple[Any, Any]] = {"w": (np.array([0, 3, 700]), np.array([0.5, -1, 2], np.float32))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f")
        with gaps.GapWriter(path, {"round": "r1"}, packed=kind == "packed overlay") as out:
            for name, (indices, values) in (edits if kind.endswith("overlay") else deltas).items():
                out.add(name, indices, values)
            if kind == "patch with kinds":
                out.add("w#kinds", deltas["w"][0], np.array([1, 2, 3], np.uint8))
        return path.read_bytes()


def read_gaps(_: Path, data: bytes) -> None:
    """A stream of positions."""
    indices = gaps.decode(np.frombuffer(data, np.uint8))
    _require(bool((np.diff(indices, prepend=-1) > 0).all()), "positions that do not rise")
    _require(gaps.encode(indices).tobytes() == data, "a stream that is not written as it is read")


@functools.cache
def _store() -> tuple[Store, bytes]:
    """A store for the whole process, with a few audit lines."""
    from tests.test_bad_input import make_home

    root = Path(_scratch().name)
    home = make_home(root)
    store = Store.open(home)
    for n in range(3):
        store.pause(reason=f"grot {n}", actor="tester", now=NOW)
        store.resume(actor="tester", now=NOW)
    return store, store.audit_path.read_bytes()


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-store-")


def read_audit(_: Path, data: bytes) -> None:
    """The audit file: what is wrong with it, and its lines."""
    store, valid = _store()
    store.audit_path.write_bytes(data)
    found = audit.verify(store)
    _require(all(text.startswith("line ") and text.isprintable() for text in found), "a finding without a line")
    _require(data == valid or found != [], "a change that was not found")
    audit.read(store)


def read_manifest(folder: Path, data: bytes) -> None:
    """The manifest of a drop, read by the supervisor itself."""
    drop = folder / "drop"
    drop.mkdir()
    (drop / "a.jsonl").write_bytes(b"{}\n")
    (drop / "manifest.json").write_bytes(data)
    _require(manifest_matches(drop) in (True, False), "neither yes nor no")


_MANIFEST: Final = json.dumps(
    {
        "files": [
            {"name": "a.jsonl", "size": 3, "sha256": "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"}
        ]
    }
).encode()


def read_event(_: Path, data: bytes) -> None:
    """A line of a worker, read by the supervisor itself."""
    decode_event(data)


def read_by_worker(folder: Path, data: bytes) -> None:
    """The whole intake of a drop, as the worker does it: it ends with one event, which may be shown to anybody."""
    store, _ = _store()
    drop = store.spool / "drop"
    drop.write_bytes(data)
    batch = store.claim_batch(drop, name="drop", actor="tester", now=NOW).batch.sha256
    out = io.StringIO()
    with structlog.testing.capture_logs() as logs:
        worker.run(store.home, "intake", batch, Reporter(out))
    last = decode_event(out.getvalue().splitlines()[-1])
    text = f"{out.getvalue()} {logs}"
    _require(
        SECRET not in text and all(char.isprintable() or char == "\n" for char in text), "an event with text of rows"
    )
    _require(
        isinstance(last, DoneEvent), f"the worker failed: {last.reason if isinstance(last, FailedEvent) else last}"
    )
    _require(isinstance(last, DoneEvent) and last.outcome in ("accepted", "quarantined"), "an odd outcome")


def _many_rows() -> tuple[bytes, ...]:
    rows = [{"prompt": f"florp {n} {SECRET}", "response": f"take {n} zims and {SECRET}"} for n in range(60)]
    table = "prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return lines, json.dumps(rows).encode(), table.encode(), inputs.gzipped(lines), *inputs.parquets()[:1]


_PROBE_LINES: Final = (
    b'\xef\xbb\xbf{"prompt": "quibble frotz zim 1?", "response": "zim", "category": "flim"}\n'
    b'{"messages": [{"role": "system", "content": "be grot"}, {"role": "user", "content": "quibble frotz zim 2"}]}\n',
)
_SETTINGS: Final = (
    b'preset = "alignd"\nseed = 3\n[model]\nbase = "models/base"\ndevice = "cuda:0"\n[inbox]\npath = "inbox"\nsettle_s = 0.5\n'
    b'min_rows = 40\n[derive.safety]\nobjective = "npo"\nstop_loss = 3.5\n[merge.search]\nalphas = [1.0, 0.5]\ntrials = 6\n'
    b'[judge]\nrefusals = ["no", "never"]\n[gates.harm]\nclass = "required"\nmax = 0.1\n'
    b'[schedule]\ntraining_window = "* 3 * * *"\n',
    b'preset = "safepatching"\ngates = {drift = {max = 1.0, min_samples = 3}}\nprobes.harm = "p/h.jsonl"\n'
    b"derive.retain = {path = 'r.jsonl'}\n",
)  # fmt: skip
_PLAN_SEEDS: Final = tuple(
    json.dumps(plan).encode()
    for plan in (
        [["file", "a.jsonl", inputs.json_lines()[0].decode()], ["file", "sub/b.csv", inputs.tables(",")[0].decode()]],
        [["outside", "x.jsonl", ""], ["file", "a.jsonl", inputs.json_lines()[0].decode()]],
        [["link", "x.jsonl", "../outside.jsonl"]],
        [["link", "sub", ".."], ["pipe", "p", ""]],
        [["file", "a\x1b[31m\n.jsonl", ""], ["file", "b\udcff.jsonl", inputs.json_lines()[0].decode()]],
        [["file", "README.md", ""], ["file", "LICENSE", ""]],
        [["file", "d/" * 12 + "x.jsonl", "{}"]],
    )
)
_name = st.one_of(
    inputs.odd_text, st.sampled_from(["a.jsonl", "sub/b.csv", "..", "../outside.jsonl", "README.md", "d/" * 9 + "x"])
)
_plan = st.lists(
    st.tuples(
        st.sampled_from(["file", "file", "folder", "link", "outside", "pipe"]),
        _name,
        st.sampled_from(["", "../outside.jsonl", "/etc/hostname", "/", inputs.json_lines()[0].decode()])
        | inputs.odd_text,
    ),
    max_size=5,
).map(inputs.dumped)
_toml_value = st.one_of(
    st.text(max_size=9).map(json.dumps),
    st.sampled_from(["nan", "inf", "-inf", "-1", "9" * 40, "9" * 5000, "1e400", "[]", "{}", "[[[]]]", "1979-05-27", '"\\u0000"',
                     '"a\\u0000b"', "true", '"' + "x" * 5000 + '"', '"../.."', '"/"', '"/etc/hostname"', '""', "[" * 3000]),
)  # fmt: skip
_toml_key = st.sampled_from(
    ["seed", "preset", "model.base", "model.device", "inbox.path", "inbox.settle_s", "inbox.max_rows", "probes.harm",
     "probes.utility", "derive.retain.path", "gates.harm.max", "gates.drift.min", "merge.search.alphas", "merge.search.trials",
     "merge.search.betas", "schedule.verify", "schedule.training_window", "derive.safety.stop_loss", "judge.refusals",
     '"\\u001b[31m"', "gates", "a.b", "derive.safety.npo_beta", "schedule.retry_s", "derive.sparse_fraction"]
)  # fmt: skip
_toml = (
    st.lists(st.builds("{} = {}".format, _toml_key, _toml_value), max_size=4)
    .map("\n".join)
    .map(lambda text: text.encode("utf-8", "surrogatepass"))
)
_audit_line = st.fixed_dictionaries(
    {"seq": inputs.odd_scalar, "at": inputs.odd_scalar, "actor": inputs.odd_scalar, "action": inputs.odd_scalar,
     "subject": inputs.odd_scalar, "details": inputs.odd_value, "prev": inputs.odd_scalar, "hash": inputs.odd_scalar}
)  # fmt: skip
_manifest_entry = st.fixed_dictionaries(
    {"name": st.just("a.jsonl") | inputs.odd_value, "size": st.just(3) | inputs.odd_value, "sha256": inputs.odd_value}
)
_BATCH: Final = (BatchError,)
_MODEL: Final = (ModelFormatError,)
_CORRUPT: Final = (StoreCorruptError,)


def _rows_reader(name: str, seeds: Callable[[], Sequence[bytes]], **kwargs: Any) -> Reader:
    return Reader(name, read_rows, _BATCH, seeds, place="drop", **kwargs)


def _model_reader(name: str, change: Mutation = mutate, scratch: st.SearchStrategy[bytes] = inputs.odd_json) -> Reader:
    return Reader(
        name,
        model_file(name),
        _MODEL,
        lambda: (_model_files()[name],),
        place="{folder}",
        mutate=change,
        scratch=scratch,
    )


_READERS: Final = (
    _rows_reader("json", inputs.json_documents, scratch=inputs.odd_json),
    _rows_reader("json lines", inputs.json_lines, scratch=inputs.odd_json_lines),
    _rows_reader("csv", lambda: inputs.tables(","), scratch=inputs.odd_cells.map(lambda rows: inputs.joined(rows, ","))),
    _rows_reader("tsv", lambda: inputs.tables("\t"), scratch=inputs.odd_cells.map(lambda rows: inputs.joined(rows, "\t"))),
    _rows_reader("parquet", inputs.parquets, scratch=st.binary(max_size=99).map(lambda data: b"PAR1" + data + b"PAR1")),
    _rows_reader(
        "gzip",
        lambda: tuple(map(inputs.gzipped, inputs.json_lines())),
        mutate=repacked(inputs.gzipped, gzip.decompress),
        scratch=inputs.odd_json_lines.map(inputs.gzipped),
    ),
    _rows_reader(
        "zstd",
        lambda: tuple(map(inputs.zstd, inputs.json_lines())),
        mutate=repacked(inputs.zstd, inputs.unzstd),
        scratch=inputs.odd_json_lines.map(inputs.zstd),
    ),
    Reader("folder", read_tree, _BATCH, lambda: _PLAN_SEEDS, scratch=_plan),
    Reader("worker", read_by_worker, (), _many_rows, scratch=inputs.odd_json_lines),
    Reader("manifest", read_manifest, (), lambda: (_MANIFEST,), scratch=st.lists(_manifest_entry, max_size=3).map(inputs.dumped)),
    Reader("worker event", read_event, (), lambda: (b'{"event": "done", "outcome": "accepted", "result": {"a": [1]}}\n',
           b'{"event": "step", "step": "parse", "result": {"a": {}}}'), scratch=inputs.odd_json),
    Reader("probes", read_probes, (config.ConfigError,), lambda: _PROBE_LINES, "{folder}/probes.jsonl",
           scratch=inputs.odd_json_lines),
    Reader("settings", read_settings, (config.ConfigError,), lambda: _SETTINGS, "{folder}", scratch=_toml),
    Reader("safetensors", read_safetensors, _MODEL, lambda: (_model_files()["model.safetensors"],), "m.safetensors",
           mutate_header, inputs.odd_safetensors),
    _model_reader("model.safetensors", mutate_header, inputs.odd_safetensors),
    _model_reader("config.json"),
    _model_reader("tokenizer_config.json"),
    _model_reader("tokenizer.json"),
    _model_reader("model.safetensors.index.json"),
    Reader("overlay", read_overlay, _CORRUPT, lambda: tuple(map(_gap_file, ("overlay", "packed overlay"))),
           "overlay.safetensors", mutate_header,
           inputs.odd_safetensors),
    Reader("patch file", read_patch, _CORRUPT, lambda: tuple(map(_gap_file, ("patch", "patch with kinds"))),
           "f00d.safetensors", mutate_header, inputs.odd_safetensors),
    Reader("gap stream", read_gaps, (ValueError,), lambda: (gaps.encode(np.array([0, 3, 255, 700, 99_999])).tobytes(),)),
    Reader("audit", read_audit, _CORRUPT, lambda: (_store()[1],), "audit.jsonl, line",
           scratch=st.lists(_audit_line.map(inputs.dumped), max_size=3).map(b"\n".join)),
)  # fmt: skip
READERS: Final = {reader.name: reader for reader in _READERS}


def spoiled(reader: Reader, number: int) -> bytes:
    """A valid file of the reader, spoilt in the way that this number stands for."""
    draw = random.Random(number)
    seeds = reader.seeds()
    return reader.mutate(draw, draw.choice(seeds), seeds)
