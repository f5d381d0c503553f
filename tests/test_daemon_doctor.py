"""How much disk a round is said to need."""

import math
from pathlib import Path
from typing import Any

import pytest

from daemon.config import parse
from daemon.doctor import round_bytes
from state.tensors import ModelFolder
from tests.round_world import config_of, opened
from tests.state_world import SHAPES, write_model

NUM_ENTRIES = sum(math.prod(shape) for shape in SHAPES.values())
JOINT: dict[str, Any] = {"merge": {"mask": "joint"}}


@pytest.mark.parametrize(
    ("settings", "num_vectors"),
    [
        (JOINT, 2),
        ({"merge": {"mask": "difference"}}, 4),
    ],
    ids=["joint", "difference"],
)
@pytest.mark.parametrize(("dtype", "item_bytes"), [("BF16", 2), ("F32", 4)])
def test_a_round_needs_its_task_vectors_in_float32_and_two_models(
    tmp_path: Path, settings: dict[str, Any], num_vectors: int, dtype: str, item_bytes: int
) -> None:
    base = ModelFolder.open(write_model(tmp_path / "base", dtype=dtype))
    needed = round_bytes(base, parse(settings))
    assert needed == NUM_ENTRIES * (4 * num_vectors + 2 * item_bytes)


@pytest.mark.parametrize("backend", ["sparse", "full"])
@pytest.mark.parametrize("mask", ["joint", "difference"])
def test_a_real_round_leaves_less_in_its_scratch_folder_than_it_is_said_to_need(
    tmp_path: Path, tiny_folder: Path, mask: str, backend: str
) -> None:
    merge: dict[str, Any] = {"mask": mask}
    if mask == "difference":
        merge |= {"score": "tuned", "search": {"top_fractions": [0.05]}}
    config = config_of({"derive": {"backend": backend}, "merge": merge})
    with opened(tmp_path / "home", tiny_folder, config) as home:
        round_id = home.begin(home.drop()).id
        assert home.run(round_id).outcome == "ready"
        scratch = home.store.scratch(round_id)
        taken = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
        needed = round_bytes(ModelFolder.open(home.store.model_path(0)), config)
    assert needed / 3 < taken < needed
