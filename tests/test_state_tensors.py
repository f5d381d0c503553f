"""Which model folders are taken, and what their bytes mean."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from state.errors import ModelFormatError
from state.header import read_header, read_metadata
from state.tensors import ModelFolder, check_finite, from_float32, to_float32
from tests.state_world import SHAPES, SHARDS, write_model, write_shard

FIRST, SECOND = SHARDS
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def test_a_folder_of_two_shards_is_read_in_order(tmp_path: Path) -> None:
    folder = ModelFolder.open(write_model(tmp_path / "m"))
    assert folder.shards == [FIRST, SECOND]
    assert {name: info.shape for name, info in folder.tensors.items()} == SHAPES
    assert "tokenizer.json" in folder.files and folder.read_raw("norm.weight").shape == (8,)


def test_raw_entries_are_what_safetensors_reads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = ModelFolder.open(write_model(tmp_path / "m"))
    for shard in folder.shards:
        for name, tensor in load_file(tmp_path / "m" / shard).items():
            raw = tensor.view(torch.uint16).numpy().reshape(-1)
            assert np.array_equal(folder.read_raw(name), raw)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_is_rounded_as_torch_does(dtype: str) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    edges = np.array([0.0, -0.0, 3.4e38, -3.4e38, 1e-45, 65504, 65519.99, 65520, np.inf, -np.inf], np.float32)
    values = np.concatenate([bits.view(np.float32), ties.view(np.float32), edges])
    expected = torch.from_numpy(values.copy()).to(DTYPES[dtype])
    unsigned = expected.view(torch.uint32 if dtype == "F32" else torch.uint16).numpy()
    is_number = ~np.isnan(values)
    got = from_float32(values, dtype)
    assert got.dtype == unsigned.dtype and np.array_equal(got[is_number], unsigned[is_number])
    assert bool(np.isnan(to_float32(got[~is_number], dtype)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_raw_number_comes_back_from_float32(dtype: str) -> None:
    raw: NDArray[Any] = np.arange(2**16, dtype=np.uint32 if dtype == "F32" else np.uint16)
    values = to_float32(raw, dtype)
    is_number = ~np.isnan(values)
    assert np.array_equal(from_float32(values, dtype)[is_number], raw[is_number])


def test_other_dtypes_are_no_floats_to_patch() -> None:
    with pytest.raises(ValueError, match="I64"):
        to_float32(np.zeros(1, np.uint64), "I64")


def add(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut(folder: Path) -> None:
    path = folder / FIRST
    path.write_bytes(path.read_bytes()[:-1])


def set_header(value: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        text = json.dumps(value).encode()
        (folder / FIRST).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)

    return write


def entry(start: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (add("config.json", '{"auto_map": {"AutoModel": "x.Y"}}'), "config.json: wants remote code"),
        (add("tokenizer_config.json", '{"auto_map": {}}'), "tokenizer_config.json: wants remote code"),
        (add("config.json", "{"), "config.json: is no JSON"),
        (add("pytorch_model.bin", "x"), "pytorch_model.bin; only safetensors"),
        (add("optimizer.pt", "x"), "optimizer.pt"),
        (add("consolidated.safetensors", "x"), "disagree about consolidated.safetensors"),
        (lambda folder: (folder / SECOND).unlink(), f"disagree about {SECOND}"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "without model.safetensors.index.json"),
        (lambda folder: (folder / "link").symlink_to(folder / "config.json"), "link: is a symbolic link"),
        (cut, "bytes long, its header speaks of"),
        (add(FIRST, "short"), "no safetensors file"),
        (set_header([]), "header is no object"),
        (set_header({"norm.weight": entry(0, 8, [4])}), "8 bytes do not fit U8"),
        (set_header({"norm.weight": entry(4, 8, [4])}), "expected"),
        (set_header({"norm.weight": entry(0, 4, [4]), "embed.weight": entry(2, 8, [6])}), "embed.weight starts at"),
        (set_header({"norm.weight": entry(0, 8, [-8])}), "natural number"),
        (set_header({"norm.weight": entry(0, 8, [8], "F99")}), "norm.weight"),
        (set_header({"norm.weight": entry(0, 8, [8, 2**63])}), "natural number"),
        (set_header({"norm.weight": entry(0, 8, [1] * 65)}), "a shape of 65 dimensions"),
        (set_header({"a\x1b[31m\n": entry(0, 8, [4])}), "tensor a\\x1b[31m\\n: 8 bytes do not fit"),
        (set_header({"a\ud800": entry(0, 8, [4])}), "tensor a\\ud800: "),
        (set_header({"a" * 9000: entry(0, 8, [4])}), "tensor aaa"),
        (add("config.json", "[" * 100_000), "config.json: is no JSON"),
        (add("model.safetensors.index.json", '{"weight_map": {"a": "x\\u001b[2J"}}'), "disagree about "),
        (set_header({"other": entry(0, 8, [8])}), "other does not belong here"),
        (set_header({"norm.weight": entry(0, 8, [8])}), "embed.weight is in no shard"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, spoil: Callable[[Path], object], what: str) -> None:
    folder = write_model(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ModelFormatError) as caught:
        ModelFolder.open(folder)
    assert what in str(caught.value) and str(folder) in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2500


def test_a_header_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / FIRST).write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ModelFormatError, match="cut short"):
        ModelFolder.open(folder)


def test_links_of_a_cache_are_followed_at_import_only(tmp_path: Path) -> None:
    real = write_model(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert ModelFolder.open(snapshot, follow_links=True).tensors == ModelFolder.open(real).tensors


@pytest.mark.parametrize(("dtype", "bad"), [("BF16", np.nan), ("F16", np.inf), ("F32", -np.inf)])
def test_a_number_that_is_not_finite_is_named_by_tensor(tmp_path: Path, dtype: str, bad: float) -> None:
    folder = write_model(tmp_path / "m", dtype=dtype)
    check_finite(ModelFolder.open(folder))
    values = np.ones(256, np.float32)
    values[200] = bad
    names = {"layer.0.weight": np.ones(2, np.float32), "layer.1.weight": values}
    write_shard(folder / SECOND, {name: from_float32(v, dtype) for name, v in names.items()}, dtype)
    with pytest.raises(ModelFormatError, match=r"layer\.1\.weight holds NaN or infinity"):
        check_finite(ModelFolder.open(folder))


def test_a_header_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    text = b'{"a":' * 100_000
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ModelFormatError, match="header is no JSON"):
        read_header(tmp_path / "m", "m")


def test_metadata_of_other_things_than_texts_is_refused(tmp_path: Path) -> None:
    text = b'{"__metadata__": {"a": 1}}'
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ModelFormatError, match="object of texts"):
        read_metadata(tmp_path / "m")


def test_a_config_that_is_too_big_to_be_one_is_refused_unread(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    with (folder / "config.json").open("ab") as file:
        file.truncate(10 << 40)  # of holes
    with pytest.raises(ModelFormatError, match=r"config\.json: is longer than"):
        ModelFolder.open(folder)
