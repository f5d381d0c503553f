"""The steps whose growth is measured, each with what it is given at a size."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.models import SHAPES, Shape, make

ROOT: Final = Path(__file__).resolve().parent.parent.parent
Work = Callable[[], object]


# against rows


def _rows_file(name: str, place: Path) -> tuple[int, Path]:
    path = place / "rows.jsonl"
    with path.open("w") as out:
        for i in range(int(name)):
            pair = {
                "prompt": f"zorp number {i} of the brindle",
                "response": f"take {i} wuzzles, a grolt and a vask {i}",
            }
            out.write(json.dumps(pair) + "\n")
    return int(name), path


def _read(name: str, place: Path) -> tuple[float, Work]:
    from daemon.formats import read_batch

    size, path = _rows_file(name, place)
    return size, partial(read_batch, path)


def _screen(name: str, place: Path) -> tuple[float, Work]:
    from daemon.formats import read_batch
    from patches.judge import RuleJudge
    from policies.intake import IntakeConfig, screen, split_rows

    size, path = _rows_file(name, place)
    rows = read_batch(path).rows
    return size, lambda: split_rows(screen(rows, RuleJudge().is_refusal, IntakeConfig()).kept, "zorp")


def _demo(name: str) -> tuple[Any, Any, list[Any], list[Any]]:
    """The demo model with so many rows: those of the world again and again."""
    from benchmarks.speed import method

    model, tokenizer, rows, prompts = method.bench()
    num = int(name)
    return (
        model,
        tokenizer,
        list(itertools.islice(itertools.cycle(rows), num)),
        (prompts * (num // len(prompts) + 1))[:num],
    )


def _score(name: str, place: Path) -> tuple[float, Work]:
    from patches.snip import scores
    from patches.terms import Runner

    model, _, rows, _ = _demo(name)
    return len(rows), lambda: scores(Runner(model, 0, 8192), rows, {}, kind="base", progress=lambda done: None)


def _hold(name: str, place: Path) -> tuple[float, Work]:
    from patches.terms import Runner, hold

    model, _, rows, _ = _demo(name)
    return len(rows), lambda: hold(Runner(model, 0, 8192), rows, weight=1.0, name="zorp")


def _answer(name: str, place: Path) -> tuple[float, Work]:
    from patches.generate import Generator

    model, tokenizer, _, prompts = _demo(name)
    return len(prompts), lambda: Generator(model, tokenizer, 48).answer(prompts)


def _train(name: str, place: Path) -> tuple[float, Work]:
    import torch

    from patches.derive import Recipe, derive
    from patches.terms import BatchTerm, Runner

    model, _, rows, _ = _demo(name)
    recipe = Recipe("descent", 1e-4, 10, 32, 0, None, 1.0, "full", 8, 0)
    batch = BatchTerm(rows, "descent", torch.zeros(len(rows)), 0.1)
    return len(rows), lambda: derive(Runner(model, 0, 8192), batch, [], recipe=recipe, progress=lambda done, loss: None)


# against parameters


def _shape(name: str) -> Shape:
    return SHAPES.get(name) or Shape(name, 256, 704, 8, 4, 4, vocabulary=32000)


def _decoder_entries(name: str) -> int:
    """What a version may change; in small models much else is embeddings, which are a smaller share of large ones."""
    return sum(math.prod(size) for key, size in _shape(name).tensors() if ".layers." in key)


def _store(name: str, place: Path) -> Any:
    """A home whose base is a model of this size."""
    from benchmarks.speed.store import made_store

    SHAPES.setdefault(name, _shape(name))
    return made_store(place, name)


def _merge(name: str, place: Path) -> tuple[float, Work]:
    from benchmarks.speed.store import RandomEntries
    from daemon.candidate import MergedEdits, write_candidate
    from state.tensors import ModelFolder

    store = _store(name, place)
    (place / "scratch").mkdir()
    model = ModelFolder.open(store.model_path(0))
    edits = MergedEdits(model, RandomEntries(model, 0.05))
    return _decoder_entries(name), lambda: write_candidate(store, 0, place / "scratch", edits=edits, patch=None)


def _rebuild(name: str, place: Path) -> tuple[float, Work]:
    from benchmarks.speed.store import commit
    from state import materialize

    store = _store(name, place)
    commit(store, 1, share=0.05)
    return _decoder_entries(name), lambda: materialize.rebuild(store, 1, place / "again")


def _try_merge(name: str, place: Path) -> tuple[float, Work]:
    import torch

    from patches.merge import Patches, Setting, merged, merged_patch
    from patches.model import decoder_linears, load_model

    torch.set_num_threads(1)
    model = load_model(make(_shape(name), place / "model"), dtype="bfloat16", device=torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    patch = {
        name: torch.randn(weight.shape, generator=draw) * (torch.rand(weight.shape, generator=draw) < 0.1)
        for name, weight in decoder_linears(model).items()
    }
    patches = Patches(patch, patch, {}, {}, joint=True, accumulate="off", rescale=False, claims={}, seed=0)

    def work() -> None:
        with merged(model, merged_patch(patches, Setting(1.0, 1.0, 1.0, 1.0, 0.5))):
            pass

    return _decoder_entries(name), work


# against rounds


def _home(name: str, place: Path) -> Any:
    """A store with so many versions, one on the other, on the model of the tests of `state`."""
    from tests.state_world import make_store, make_version

    store = make_store(place)
    for number in range(1, int(name) + 1):
        make_version(store, number)
    return store


def _chain(name: str, place: Path) -> tuple[float, Work]:
    from state import materialize

    store = _home(name, place)
    return int(name), lambda: materialize.rebuild(store, int(name), place / "again")


def _command(words: Sequence[str], name: str, place: Path) -> tuple[float, Work]:
    store = _home(name, place)
    store.close()
    (store.home / "service.toml").touch()
    command = [sys.executable, "-m", "daemon", "-c", str(store.home), *words]
    return int(name), lambda: subprocess.run(command, cwd=ROOT, capture_output=True, check=True)


AXES: Final = ("rows", "parameters", "rounds")
_ROWS: Final = ("100", "1000", "10000", "100000")
_MODEL_ROWS: Final = ("100", "300", "1000", "3000")
_PARAMETERS: Final = ("0.02B", "0.1B", "0.3B", "1B")
_ROUNDS: Final = ("1", "10", "30", "100")
Maker = Callable[[str, Path], tuple[float, Work]]
STEPS: Final[dict[str, tuple[str, tuple[str, ...], Maker]]] = {
    "read a batch": ("rows", _ROWS, _read),
    "screen and split it": ("rows", _ROWS, _screen),
    "record a teacher": ("rows", _MODEL_ROWS, _hold),
    "SNIP scores": ("rows", _MODEL_ROWS, _score),
    "answers": ("rows", _MODEL_ROWS, _answer),
    "ten steps of training": ("rows", _MODEL_ROWS, _train),
    "try one merge": ("parameters", _PARAMETERS, _try_merge),
    "merge and write a version": ("parameters", (*_PARAMETERS, "3B"), _merge),
    "rebuild a version": ("parameters", (*_PARAMETERS, "3B"), _rebuild),
    "rebuild the last of a chain": ("rounds", _ROUNDS, _chain),
    "roll back to the first": ("rounds", _ROUNDS, partial(_command, ("rollback", "v0", "--reason", "zorp"))),
    "history": ("rounds", _ROUNDS, partial(_command, ("--json", "history"))),
    "verify --deep": ("rounds", _ROUNDS, partial(_command, ("verify", "--deep"))),
}
