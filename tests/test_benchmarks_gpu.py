"""What is measured on a GPU, done on the CPU with a tiny model: that it runs, and that what it counts is right."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.speed import flops
from benchmarks.speed.gpu_plan import TINY, Bench, full_plan
from benchmarks.speed.gpu_round import OutOfTimeError, Steps, whole_round
from benchmarks.speed.models import SHAPES, Shape
from daemon.config import Config
from daemon.steps import STEPS
from daemon.workbench import MICRO_BATCH_TOKENS
from patches.chat import Encoded
from tests.tiny_model import assert_same, snapshot

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    """The tiny one."""
    return Bench.open(TINY, CPU)


def test_the_command_measures_every_part_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--out", str(out)]) == 0
    kept = json.loads(out.read_text())
    assert kept.keys() == gpu.PARTS.keys()
    rates = [kept[backend][patch]["tokens_per_s"] for backend in gpu.BACKENDS for patch in gpu.OBJECTIVES]
    assert all(rate > 0 for rate in [*rates, kept["snip"]["tokens_per_s"], kept["evaluation"]["prompts_per_s"]])
    assert kept["merging"]["merges_per_s"] > 0 and kept["merging"]["merge_and_write_s"] > 0
    assert kept["round"]["is_complete"] and kept["round"]["writes_a_version"]
    assert {part["about"]["card"] for part in kept.values()} == {"CPU"}
    assert not (tmp_path / "work").exists()
    assert "budgets hold" not in capsys.readouterr().out  # goals are for cards: a tiny model's figures say nothing


def test_a_part_that_is_measured_again_leaves_others_of_its_kind_and_drops_what_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    out = tmp_path / "gpu.json"
    about = gpu._about(bench, None)
    old = {"snip": {"tokens_per_s": 1, "about": about}, "lora": {"about": about | {"at": "earlier"}}}
    old |= {"full": {"about": about | {"card": "zim"}}, "sparse": {"about": about | {"plan": {}}}}
    out.write_text(json.dumps(old))
    assert gpu.main(["--device", "cpu", "--out", str(out), "--part", "snip", "--commit", "abc1234"]) == 0
    kept = json.loads(out.read_text())
    assert kept.keys() == {"snip", "lora"} and kept["lora"]["about"]["at"] == "earlier"
    assert kept["snip"]["tokens_per_s"] != 1 and kept["snip"]["about"]["commit"] == "abc1234"


def test_another_shape_is_measured_and_kept_only_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "RESULTS", gpu.ROOT / "benchmarks" / "results" / "gpu-test.json")
    monkeypatch.setattr(gpu, "SHAPES", {"0.1B": TINY.shape})
    monkeypatch.setattr(gpu, "full_plan", lambda _, shape: replace(TINY, shape=shape))
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--shape", "0.1B", "--part", "snip", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["snip"]["about"]["plan"]["shape"]["name"] == TINY.shape.name
    assert not gpu.RESULTS.exists()


def test_nothing_of_a_cpu_goes_where_a_cards_figures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "RESULTS", gpu.ROOT / "benchmarks" / "results" / "gpu-test.json")
    assert gpu.main(["--device", "cpu", "--part", "snip"]) == 0
    assert not gpu.RESULTS.exists()


def test_a_round_takes_the_steps_of_the_service_and_leaves_the_model_as_it_was(bench: Bench) -> None:
    before = snapshot(bench.model)
    found = whole_round(bench, Steps(bench, time.monotonic() + 300), None)
    ours = [step for step in STEPS["batch"] if step in found["step_seconds"]]
    assert list(found["step_seconds"]) == ours
    # there are no files, joint masks have no scores, and there is nothing to judge
    assert set(STEPS["batch"]) - set(ours) == {"parse", "score", "mask", "gate"}
    assert found["is_complete"] and not found["writes_a_version"]
    assert sum(found["step_seconds"].values()) <= found["seconds"]
    assert_same(bench.model, before)


def test_a_round_that_time_does_not_last_for_says_where_it_stopped(bench: Bench) -> None:
    before = snapshot(bench.model)
    steps = Steps(bench, time.monotonic() + 300)

    def check(*done: float) -> None:
        if "over_safety" in steps.seconds and done:  # in the middle of the next step
            raise OutOfTimeError

    steps.check = check  # type: ignore[method-assign]
    found = whole_round(bench, steps, None)
    assert not found["is_complete"] and found["stopped_in"] == "safety"
    assert list(found["step_seconds"]) == ["teach", "choose", "over_safety"]
    assert_same(bench.model, before)
    late = whole_round(bench, Steps(bench, time.monotonic() - 1), None)
    assert late["stopped_in"] == "between two steps" and late["step_seconds"] == {}


def test_what_there_is_no_memory_or_no_time_for_is_said_and_the_rest_goes_on(bench: Bench) -> None:
    def no_memory() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    def another() -> dict[str, Any]:
        raise RuntimeError("zim")

    assert gpu._attempt(bench, no_memory) == {"not_measured": "no memory: CUDA out of memory. Tried to allocate"}
    late = gpu._attempt(bench, lambda: gpu.snip(bench, time.monotonic() - 1))
    assert late == {"not_measured": "the time was over"}
    with pytest.raises(RuntimeError, match="zim"):
        gpu._attempt(bench, another)


def test_operations_of_a_training_are_those_of_its_products() -> None:
    shape = Shape("s", hidden=8, intermediate=12, num_layers=3, num_heads=2, num_kv_heads=1, vocabulary=50)
    matrices = 3 * (8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 12)
    rows = [Encoded(tuple(range(10)), 4), Encoded(tuple(range(6)), 5)]
    head, attention = 4 * 8 * 50 * 7, 12 * 8 * (100 + 36) / 2 * 3
    assert flops.training_flops(shape, rows, "full") == 6 * matrices * 16 + head + attention
    assert flops.training_flops(shape, rows, "sparse") == flops.training_flops(shape, rows, "full")
    assert flops.training_flops(shape, rows, "lora") == 4 * matrices * 16 + head + attention


def test_a_card_has_the_peak_of_its_own_kind_and_an_unknown_one_none() -> None:
    assert flops.peak("NVIDIA H200") == flops.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak("NVIDIA H100 PCIe") == 756e12 and flops.peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert flops.peak("Radeon") is None


def test_the_full_plan_has_eight_billion_parameters_and_the_services_settings() -> None:
    plan, settings = full_plan(Config(), SHAPES["8B"]), Config().derive
    assert SHAPES["8B"] is plan.shape and plan.shape.num_entries == 8_030_261_248
    assert (plan.num_rows, plan.row_tokens) == (500, 512)
    assert plan.steps == (settings.over_safety.max_steps, settings.safety.max_steps) == (30, 120)
    assert plan.sparse_fraction == settings.sparse_fraction
    assert plan.pass_tokens == MICRO_BATCH_TOKENS


def _kept(**changes: Any) -> dict[str, Any]:
    part = {"tokens_per_s": 100.0, "utilisation": 0.5, "peak_gib": 40.0}
    found: dict[str, Any] = {
        "lora": {"about": {}, "safety": part},
        "sparse": {"about": {}, "safety": part | {"peak_gib": 50.0}, "over_safety": part},
        "full": {"about": {}, "safety": {"not_measured": "no memory"}},
        "snip": {"tokens_per_s": 85.0},
        "round": {"is_complete": True, "seconds": 500.0},
    }  # fmt: skip
    return found | changes


def test_goals_are_held_against_what_was_measured_only() -> None:
    rows = {row.name: row for row in gpu.goals(_kept())}
    assert all(row.holds for row in rows.values())
    assert rows["memory of training, sparse"].measure == 1.25 and rows["SNIP pass"].measure == 0.85
    assert "utilisation, full safety" not in rows and "whole round" in rows
    cut = _kept(round={"is_complete": False, "seconds": 100.0}, snip={"not_measured": "the time was over"})
    assert not {"whole round", "SNIP pass"} & {row.name for row in gpu.goals(cut)}
    assert list(gpu.goals({})) == []
