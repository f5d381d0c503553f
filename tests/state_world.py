"""A tiny model and store for the tests of `state`, without torch."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from state import materialize, overlay
from state.core import HELD
from state.digests import Digests
from state.overlay import Edit
from state.rows import ControlRow, VersionRow
from state.scratch import private_folder
from state.store import Store
from state.tensors import ModelFolder, from_float32

NOW = "2026-01-02T03:04:05Z"
SHAPES = {"embed.weight": (40, 8), "layer.0.weight": (16, 8), "layer.1.weight": (16, 8), "norm.weight": (8,)}
SHARDS = {
    "model-00001-of-00002.safetensors": ["embed.weight", "norm.weight"],
    "model-00002-of-00002.safetensors": ["layer.0.weight", "layer.1.weight"],
}
PAPERS = {"README.md", "bom.cdx.json"}
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


def write_shard(path: Path, tensors: dict[str, NDArray[Any]], dtype: str) -> None:
    """A safetensors file of raw entries with the given dtype name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, raw in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(raw.shape), "data_offsets": [end, end + raw.nbytes]}
        end += raw.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw.tobytes() for raw in tensors.values()))


def write_model(folder: Path, *, dtype: str = "BF16", seed: int = 0) -> Path:
    """A model folder of two shards with index, config and tokenizer."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    raw = {name: from_float32(value.reshape(-1), dtype).reshape(value.shape) for name, value in values.items()}
    for shard, names in SHARDS.items():
        write_shard(folder / shard, {name: raw[name] for name in names}, dtype)
    weight_map = {name: shard for shard, names in SHARDS.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    words = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": words}))
    return folder


def make_store(tmp_path: Path) -> Store:
    """A new store in `tmp_path/home` on a model in `tmp_path/base`."""
    if not (tmp_path / "base").exists():
        write_model(tmp_path / "base")
    return Store.create(tmp_path / "home", tmp_path / "base", actor="tester", now=NOW)


def folder_digests(folder: ModelFolder) -> Digests:
    """The digests of a model folder as it is now, taken in the plainest way."""
    return _digests(folder, lambda data: f"blake3:{blake3(data).hexdigest()}")


def old_digests(folder: ModelFolder) -> Digests:
    """Those that the first stores have."""
    return _digests(folder, lambda data: hashlib.sha256(data).hexdigest())


def mixed_digests(folder: ModelFolder) -> Digests:
    """Those that stores of a day had: SHA-256 of files, BLAKE3 of tensors."""
    return Digests(old_digests(folder).files, folder_digests(folder).tensors)


def _digests(folder: ModelFolder, of: Callable[[bytes], str]) -> Digests:
    files = {name: of(path.read_bytes()) for name, path in folder.files.items()}
    return Digests(files, {name: of(folder.read_raw(name).tobytes()) for name in folder.tensors})


def rebuilt(store: Store, number: int) -> Path:
    """A version's model folder, rebuilt if it was collected, as `promote` does it before it switches."""
    with store._changing("rebuild"):
        return store._materialize(number)


def hold(store: Store, reason: str) -> None:
    """Hold the store, as a rollback does, with the current version left as it is."""
    with store._changing("hold"), store._transaction("held", "store", actor="tester", now=NOW):
        store.ledger.save(ControlRow(HELD, reason, "tester", NOW))


def some_edits(folder: ModelFolder, seed: int, names: tuple[str, ...] = ("layer.0.weight",)) -> dict[str, Edit]:
    """Random new values for a few entries of the named tensors."""
    rng = np.random.default_rng(seed)
    edits = {}
    for name in names:
        raw = np.array(folder.read_raw(name))
        indices = np.sort(rng.choice(len(raw), 7, replace=False)).astype(np.int64)
        edits[name] = Edit(indices, raw[indices] ^ raw.dtype.type(1))
    return edits


def drop(store: Store, text: str, name: str) -> Path:
    """A file in the spool, as the inbox puts it there."""
    source = store.spool / f"{name}.drop"
    source.write_text(text)
    return source


def begin(store: Store, seed: int) -> str:
    """Claim a new batch and begin its round; gives the round's id."""
    name = f"batch{seed}.jsonl"
    claim = store.claim_batch(drop(store, f"zorp {seed}\n", name), name=name, actor="tester", now=NOW)
    return store.begin_round(claim.batch.sha256, config={"seed": seed}, now=NOW).id


def prepare(store: Store, round_id: str, seed: int, names: tuple[str, ...] = ("layer.0.weight",)) -> dict[str, Any]:
    """Build a candidate in the round's scratch folder; gives the arguments of `commit_version`."""
    parent = store.round(round_id).parent
    scratch = store.scratch(round_id)
    scratch.mkdir(exist_ok=True)
    record = store.version_record(parent)
    folder = ModelFolder.open(rebuilt(store, parent))
    edits = some_edits(folder, seed, names)
    overlay.write(scratch / "overlay.safetensors", edits, {})
    digests = materialize.build_folder(folder, edits, scratch / "model", known=Digests.of_record(record), link=True)
    touched = {"num_entries": 7 * len(names), "fraction": 0.02, "per_tensor": dict.fromkeys(names, 7)}
    return {
        "staging_model": scratch / "model",
        "overlay": scratch / "overlay.safetensors",
        "record": {
            **digests.to_record(),
            "touched": touched,
            "metrics": {"harm_rate": 0.1},
        },
    }


def take_in(store: Store, seed: int) -> VersionRow:
    """A version that another home made, built here as an import builds it; safe to repeat."""
    with private_folder(store.home, "import") as scratch:
        base, known = ModelFolder.open(store.model_path(0)), store.version_record(0)
        edits = some_edits(base, seed)
        overlay.write(scratch / "overlay.safetensors", edits, {"parent": "v0"})
        digests = materialize.build_folder(base, edits, scratch / "model", known=Digests.of_record(known), link=True)
        record = {
            **digests.to_record(),
            "touched": {"num_entries": 7, "fraction": 0.02, "per_tensor": {"layer.0.weight": 7}},
            "metrics": {},
            "imported": {"path": "/there", "id": "v5", "overlay": "0" * 64},
        }
        return store.import_version(
            scratch / "model", overlay=scratch / "overlay.safetensors", record=record, actor="tester", now=NOW
        )


def make_version(store: Store, seed: int, state: Any = "published", **kwargs: Any) -> VersionRow:
    """The whole way of one batch."""
    round_id = begin(store, seed)
    return store.commit_version(round_id, **prepare(store, round_id, seed, **kwargs), state=state, now=NOW)


def learn(store: Store, seed: int) -> VersionRow:
    """A published version of one more batch, whose record tells its lineage."""
    round_id = begin(store, seed)
    known = store.version_record(store.current().id).get("lineage") or {"patches": [], "batches": []}
    batch = store.round(round_id).batch
    lineage = known | {"patches": [*known["patches"], f"p{seed}"], "batches": [*known["batches"], batch]}
    return commit_lineage(store, round_id, seed, lineage)


def consolidate(store: Store, seed: int = 90) -> VersionRow:
    """A published version that stands for all batches learnt together."""
    asked = store.request_consolidation(reason="enough", actor="tester", now=NOW)
    store.begin_queued(asked.id, config={}, now=NOW)
    batches = store.version_record(store.current().id)["lineage"]["batches"]
    return commit_lineage(
        store, asked.id, seed, {"patches": [f"p{seed}"], "batches": batches, "num_together": len(batches)}
    )


def commit_lineage(store: Store, round_id: str, seed: int, lineage: dict[str, Any]) -> VersionRow:
    """The candidate of a running round, published, with a lineage in its record."""
    made = prepare(store, round_id, seed)
    made["record"] |= {"lineage": lineage, "kind": store.round(round_id).kind}
    return store.commit_version(round_id, **made, state="published", now=NOW)


def content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files under a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def without_papers(folder: Path) -> dict[str, bytes]:
    """Likewise of an exported folder, but for what `export` writes beside the version's own files."""
    return {name: data for name, data in content(folder).items() if name not in PAPERS}
