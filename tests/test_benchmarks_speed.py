"""The measures of speed: what a budget is held against, and that what is measured is what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import benchmarks.speed.__main__ as speed
from benchmarks.speed import peers
from benchmarks.speed.__main__ import NAMES, _measures
from benchmarks.speed.models import SHAPES, Shape, make
from benchmarks.speed.rows import Row, interleaved, markdown, processor_seconds, table
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


def test_a_row_without_a_budget_is_there_to_compare_with() -> None:
    row = Row("thing", 2.0, "s", "another", 1.0, None, "at most")
    assert row.holds is None and row.to_dict()["holds"] is None
    assert "0 of 0 budgets hold" in table([row]) and "at most" not in table([row])


def test_the_page_has_the_table_of_what_is_kept() -> None:
    page = speed.ROOT / "docs" / "performance.md"
    kept = json.loads(speed.RESULTS.read_text())
    assert list(kept) == [name for name in NAMES if name in kept]
    assert markdown(kept) in page.read_text(), "`python -m benchmarks.speed --report` prints it"


def test_a_row_that_is_measured_again_replaces_what_is_kept_of_it_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "speed.json"
    monkeypatch.setattr(speed, "RESULTS", results)
    found = {name: Row(name, 1234.5, "s", "a peer", 1.0, 2.0, "at most", "a note") for name in NAMES}
    monkeypatch.setattr(speed, "_in_a_process", lambda name: [found[name]])
    assert speed.main(["--row", "intake"]) == 0 and not results.exists()
    assert speed.main(["--without", "size"]) == 0
    kept = json.loads(results.read_text())
    assert list(kept) == [name for name in NAMES if name != "size"]
    assert kept["rest"]["about"]["machine"]["cores"] == os.cpu_count() and kept["rest"]["about"]["commit"]
    found["intake"] = Row("intake", 0.5, "s", "", None, 2.0, "at most")
    assert speed.main(["--row", "intake", "--keep"]) == 0
    again = json.loads(results.read_text())
    assert again["intake"]["rows"][0]["ours"] == 0.5 and again["rest"] == kept["rest"]
    capsys.readouterr()
    assert speed.main(["--report"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"**1 of {len(NAMES) - 1} budgets hold.**"
    assert any(line.startswith("| rest | a peer; a note | 1,234 s | 1 | 1234.50 | at most 2 | no |") for line in lines)
    assert any(line.startswith("| intake |  | 0.5 s |  |  | at most 2 | yes |") for line in lines)


def test_memory_is_that_of_the_process_and_not_of_who_started_it() -> None:
    ballast = np.ones(400 << 20, np.uint8)
    probe = "from benchmarks.speed.rows import peak_mib; print(peak_mib())"
    done = subprocess.run([sys.executable, "-c", probe], cwd=speed.ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300 < ballast.nbytes / 2**20


def test_both_sides_run_in_turns_and_the_first_of_each_does_not_count() -> None:
    calls: list[str] = []
    interleaved(lambda: calls.append("ours"), lambda: calls.append("peer"), times=3)
    assert calls == ["ours", "peer"] * 4


def test_preparing_a_call_is_not_timed() -> None:
    calls: list[str] = []

    def prepare() -> None:
        calls.append("prepare")
        time.sleep(0.5)

    taken = interleaved(lambda: calls.append("ours"), lambda: calls.append("peer"), 1, prepare=prepare)
    assert max(taken) < 0.5 and calls == ["prepare", "ours", "prepare", "peer"] * 2


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
