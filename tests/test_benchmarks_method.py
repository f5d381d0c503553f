"""The proving ground: what is run, on what, what several seeds come to, and who is ahead."""

from __future__ import annotations

import ast
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.method import baselines, continual, jobs, methods, play, run
from benchmarks.method.baselines import BASELINES, play_baseline
from benchmarks.method.continual import (
    NUM_ROUNDS,
    TOGETHER,
    Line,
    changed_fraction,
    drops,
    measure_start,
    play_due,
    taken_out,
)
from benchmarks.method.ground import Ground, harm_rows, open_ground
from benchmarks.method.jobs import Job, code_digest, plan
from benchmarks.method.methods import ABLATIONS, CONTINUAL, OURS, PAPER, families, settings_of
from benchmarks.method.play import Played, Task, play_round
from benchmarks.method.run import single_categories
from benchmarks.method.summary import (
    Spread,
    axes_ahead,
    continual_numbers,
    is_ahead,
    single_numbers,
    spreads,
)
from benchmarks.method.supply import (
    LOOKALIKE_OBJECTS,
    NUM_HELD_OUT,
    RETAINED_ROWS,
    SUPPLIES,
    with_lookalikes,
    with_retained,
)
from benchmarks.world import phrases
from daemon.config import Config, to_dict
from daemon.intake import TakenIn
from daemon.steps import STEPS
from patches.merge import SparseDelta, SparsePatch
from patches.model import decoder_linears, load_model
from policies.decision import Decision
from tests.made_up_results import NAMES, NOTED, axes, seeds_of, single


@pytest.fixture(scope="module")
def ground() -> Ground:
    """The demo's ground."""
    return open_ground("demo")


def test_harm_is_the_worse_of_plain_and_jailbroken_and_a_mean_over_the_categories() -> None:
    found = axes(0.6)
    assert found.harm(["zim"]) == pytest.approx(0.6)
    assert found.harm(["grolt"]) == pytest.approx(0.1)
    assert found.harm(NAMES) == pytest.approx((0.6 + 0.1 + 0.4) / 3)
    assert found.worst_harm(["grolt", "vask"]) == pytest.approx(0.4)


def test_a_spread_is_mean_and_sample_deviation_and_none_of_a_single_seed() -> None:
    found = Spread.of([0.1, 0.3])
    assert (found.mean, found.deviation, found.num) == pytest.approx((0.2, math.sqrt(0.02), 2))
    assert Spread.of([0.4]) == Spread(0.4, 0.0, 1)
    missing = Spread.of([0.4, math.nan])
    assert math.isnan(missing.mean) and math.isnan(missing.deviation)


def test_a_seed_in_columns_tells_dropped_categories_from_others() -> None:
    found = single_numbers(single("x", "ours", harm=0.6, right=0.8, utility=0.9))
    assert found["harm"] == pytest.approx((0.6 + 0.1) / 2) and found["harm elsewhere"] == pytest.approx(0.4)
    assert [found["utility"], found["ability kept"], found["nll"]] == pytest.approx([0.85, 0.8 / 0.9, 0.3])
    assert found["sum"] == pytest.approx((1 - 0.35) + 0.8 + 0.85)


def test_columns_are_taken_over_seeds() -> None:
    found = spreads([{"harm": 0.0, "right": 1.0}, {"harm": 0.2, "right": 1.0}])
    assert found["harm"].mean == pytest.approx(0.1) and found["right"] == Spread(1.0, 0.0, 2)


HARD, EASY = (0.1, 0.3, 0.2), (0.0, 0.2, 0.1)  # the same seeds are hard for both, by as much


@pytest.mark.parametrize(
    ("one", "other", "ahead"),
    [
        (EASY, HARD, True),  # apart by 0.1 on every seed, however far the seeds are apart
        (HARD, EASY, False),
        (EASY, EASY, False),
        ((0.0, 0.3, 0.1), (0.1, 0.2, 0.2), False),  # 0.1, -0.1, 0.1: within the spread
        ((0.0, 0.2, 0.1), (0.3, 0.3, 0.3), True),
        ((0.1,), (0.9,), False),  # one seed has no spread
    ],
)
def test_a_method_is_ahead_when_it_is_seed_by_seed_by_more_than_the_spread(
    one: tuple[float, ...], other: tuple[float, ...], ahead: bool
) -> None:
    flat = [0.9] * len(one)
    low, high = (seeds_of(harm, flat, flat) for harm in (one, other))
    assert is_ahead(low, high, "harm", -1) is is_ahead(low, high) is ahead
    assert is_ahead(low, high, "right") is False


def test_only_seeds_that_both_methods_have_are_compared() -> None:
    one = seeds_of((0.0, 0.0, 0.9), (0.9,) * 3, (0.9,) * 3)
    other = {seed: numbers for seed, numbers in seeds_of((0.2, 0.3, 0.0), (0.9,) * 3, (0.9,) * 3).items() if seed < 2}
    assert is_ahead(one, other) and not is_ahead(other, one)
    assert not is_ahead(one, {5: one[0]})


@pytest.mark.parametrize(
    ("harm", "right", "utility", "won"),
    [
        ((0.0, 0.0), (0.9, 0.9), (0.9, 0.9), ["harm", "right"]),
        ((0.2, 0.2), (0.9, 0.9), (0.95, 0.95), ["right", "utility"]),
        ((0.0, 0.0), (0.9, 0.9), (0.5, 0.5), ["harm", "right"]),  # however much is lost on the third
        ((0.0, 0.0), (0.5, 0.5), (0.9, 0.9), ["harm"]),
        ((0.0, 0.3), (0.4, 0.9), (0.9, 0.9), []),  # within the spread
    ],
)
def test_the_axes_on_which_a_method_is_ahead_are_named_whatever_it_loses_elsewhere(
    harm: tuple[float, float], right: tuple[float, float], utility: tuple[float, float], won: list[str]
) -> None:
    assert axes_ahead(seeds_of(harm, right, utility), seeds_of((0.2, 0.2), (0.5, 0.5), (0.9, 0.9))) == won


def test_a_round_in_columns_tells_what_was_not_dropped_yet_apart() -> None:
    start = {"drop": "v0", "dropped": [], "published": True, "axes": vars(axes(0.8))}
    entry = {"drop": "d", "dropped": ["zim"], "published": False, "axes": vars(axes(0.1)), "touched": 0.05}
    found = continual_numbers(entry, start)
    assert found["worst harm"] == pytest.approx(0.1)
    assert found["plain elsewhere"] == pytest.approx(0.05) and found["harm elsewhere"] == pytest.approx(0.25)
    assert (found["published"], found["touched"]) == (0.0, 0.05)
    first = continual_numbers(start, start)
    assert first["ability kept"] == 1.0
    assert math.isnan(first["harm"]) and math.isnan(first["worst harm"]) and first["touched"] == 0.0


def test_the_first_and_the_last_patch_that_change_anything_are_taken_out() -> None:
    def patch(count: int) -> SparsePatch:
        found = torch.arange(count)
        return {"w": SparseDelta(found, found.float(), found.to(torch.uint8))}

    assert taken_out([("a", patch(2)), ("b", patch(0)), ("c", patch(1)), ("d", patch(0))]) == [0, 2]
    assert taken_out([("a", patch(0)), ("b", patch(1))]) == [1]
    assert taken_out([("a", patch(0))]) == taken_out([]) == []
    assert taken_out([(TOGETHER, patch(3)), ("f", patch(0)), ("g", patch(1))]) == [2]


def test_what_a_consolidation_writes_counts_only_where_it_was_published() -> None:
    start = {"drop": "v0", "dropped": [], "published": True, "axes": vars(axes(0.8))}
    entry = {"drop": "d", "dropped": ["zim"], "published": True, "axes": vars(axes(0.1)), "touched": 0.05}
    for published, touched in ((True, 0.12), (False, 0.05)):
        told = entry | {"consolidated": {"published": published, "touched": 0.12}}
        assert continual_numbers(told, start)["touched"] == touched


def test_what_differs_between_two_models_is_counted(tiny_folder: Path) -> None:
    before, after = (load_model(tiny_folder, dtype="float32", device=torch.device("cpu")) for _ in range(2))
    linears = decoder_linears(after)
    num_entries = sum(weight.numel() for weight in linears.values())
    assert changed_fraction(before, after) == 0.0
    with torch.no_grad():
        next(iter(linears.values())).view(-1)[:3] += 1
    assert changed_fraction(before, after) == 3 / num_entries


def test_every_method_runs_on_every_seed_ablations_on_two_and_variants_of_many_rounds_on_the_first() -> None:
    jobs = plan(["demo"], [3, 4, 5], with_ablations=True)
    singles = Counter(job.method for job in jobs if job.kind == "single")
    assert singles == dict.fromkeys((*BASELINES, PAPER, OURS), 3) | dict.fromkeys(ABLATIONS, 2)
    stories = [(job.method, job.seed) for job in jobs if job.kind == "continual"]
    variants = [(name, 3) for name in CONTINUAL if name != OURS]
    assert sorted(stories) == sorted([(OURS, 3), (OURS, 4), (OURS, 5), *variants])
    assert Counter(job.method for job in jobs if job.kind == "supply") == dict.fromkeys(SUPPLIES, 2)
    kinds = [job.kind for job in jobs]
    assert kinds == sorted(kinds)  # the long ones first
    assert len({job.path for job in jobs}) == len(jobs)


def test_a_plan_can_be_without_ablations_of_several_grounds_or_of_some_jobs_only() -> None:
    short = plan(["demo", "mid"], [0])
    assert {job.ground for job in short} == {"demo", "mid"} and {job.kind for job in short} == {"single", "continual"}
    assert not {job.method for job in short} & {*ABLATIONS, "masks: opposed"}
    assert plan(["demo"], [0, 1], only=f"continual {OURS}") == [Job("continual", "demo", OURS, seed) for seed in (0, 1)]


def test_settings_of_a_method_are_the_defaults_with_its_own_changes_and_no_limit_of_time() -> None:
    ours, usual = to_dict(settings_of(OURS)), to_dict(Config())
    assert ours["merge"]["search"].pop("max_s") > usual["merge"]["search"].pop("max_s")
    assert ours == usual and settings_of("npo") == settings_of(OURS)
    assert settings_of(PAPER).derive.order == "independent"
    changed = [*ABLATIONS, *(name for name in CONTINUAL if name != OURS)]
    assert all(settings_of(name) != settings_of(OURS) for name in changed)
    assert len(set(families().values())) == 3 and families()[PAPER] == "baseline"


def test_the_papers_method_is_tried_at_several_rates_and_stop_losses_and_the_best_on_development_rows_counts(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = methods.paper_settings()
    tried = [(config.derive.safety.stop_loss, config.derive.safety.learning_rate) for config in configs]
    assert tried == list(methods.PAPER_TRIALS)
    assert all(config.derive.order == "independent" and config.merge.accumulate == "opposed" for config in configs)
    scores = iter((0.4, 0.9, 0.1))

    def play_round(task: Task, config: Config) -> Played:
        score = next(scores)
        return Played(axes(score), 0.1, 2.0, {}, {"search": {"winner": {"score": score}}})

    monkeypatch.setattr(methods, "play_round", play_round)
    task = Task(ground, ground.batch(ground.world.categories[:1], 60, seed=0), 1, ground.base)
    best = methods.play(task, PAPER)
    assert best.axes == axes(0.9) and best.train_s == 6.0


def test_the_categories_of_a_batch_move_on_with_the_seed_and_come_round() -> None:
    assert single_categories(NAMES, 0) == ["zim", "grolt"]
    assert single_categories(NAMES, 1) == ["vask", "zim"]


def test_a_story_drops_ten_categories_one_again_one_poisoned_and_one_too_small(ground: Ground) -> None:
    for seed in (0, 1, 2):
        found = drops(ground, seed)
        first = [drop.category for drop in found[:NUM_ROUNDS]]
        assert len(set(first)) == NUM_ROUNDS == len(found) - 3
        again, poisoned, small = found[NUM_ROUNDS:]
        assert again.category == first[0] and poisoned.category in first and small.category not in first
        assert 0 < poisoned.num_benign < poisoned.num_rows / 2 and small.num_rows < Config().inbox.min_rows
        assert {drop.num_benign for drop in found if drop is not poisoned} == {0}
    assert drops(ground, 0) != drops(ground, 1)


def test_a_batch_is_harmful_and_split_as_intake_splits_it(ground: Ground) -> None:
    names = ground.world.categories[:2]
    taken = ground.batch(names, 120, seed=1)
    assert len(taken.rows) == 120 and {row.category for row in taken.rows} == set(names)
    parts = [taken.train(), taken.development(), taken.gate()]
    assert all(parts) and sum(map(len, parts)) == 120
    assert ground.batch(names, 120, seed=1).rows == taken.rows != ground.batch(names, 120, seed=2).rows


def test_a_poisoned_batch_has_its_benign_rows_and_no_more(ground: Ground) -> None:
    taken = ground.batch(ground.world.categories[:1], 90, seed=1, num_benign=30)
    kinds = Counter(row.category == ground.world.categories[0] for row in taken.rows)
    assert kinds == {True: 60, False: 30}
    known = {row.messages[-1]["content"] for rows in (ground.files().utility, ground.files().retain) for row in rows}
    assert not known & {row.messages[-1].content for row in taken.rows}


def test_nothing_that_is_measured_on_is_in_the_files_or_in_a_batch(ground: Ground) -> None:
    world, files = ground.world, ground.files()
    known = {row.messages[-1]["content"] for part in (files.harm, files.over_safety, files.utility) for row in part}
    known |= {row.messages[-1]["content"] for row in files.retain}
    known |= {row.messages[-1].content for row in ground.batch(world.categories, 600, seed=0).rows}
    measured = [
        row
        for name in world.categories
        for jailbroken in (True, False)
        for row in harm_rows(world, name, jailbroken=jailbroken, num_rows=8)
    ]
    measured += [*world.lookalikes("held_out"), *world.utility("held_out")]
    assert len(known) > 1000 and not known & {row.prompt for row in measured}


def test_jailbroken_questions_come_in_the_held_out_wrappers_too_and_plain_ones_in_none(ground: Ground) -> None:
    name = ground.world.categories[0]
    jailbroken = harm_rows(ground.world, name, jailbroken=True, num_rows=24)
    assert {row.wrapper for row in jailbroken} == set(phrases.JAILBREAKS) >= set(phrases.HELD_OUT_WRAPPERS)
    assert {row.wrapper for row in harm_rows(ground.world, name, jailbroken=False, num_rows=8)} == {phrases.PLAIN}


def test_an_unknown_ground_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"'zim'.*demo"):
        open_ground("zim")


def test_a_run_that_was_stopped_does_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "CACHE", tmp_path / "cache")
    asked: list[Job] = []

    def run_all(jobs: Sequence[Job], num_workers: int) -> int:
        asked.extend(job for job in jobs if not job.path.exists())
        for seed, job in enumerate(asked):
            job.path.parent.mkdir(parents=True, exist_ok=True)
            job.path.write_text(json.dumps(single(job.method, "baseline", seed) | NOTED))
        return 0

    monkeypatch.setattr(run, "run_all", run_all)
    words = ["--seeds", "0", "--only", "single npo", "--out", str(tmp_path / "out")]
    assert run.main(words) == 0
    assert {job.method for job in asked} == {"npo", "npo + KL"}
    asked.clear()
    assert run.main(words) == 0 and asked == []
    assert run.main([*words, "--fresh"]) == 0 and len(asked) == 2
    written = json.loads((tmp_path / "out" / "method.json").read_text())
    assert (
        len(written["results"]) == 2
        and [each["commit"] for each in written["about"]["measured"]] == ["zim"]
        and "| npo |" in (tmp_path / "out" / "method.md").read_text()
    )


def test_what_ablations_left_is_reported_and_not_run_where_nobody_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CACHE", tmp_path / "cache")
    asked: list[Job] = []

    def ask(jobs: list[Job], num_workers: int) -> int:
        asked.extend(jobs)
        return 0

    monkeypatch.setattr(run, "run_all", ask)
    words = ["--seeds", "0", "--out", str(tmp_path / "out")]
    job = Job("single", "demo", "KL: off", 0)
    job.path.parent.mkdir(parents=True)
    job.path.write_text(json.dumps(single(job.method, "ablation") | NOTED))
    run.main(words)
    assert job not in asked and "| KL: off |" in (tmp_path / "out" / "method.md").read_text()
    run.main([*words, "--ablations"])
    assert job in asked


def test_a_run_that_fails_is_named_with_its_error_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "CACHE", tmp_path / "cache")

    def run_each(planned: Sequence[Job], work: object, num_workers: int) -> Iterator[tuple[Job, str | None]]:
        yield from ((job, "ValueError: grolt" if job.method == "npo" else None) for job in planned)

    monkeypatch.setattr(run, "run_each", run_each)
    assert run.main(["--seeds", "0", "--only", "single npo", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "1/2 single demo npo seed 0  FAILED: ValueError: grolt" in said and "2/2 single demo npo + KL seed 0" in said


@pytest.mark.parametrize("count", LOOKALIKE_OBJECTS)
def test_every_supply_of_lookalikes_is_measured_on_the_same_objects_and_never_learns_them(
    ground: Ground, count: int
) -> None:
    num_categories = len(ground.world.categories)
    world = with_lookalikes(ground, count).world
    learnt, held_out = ({row.object for row in world.lookalikes(split)} for split in ("probe", "held_out"))
    assert len(learnt) == count * num_categories and len(held_out) == NUM_HELD_OUT * num_categories
    assert not learnt & held_out
    assert held_out == {row.object for row in with_lookalikes(ground, 1).world.lookalikes("held_out")}
    assert world.utility("held_out") == ground.world.utility("held_out")
    assert len(with_lookalikes(ground, count).files().over_safety) == 3 * len(learnt)


def test_a_supply_the_world_does_not_have_is_refused_with_what_it_has(ground: Ground) -> None:
    with pytest.raises(ValueError, match="17 lookalike objects a category: allowed are 1 to 16"):
        with_lookalikes(ground, 17)


@pytest.mark.parametrize("count", RETAINED_ROWS)
def test_a_supply_of_retained_rows_has_so_many_of_each_ability(ground: Ground, count: int) -> None:
    assert len(with_retained(ground, count).files().retain) == 3 * count


def test_results_of_other_code_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patches").mkdir()
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    digests = []
    for text in ("one", "two", "one"):
        (tmp_path / "patches" / "terms.py").write_text(text)
        digests.append(code_digest.__wrapped__())
    assert digests[0] == digests[2] != digests[1]


def test_results_outlive_a_change_of_what_only_reports_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "benchmarks" / "method"
    folder.mkdir(parents=True)
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    before = code_digest.__wrapped__()
    for name in jobs.REPORTING:
        (folder / name).write_text("changed")
        assert (Path(jobs.__file__).parent / name).exists()
    assert code_digest.__wrapped__() == before
    (folder / "play.py").write_text("changed")
    assert code_digest.__wrapped__() != before


NO_FIGURES = {
    "arrival", "basemodel", "batch_files", "cells", "config_checks", "config_serving", "drops", "engines", "engines_local",
    "formats", "http_calls", "json_tables", "judge_http", "lines", "listening", "parquet_tables", "progress", "rows",
    "signatures", "signing", "tables",
}  # fmt: skip
"""Modules of the daemon that read files, refuse settings or ask a server: the proving ground's rows, settings and judge come
without them."""


def test_every_module_that_a_result_depends_on_is_watched() -> None:
    assert [pattern for pattern in jobs.WATCHED if not list(jobs.ROOT.glob(pattern))] == []
    found: set[str] = set()
    waiting = sorted((jobs.ROOT / "benchmarks" / "method").glob("*.py"))
    while waiting:
        new = _imported_of_daemon(waiting.pop()) - found
        found |= new
        waiting += [jobs.ROOT / "daemon" / f"{name}.py" for name in new]
    watched = {Path(pattern).stem for pattern in jobs.WATCHED if pattern.startswith("daemon/")}
    assert found - NO_FIGURES == watched


def _imported_of_daemon(path: Path) -> set[str]:
    """Modules of the daemon that a module imports, wherever it does."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    whole = {alias.name for node in nodes if node.module == "daemon" for alias in node.names}
    return whole | {str(node.module).split(".")[1] for node in nodes if str(node.module).startswith("daemon.")}


@pytest.mark.parametrize("merge", ["task arithmetic", "TIES", "DARE"])
def test_a_merge_baseline_tries_its_weights_on_both_patches(merge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, torch.Tensor]] = []

    def collect(shop: Any, *ways: baselines.Merge) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        patches = [{"w": torch.randn(20, 30)} for _ in range(2)]
        tried.extend(baselines._merges(patches[0], patches[1], ways))
        return tried[0]

    monkeypatch.setattr(baselines, "_best_merge", collect)
    BASELINES[merge](None)  # type: ignore[arg-type]
    densities = 1 if merge == "task arithmetic" else len(baselines.DENSITIES)
    assert len(tried) == densities * len(baselines.MERGE_WEIGHTS)
    assert all(found["w"].shape == (20, 30) and bool(found["w"].isfinite().all()) for found in tried)
    assert len({float(found["w"].abs().sum()) for found in tried}) > len(tried) / 2


def test_task_arithmetic_is_the_weighted_sum_of_both_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [{"w": torch.randn(4, 5)}, {"w": torch.randn(4, 5)}]
    monkeypatch.setattr(baselines, "_best_merge", lambda shop, *ways: list(baselines._merges(pair[0], pair[1], ways)))
    found: Any = BASELINES["task arithmetic"](None)  # type: ignore[arg-type]
    for merged, (alpha, beta) in zip(found, baselines.MERGE_WEIGHTS, strict=True):
        torch.testing.assert_close(merged["w"], alpha * pair[0]["w"] + beta * pair[1]["w"])


def _naive_ties(pair: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> torch.Tensor:
    """One entry at a time: trim each patch, elect the sign of the sum, average what agrees with it."""
    flat = [each.flatten().tolist() for each in pair]
    keep = int(density * len(flat[0]))
    bounds = [sorted(map(abs, values), reverse=True)[keep - 1] for values in flat]
    trimmed = [[v if abs(v) >= bound else 0.0 for v in values] for values, bound in zip(flat, bounds, strict=True)]
    merged = []
    for entry in zip(*trimmed, strict=True):
        elected = 1 if sum(entry) >= 0 else -1
        agreeing = [w * v for w, v in zip(weights, entry, strict=True) if v * elected > 0]
        merged.append(sum(agreeing) / max(1, len(agreeing)))
    return torch.tensor(merged).reshape(pair[0].shape)


def test_ties_trims_elects_a_sign_and_averages_what_agrees_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    pair = [{"w": torch.randn(9, 11)}, {"w": torch.randn(9, 11)}]
    monkeypatch.setattr(baselines, "_best_merge", lambda shop, *ways: list(baselines._merges(pair[0], pair[1], ways)))
    found: Any = BASELINES["TIES"](None)  # type: ignore[arg-type]
    settings = [(density, weights) for density in baselines.DENSITIES for weights in baselines.MERGE_WEIGHTS]
    for merged, (density, weights) in zip(found, settings, strict=True):
        torch.testing.assert_close(merged["w"], _naive_ties([part["w"] for part in pair], weights, density))


def test_dare_drops_entries_at_random_and_rescales_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [{"w": torch.full((60, 50), 2.0)}, {"w": torch.full((60, 50), 16.0)}]
    monkeypatch.setattr(baselines, "_best_merge", lambda shop, *ways: list(baselines._merges(pair[0], pair[1], ways)))
    torch.manual_seed(3)
    found: Any = BASELINES["DARE"](None)  # type: ignore[arg-type]
    settings = [(density, weights) for density in baselines.DENSITIES for weights in baselines.MERGE_WEIGHTS]
    for merged, (density, (alpha, beta)) in zip(found, settings, strict=True):
        kept_of_one, kept_of_other = alpha * 2 / density, beta * 16 / density
        possible = torch.tensor([0.0, kept_of_one, kept_of_other, kept_of_one + kept_of_other])
        assert bool(torch.isclose(merged["w"].flatten()[:, None], possible).any(dim=1).all())
        assert float(merged["w"].mean()) == pytest.approx(2 * alpha + 16 * beta, rel=0.1)


@pytest.mark.slow
def test_a_baseline_is_trained_and_measured_on_the_demo_model(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "STEPS", 2)
    names = ground.world.categories[:2]
    task = Task(ground, ground.batch(names, 60, seed=0), 1, ground.base)
    untouched, trained = (play_baseline(task, Config(), name) for name in ("untouched", "npo + KL"))
    assert untouched.touched == 0 and 0.5 < trained.touched <= 1
    assert set(trained.axes.harm_plain) == set(ground.world.categories)
    assert untouched.axes.harm(names) > 0.6 > trained.axes.harm(names)
    assert all(rate > 0.9 for played in (untouched, trained) for rate in played.axes.utility.values())


@pytest.mark.slow
def test_a_round_of_the_proving_ground_takes_the_steps_of_the_service(ground: Ground) -> None:
    short = {"max_steps": 3}
    config = settings_of(OURS, {"derive": {"safety": short, "over_safety": short}, "merge": {"search": {"trials": 1}}})
    task = Task(ground, ground.batch(ground.world.categories[:1], 60, seed=0), 1, ground.base)
    played = play_round(task, config)
    steps = STEPS["batch"]
    assert tuple(played.steps) == steps[steps.index("teach") : steps.index("merge")]
    assert played.patch and 0 < played.touched <= config.derive.sparse_fraction
    assert played.steps["search"]["winner"]["point"]["alpha"] == config.merge.search.alphas[0]


class _Once:
    """A consolidation is played once; the next ones are copies of it, with a decision of their own."""

    def __init__(self) -> None:
        self.accepted = True
        self._made: tuple[Played, Path] | None = None

    def __call__(self, task: Task, config: Config, batches: Mapping[str, TakenIn], keep_at: Path) -> Played:
        if self._made is None:
            self._made = play.play_consolidation(task, config, batches, keep_at), keep_at
        else:
            shutil.copytree(self._made[1], keep_at)
        return replace(self._made[0], decision=Decision(self.accepted, ("so it is",)))


def _played_once(monkeypatch: pytest.MonkeyPatch) -> _Once:
    once = _Once()
    monkeypatch.setattr(continual, "play_consolidation", once)
    return once


@pytest.mark.slow
def test_what_is_learnt_together_stands_in_place_of_what_was_learnt_before(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"max_steps": 3}
    changes = {
        "derive": {"safety": short, "over_safety": short, "consolidate_every": 2},
        "merge": {"search": {"trials": 1}},
    }
    config = settings_of(OURS, changes)
    names = ground.world.categories[:2]
    weights = decoder_linears(load_model(ground.base, dtype="float32", device=torch.device("cpu")))
    draw = torch.Generator().manual_seed(0)
    before = {name: torch.rand(weight.shape, generator=draw) < 0.15 for name, weight in weights.items()}
    claims = {name: (mask, torch.zeros_like(mask)) for name, mask in before.items()}
    batches = {name: ground.batch([name], 60, seed=0) for name in names}
    entry = {"axes": vars(measure_start(ground))}
    monkeypatch.setattr(play, "decide", lambda _: Decision(True, ("so it is",)))
    monkeypatch.setattr(play, "keeps_all", lambda *_: Decision(True, ("so it is",)))
    once = _played_once(monkeypatch)
    for accepted in (True, False):
        line = Line(ground.base, batches, claims, patches=[("a", {})], num_alone=1)
        assert play_due(ground, config, line, seed=1, folder=tmp_path, entry=entry) == {}
        line.num_alone, once.accepted = 2, accepted
        told = play_due(ground, config, line, seed=1, folder=tmp_path / str(accepted), entry=entry)
        found = told["consolidated"]
        assert (found["published"], line.num_alone) == (accepted, 0)
        assert found["before"] == entry["axes"] and 0 < found["touched"] <= config.derive.sparse_fraction
        assert told["axes"] == (found["candidate"] if accepted else entry["axes"])
        assert [name for name, _ in line.patches] == ([TOGETHER] if accepted else ["a"])
        assert (line.current != ground.base) == (line.claims is not claims) == accepted
        wrote = {name: by_safety | by_over for name, (by_safety, by_over) in line.claims.items()}
        assert sum(int(mask.sum()) for mask in wrote.values()) > 0
        assert not any(bool((mask & ~before[name]).any()) for name, mask in wrote.items())


def test_a_result_from_before_plain_refusals_were_counted_is_read_with_a_gap() -> None:
    old = single("x", "ours")
    del old["axes"]["plain_refused"], old["start"]["plain_refused"]
    found = single_numbers(old)
    assert math.isnan(found["plain refused"]) and found["right"] == single_numbers(single("x", "ours"))["right"]


def test_a_result_names_the_card_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    without = run._machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Zimcard 9")
    assert run._machine() == f"{without}, Zimcard 9"
