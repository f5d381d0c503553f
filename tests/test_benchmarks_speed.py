"""The measures of speed: what a budget is held against, and that what is measured is what it says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.speed import peers
from benchmarks.speed.__main__ import NAMES, _measures
from benchmarks.speed.models import SHAPES, Shape, make
from benchmarks.speed.rows import Row, interleaved, processor_seconds, table
from benchmarks.speed.store import RandomEntries, _zstd_bytes
from daemon.candidate import MergedEdits
from state.tensors import ModelFolder

TINY = Shape("tiny", 32, 48, 2, 4, 2, vocabulary=64)


@pytest.mark.parametrize(
    ("ours", "peer", "budget", "kind", "holds"),
    [
        (1.2, 1.0, 1.3, "at most", True),
        (1.4, 1.0, 1.3, "at most", False),
        (3.0, 1.0, 3.0, "at least", True),
        (0.2, None, 0.3, "at most", True),
        (100.0, None, 200.0, "at least", False),
    ],
)
def test_a_budget_is_on_the_ratio_where_there_is_a_peer_and_else_on_ours(
    ours: float, peer: float | None, budget: float, kind: str, holds: bool
) -> None:
    row = Row("thing", ours, "s", "another", peer, budget, kind)  # type: ignore[arg-type]
    assert row.holds is holds
    assert row.measure == (ours if peer is None else ours / peer)
    assert ("yes" if holds else "NO") in table([row]) and f"{int(holds)} of 1 budgets hold" in table([row])


def test_both_sides_run_in_turns_and_the_first_of_each_does_not_count() -> None:
    calls: list[str] = []
    interleaved(lambda: calls.append("ours"), lambda: calls.append("peer"), times=3)
    assert calls == ["ours", "peer"] * 4


def test_processor_time_counts_work_and_that_of_children_but_no_waiting() -> None:
    assert processor_seconds(lambda: time.sleep(0.3)) < 0.2
    assert processor_seconds(lambda: sum(range(10_000_000))) > 0.05
    child = [sys.executable, "-c", "sum(range(10_000_000))"]
    assert processor_seconds(lambda: subprocess.run(child, check=True)) > 0.05


def test_a_model_made_on_the_spot_is_one_and_as_large_as_its_shape(tmp_path: Path) -> None:
    folder = ModelFolder.open(make(TINY, tmp_path / "model"))
    assert sum(info.num_entries for info in folder.tensors.values()) == TINY.num_entries
    assert {info.dtype for info in folder.tensors.values()} == {"BF16"}


def test_the_random_patch_touches_its_share_of_the_decoder_and_nothing_else(tmp_path: Path) -> None:
    folder = ModelFolder.open(make(TINY, tmp_path / "model"))
    entries = RandomEntries(folder, 0.25)
    assert all(".layers." in name and "norm" not in name for name in entries)
    touched = sum(len(entries[name][0]) for name in entries)
    assert touched / sum(folder.tensors[name].num_entries for name in entries) == pytest.approx(0.25, abs=0.02)
    name = next(iter(entries))
    assert all(np.array_equal(a, b) for a, b in zip(entries[name], entries[name], strict=True))
    assert 0 < _zstd_bytes(folder, MergedEdits(folder, entries)) < 2 * TINY.num_entries


@pytest.mark.parametrize("name", NAMES)
def test_every_row_leads_to_something_that_measures(name: str) -> None:
    assert callable(_measures(name))


def test_without_mergekit_there_is_no_row_and_a_word_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "MERGEKIT", peers.ROOT / "var" / "none" / "mergekit-yaml")
    assert peers.mergekit(tmp_path) == [] and "`make peers` installs it" in capsys.readouterr().err


def test_mergekit_gets_the_base_and_the_version_that_ours_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "mergekit-yaml"
    tool.write_text('#!/bin/sh\nsleep 0.2; if [ $# -gt 1 ]; then sleep 0.3; mkdir "$2"; cp "$1" "$2"; fi\n')
    tool.chmod(0o755)
    monkeypatch.setattr(peers, "MERGEKIT", tool)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    (row,) = peers.mergekit(tmp_path, "tiny")
    assert row.peer is not None and 0.2 < row.peer < 2 and row.kind == "at most"
    recipe = yaml.safe_load((tmp_path / "merged" / "recipe.yml").read_text())
    (tuned,) = recipe["models"]
    assert recipe["merge_method"] == "dare_linear" and Path(recipe["base_model"]).is_dir()
    base, version = (ModelFolder.open(Path(path)) for path in (recipe["base_model"], tuned["model"]))
    assert base.tensors.keys() == version.tensors.keys()
    assert any(file.read_bytes() != (version.path / name).read_bytes() for name, file in base.files.items())
