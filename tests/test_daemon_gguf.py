"""GGUF through a converter: found, called, its failure told; the real one where ALIGND_TEST_CONVERTER names it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from daemon import cli, exitcodes, gguf
from patches.agreement import agreement, next_logits
from patches.model import load_model
from state.store import Store
from tests import gguf_model
from tests.command_world import Alignd, usable_base
from tests.state_world import content, make_version
from tests.version_world import changed_version, noise

STAND_IN = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype")
args = parser.parse_args()
names = sorted(path.name for path in args.model.iterdir())
args.outfile.write_text(f"GGUF {args.outtype} {names}")
"""
REAL = os.environ.get("ALIGND_TEST_CONVERTER", "")


@pytest.fixture
def alignd(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Alignd:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    usable_base(tmp_path / "base")
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(tmp_path / "base")]) == 0
    with Store.open(tmp_path / "home") as store:
        make_version(store, 1)
    return Alignd(tmp_path / "home", capsys)


def _converter(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("is_named", [True, False])
def test_the_converter_gets_the_version_and_its_file_is_in_the_folder(
    alignd: Alignd, tmp_path: Path, *, is_named: bool
) -> None:
    converter = _converter(tmp_path / "bin/convert_hf_to_gguf.py", STAND_IN)
    words = ["--converter", str(converter)] if is_named else []
    told = alignd.json("export", "v1", str(tmp_path / "out"), "--to", "gguf", "--outtype", "q8_0", *words)
    assert (told["file"], told["converter"]) == ("base-v1.gguf", str(converter))
    names = sorted(content(alignd.home / "models/v1"))
    assert content(tmp_path / "out")["base-v1.gguf"].decode() == f"GGUF q8_0 {names}"
    assert {"README.md", "bom.cdx.json"} < content(tmp_path / "out").keys()


@pytest.mark.parametrize("words", [(), ("--converter", "/nowhere/convert.py")])
def test_without_a_converter_it_says_what_to_get(alignd: Alignd, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, _, err = alignd("export", "v1", str(tmp_path / "out"), "--to", "gguf", *words)
    assert code == exitcodes.FAILED
    assert "git clone https://github.com/ggml-org/llama.cpp" in err and "--converter" in err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import sys; print('model zorp is not known'); sys.exit(3)", "ended with 3: model zorp is not known"),
        ("import no_such_module", "pip install gguf sentencepiece"),
        ("pass", "it said nothing"),
    ],
)
def test_a_converter_that_fails_is_quoted_and_leaves_nothing(
    alignd: Alignd, tmp_path: Path, text: str, what: str
) -> None:
    converter = _converter(tmp_path / "convert.py", text)
    code, _, err = alignd("export", "v1", str(tmp_path / "out"), "--to", "gguf", "--converter", str(converter))
    assert code == exitcodes.FAILED and what in err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))


@pytest.fixture
def real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[Alignd, Store]]:
    if not REAL:
        pytest.skip("ALIGND_TEST_CONVERTER names no convert_hf_to_gguf.py")
    assert (
        cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(gguf_model.save(tmp_path / "base"))])
        == 0
    )
    with Store.open(tmp_path / "home") as store:
        name = "model.layers.0.self_attn.q_proj.weight"
        changed_version(store, 1, {name: noise(store.model_path(0), name, scale=0.2)})
        yield Alignd(tmp_path / "home", capsys), store


def test_the_real_converter_takes_the_version(real: tuple[Alignd, Store], tmp_path: Path) -> None:
    alignd, store = real
    told = alignd.json("export", "v1", str(tmp_path / "out"), "--to", "gguf", "--converter", REAL)
    assert (tmp_path / "out" / told["file"]).read_bytes()[:4] == b"GGUF"
    assert Path(told["converter"]) == gguf.find_converter(REAL)
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    engine = llama_cpp.Llama(str(tmp_path / "out" / told["file"]), n_ctx=64, logits_all=True, verbose=False)
    text = gguf_model.build_tokenizer()("wuzzle zi wuzzle")["input_ids"]
    assert engine.tokenize(b"wuzzle zi wuzzle", add_bos=False) == text
    engine.eval(text)
    got = torch.from_numpy(np.array(engine.scores[: len(text)], np.float32))
    cpu = torch.device("cpu")
    found = {
        number: agreement(
            next_logits(load_model(store.model_path(number), dtype="float32", device=cpu), [text], cpu), got
        )
        for number in (0, 1)
    }
    assert found[1].max_abs_logit_difference < 0.05 and found[1].mean_kl < 1e-4
    assert found[0].mean_kl > 100 * found[1].mean_kl
