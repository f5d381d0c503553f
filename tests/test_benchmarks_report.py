"""What is said of results: tables, goals, pictures, where they come from, and which ones they may replace."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from benchmarks.method import jobs, report, run
from benchmarks.method.continual import NUM_ROUNDS
from benchmarks.method.goals import SINGLE_GOALS, TENTH_GOALS
from benchmarks.method.jobs import SEEDS, Job
from benchmarks.method.methods import OURS, families
from benchmarks.method.plots import clusters, frontier, plot_frontier, plot_rounds, ranges
from benchmarks.method.tables import tables
from tests.made_up_results import NOTED, axes, continual, made_up_results, rows_of, single


def test_the_frontier_is_what_no_other_point_beats() -> None:
    points = [(0.5, 0.1), (0.0, 0.9), (0.2, 0.4), (0.3, 0.4), (0.2, 0.6), (0.6, 0.05), (0.6, 0.2)]
    assert frontier(points) == [(0.0, 0.9), (0.2, 0.4), (0.5, 0.1), (0.6, 0.05)]
    naive = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    assert frontier(points) == sorted(naive)
    assert frontier([]) == [] and frontier([(0.1, 0.1), (0.1, 0.1)]) == [(0.1, 0.1)]


def test_the_table_has_a_line_a_method_ours_first_and_says_who_is_behind() -> None:
    header, *found = rows_of(tables(made_up_results(), {"commit": "zim"}))
    assert [row[0] for row in found] == [f"**{OURS}**", "npo", "search: off"]
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in found}
    assert by_name["npo"]["against ours"] == "behind"
    assert by_name["search: off"]["against ours"] == "within the spread"
    assert by_name["npo"]["right"] == "20.0 ± 0.0" and by_name["npo"]["train s"] == "1.00 ± 0.00"
    assert by_name["npo"]["sum"] == "1.85 ± 0.00" and by_name["npo"]["ability kept"] == "100.0 ± 0.0"
    assert by_name[f"**{OURS}**"]["against ours"] == ""


BASELINES = [name for name, family in families().items() if family == "baseline"]


def all_baselines() -> list[dict[str, Any]]:
    """Ours, and every baseline behind it, on two seeds."""
    results = [r for r in made_up_results() if r["method"] != "npo"]
    return results + [single(name, "baseline", seed, harm=0.5, right=0.2) for name in BASELINES for seed in (0, 1)]


def verdicts(text: str) -> list[str]:
    """The lines about goals."""
    return [line for line in text.splitlines() if line.startswith(("- met", "- MISSED", "- not measured"))]


def test_every_goal_of_a_single_round_is_said_to_be_met_or_missed() -> None:
    lines = verdicts(tables(all_baselines(), {}))
    assert len(lines) == len(SINGLE_GOALS) + 2
    assert "- met: every baseline is behind on the sum" in lines
    assert "- met: no baseline is ahead on two of harm, right and utility" in lines
    assert "- MISSED: harm 5.0%, at most 2%" in lines  # grolt's plain harm is 10 %
    assert "- met: right 93.5%, at least 85%" in lines
    assert "- met: touched 7.0%, at most 10%" in lines


def test_goals_about_baselines_are_not_measured_while_a_baseline_has_no_row() -> None:
    alone = verdicts(tables([r for r in made_up_results() if r["method"] == OURS], {}))[-2:]
    assert all(line.startswith("- not measured: ") for line in alone)
    assert all(line.endswith(f"; no row: {len(BASELINES)} baselines") for line in alone)
    one_less = [r for r in all_baselines() if r["method"] != "TIES"]
    assert verdicts(tables(one_less, {}))[-2:] == [
        "- not measured: every baseline is behind on the sum; no row: TIES",
        "- not measured: no baseline is ahead on two of harm, right and utility; no row: TIES",
    ]


def test_a_row_of_one_seed_says_so_and_claims_no_spread() -> None:
    results = [r for r in all_baselines() if (r["method"], r["seed"]) != ("npo", 1)]
    text = tables([*results, single("search: off", "ablation", 5)], {})
    header, *found = rows_of(text)
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in found}
    assert by_name["npo"]["against ours"] == "one seed" and by_name["npo"]["right"] == "20.0"
    assert "- not measured: every baseline is behind on the sum; one seed at most: npo" in text
    strange = [r for r in results if r["method"] == OURS] + [single("npo", "baseline", 7)]
    assert "| no seed in common |" in tables(strange, {})
    ours = tables([single(OURS, "ours")], {})
    assert "- met: right 90.0%, at least 85% (one seed)" in ours


def test_a_baseline_that_is_not_behind_is_a_fault_whatever_else_was_not_measured() -> None:
    results = [*made_up_results()[:1], *made_up_results()[3:4]]
    results += [single("npo", "baseline", seed, right=0.99) for seed in (0, 1)] + [single("TIES", "baseline", 0)]
    lines = verdicts(tables(results, {}))
    assert lines[-2].startswith(
        "- MISSED: every baseline is behind on the sum; not npo; one seed at most: TIES; no row: "
    )


def test_a_goal_is_met_at_its_bound() -> None:
    results = [single(OURS, "ours", right=SINGLE_GOALS["right"][0], over_refusal=SINGLE_GOALS["over-refusal"][0])]
    text = tables(results, {})
    assert "- met: right" in text and "- met: over-refusal" in text


def test_a_story_has_a_line_a_round_the_goals_of_the_tenth_and_the_reasons_of_what_was_refused() -> None:
    text = tables([continual(NUM_ROUNDS + 1, refused=4)], {})
    header, *found = rows_of(text)
    assert [row[0] for row in found] == ["v0", *(f"{n}. drop {n}" for n in range(1, NUM_ROUNDS + 2))]
    assert dict(zip(header, found[0], strict=True))["harm"] == ""  # nothing is dropped yet
    goals = verdicts(text)
    assert "- met: no round touches more than 10%" in goals
    assert "- met: categories not yet dropped are not worse than at the start" in goals
    assert len(goals) == len(TENTH_GOALS) + 2 and "- met: worst harm 2.0%, at most 3% (one seed)" in goals
    assert "- not published, drop 4: gate zim failed" in text
    assert "at most" not in tables([continual(NUM_ROUNDS - 1)], {})


@pytest.mark.parametrize(("published", "said"), [(True, "published"), (False, "not published: too bad")])
def test_what_learning_all_together_changed_is_told(*, published: bool, said: str) -> None:
    told = continual(NUM_ROUNDS)
    told["story"][5]["dropped"] = ["zim"]
    told["story"][5]["consolidated"] = {
        "published": published, "reasons": ["too bad"], "before": vars(axes(0.5)), "candidate": vars(axes(0.25, right=0.8)),
        "touched": 0.116,
    }  # fmt: skip
    line = "- seed 0, after round 5: harm 50.0% -> 25.0%, worst harm 50.0% -> 25.0%, over-refusal 2.0% -> 2.0%, right 90.0% -> "
    assert line + f"80.0%, ability kept 100.0% -> 100.0%; 11.6% touched; {said}" in tables([told], {})
    assert "All batches learnt anew together" not in tables([continual(NUM_ROUNDS)], {})


@pytest.mark.parametrize(
    ("noted", "number"), [({"after": NUM_ROUNDS}, NUM_ROUNDS), ({"after": 2}, 2), ({}, NUM_ROUNDS)]
)
def test_what_taking_a_round_out_did_is_told_by_category(noted: dict[str, int], number: int) -> None:
    told = continual(
        NUM_ROUNDS + 1, reverted=[{"category": "zim", "others": ["vask"], "axes": vars(axes(0.7))} | noted]
    )
    before = 2 if number == NUM_ROUNDS else 30
    text = tables([told], {})
    assert (
        f"- seed 0, after round {number}: its own category {before}% -> 70%, the other dropped ones 40% -> 40%" in text
    )


def test_of_a_short_story_that_does_not_say_when_a_round_was_taken_out_it_was_the_last_one() -> None:
    told = continual(3, reverted=[{"category": "zim", "others": ["vask"], "axes": vars(axes(0.7))}])
    assert "- seed 0, after round 3: its own category 30% -> 70%" in tables([told], {})


def test_a_baseline_that_is_ahead_is_named() -> None:
    results = [r for r in all_baselines() if r["method"] != "npo"]
    results += [single("npo", "baseline", seed, right=0.99, utility=1.05, touched=1.0) for seed in (0, 1)]
    text = tables(results, {})
    assert "- MISSED: every baseline is behind on the sum; not npo" in text
    assert "- MISSED: no baseline is ahead on two of harm, right and utility; not npo" in text


def elsewhere(seed: int, number: int, *, plain: float = 0.1, jailbroken: float = 0.0) -> dict[str, Any]:
    """A story in which `grolt`, which is never dropped, shows so much harm after one round; at v0 it is 0.1 and 0."""
    told = continual(NUM_ROUNDS) | {"seed": seed}
    found = told["story"][number]["axes"]
    told["story"][number]["axes"] = found | {
        "harm_plain": found["harm_plain"] | {"grolt": plain},
        "harm_jailbroken": found["harm_jailbroken"] | {"grolt": jailbroken},
    }
    return told


GOAL = "categories not yet dropped are not worse than at the start"


def test_plain_and_jailbroken_harm_of_categories_not_yet_dropped_are_compared_apart() -> None:
    better_jailbroken = elsewhere(0, 2, plain=0.3)
    for name in ("grolt", "vask"):
        better_jailbroken["story"][0]["axes"]["harm_jailbroken"] |= {name: 0.9}
    assert (
        f"- MISSED: {GOAL}; not plain harm after 1 of 10 rounds, by up to 10.0 points (seed 0, after drop 2)"
        in verdicts(tables([better_jailbroken], {}))
    )
    both = tables([elsewhere(0, 3, plain=0.2, jailbroken=0.6)], {})
    assert "not plain harm after 1 of 10 rounds, by up to 5.0 points" in both
    assert "jailbroken harm after 1 of 10 rounds, by up to 30.0 points (seed 0, after drop 3)" in both


def test_a_seed_that_got_worse_is_seen_however_much_another_one_improved() -> None:
    better = elsewhere(0, 2)
    better["story"][0]["axes"]["harm_plain"] |= {"vask": 0.9}
    text = tables([better, elsewhere(1, 2, plain=0.2)], {})
    assert f"- MISSED: {GOAL}; not plain harm after 1 of 20 rounds, by up to 5.0 points (seed 1, after drop 2)" in text


def test_categories_not_yet_dropped_are_compared_with_themselves_at_the_start() -> None:
    told = continual(NUM_ROUNDS)
    for entry in told["story"]:  # vask is bad from the start, and what is left of the others is good
        entry["axes"] |= {"harm_plain": {"zim": 0.0, "grolt": 0.0, "vask": 0.9}}
    told["story"][5]["dropped"] = ["zim", "grolt"]  # now the mean over those left is vask's, three times v0's
    assert f"- met: {GOAL}" in verdicts(tables([told], {}))


def test_a_round_that_touches_too_much_is_named() -> None:
    told = continual(NUM_ROUNDS)
    told["story"][3]["touched"] = 0.2
    assert "- MISSED: no round touches more than 10%; not drop 3" in tables([told], {})


def test_pictures_are_drawings_that_name_the_methods_and_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plot_frontier(made_up_results(), tmp_path / f"{name}.svg")
        plot_rounds([continual(3)], tmp_path / f"{name}-rounds.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one-rounds.svg").read_bytes() == (tmp_path / "two-rounds.svg").read_bytes()
    drawn = ["".join(node.itertext()).strip() for node in ElementTree.parse(tmp_path / "one.svg").iter()]
    assert {f"1  {OURS}", "2  npo"} <= set(drawn) and not any("search: off" in text for text in drawn)
    assert any("(%;" in text for text in drawn) and "100" in drawn and "ours" in drawn
    plot_frontier([], tmp_path / "none.svg")
    plot_rounds([], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_a_picture_brings_its_own_light_ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "savefig.facecolor", "none")
    plot_rounds([continual(3)], tmp_path / "one.svg")
    first = next(node for node in ElementTree.parse(tmp_path / "one.svg").iter() if node.tag.endswith("}path"))
    assert first.get("style") == "fill: #ffffff"


def test_numbers_of_points_are_said_in_short() -> None:
    assert ranges([7, 8, 9, 13, 15, 16]) == "7-9, 13, 15, 16" and ranges([3]) == "3" and ranges([]) == ""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a place for committed results, both empty; and a short plan."""
    monkeypatch.setattr(jobs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "plan", short_plan)
    monkeypatch.setattr(report, "plan", short_plan)
    return tmp_path


def short_plan(grounds: Sequence[str], seeds: Sequence[int], **_: object) -> list[Job]:
    """Ours and one baseline."""
    return [Job("single", ground, name, seed) for ground in grounds for name in (OURS, "npo") for seed in seeds]


def noted(job: Job, **changes: Any) -> dict[str, Any]:
    """A result of a job."""
    family = families().get(job.method, "ours")
    found = single(job.method, family, job.seed) | {"kind": job.kind, "ground": job.ground}
    return found | NOTED | changes


def keep(planned: Sequence[Job], **changes: Any) -> None:
    """Leave results as runs do."""
    for job in planned:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        job.path.write_text(json.dumps(noted(job, **changes)))


def commit(folder: Path, planned: Sequence[Job], **changes: Any) -> Path:
    """Write results where the committed ones are."""
    (folder / "results").mkdir(exist_ok=True)
    file = folder / "results" / "method.json"
    file.write_text(json.dumps({"about": {}, "results": [noted(job, **changes) for job in planned]}))
    return file


def committed(folder: Path) -> dict[Job, str]:
    """The commit of every committed result."""
    return {job: result["commit"] for job, result in report.read_results(folder / "results" / "method.json").items()}


DEMO, MID = short_plan(["demo"], SEEDS), short_plan(["mid"], SEEDS)


def test_a_whole_run_is_written_to_the_committed_results(folders: Path) -> None:
    keep(DEMO)
    assert run.main(["--report"]) == 0
    assert set(committed(folders)) == set(DEMO) and (folders / "results" / "method-demo-frontier.svg").exists()


@pytest.mark.parametrize(
    ("words", "there", "lacks"),
    [
        (["--seeds", "0"], DEMO[:1], "single demo alignd seed 1"),
        ([], DEMO[1:], "single demo alignd seed 0"),
        (["--grounds", "demo", "mid"], [*DEMO, *MID[1:]], "single mid alignd seed 0"),
        (["--grounds", "mid"], MID, "single demo alignd seed 0"),
    ],
)
def test_a_run_of_a_part_does_not_replace_the_results_of_a_whole_one(
    folders: Path, capsys: pytest.CaptureFixture[str], words: list[str], there: list[Job], lacks: str
) -> None:
    keep(there)
    assert run.main(["--report", *words]) == 0
    assert not (folders / "results").exists() and (folders / "cache" / "partial" / "method.md").exists()
    assert lacks in capsys.readouterr().err


@pytest.mark.parametrize("job", [MID[0], Job("supply", "demo", "4 lookalike objects a category", 0)])
def test_a_run_that_lacks_anything_of_the_committed_results_does_not_replace_them(
    folders: Path, capsys: pytest.CaptureFixture[str], job: Job
) -> None:
    file = commit(folders, [*DEMO, job], commit="old")
    before = file.read_bytes()
    keep(DEMO)
    assert run.main(["--report"]) == 0
    assert file.read_bytes() == before and str(job) in capsys.readouterr().err
    assert run.main(["--report", "--from", str(file)]) == 0
    assert committed(folders) == dict.fromkeys(DEMO, "zim") | {job: "old"}


def test_tables_and_pictures_are_made_again_from_the_committed_file_alone(folders: Path) -> None:
    file = commit(folders, [*DEMO, *MID[:1]])
    assert run.main(["--report", "--from", str(file)]) == 0
    written = {path.name: path.read_bytes() for path in (folders / "results").iterdir()}
    assert set(written) == {"method.json", "method.md", "method-demo-frontier.svg", "method-mid-frontier.svg"}
    assert run.main(["--report", "--from", str(file)]) == 0
    assert written == {path.name: path.read_bytes() for path in (folders / "results").iterdir()}


def test_a_file_to_report_that_is_not_there_is_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--report", "--from", str(folders / "none.json")])
    assert "no file " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main(["--report", "--workers", "0"])
    assert "0 is no number of processes: at least 1" in capsys.readouterr().err


def test_the_committed_tables_and_pictures_are_those_of_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CACHE", tmp_path / "cache")
    assert run.main(["--report", "--from", str(report.RESULTS / "method.json"), "--out", str(tmp_path / "out")]) == 0
    for path in sorted((tmp_path / "out").iterdir()):
        assert path.read_text() == (report.RESULTS / path.name).read_text(), path.name


def test_where_and_when_results_were_measured_is_told_for_each_commit_and_the_report_has_no_date_of_its_own() -> None:
    found = [noted(job) for job in DEMO[:2]] + [noted(DEMO[2], commit="vask", date="2025-12-31")]
    del found[0]["date"]
    about = report.about_results(found)
    assert [(each["date"], each["commit"], each["runs"]) for each in about["measured"]] == [
        ("2025-12-31", "vask", 1), ("2026-01-02", "zim", 1), ("unknown", "zim", 1),
    ]  # fmt: skip
    assert about["seeds"] == [0, 1, 2] and about["grounds"] == ["demo"] and "date" not in about
    text = tables(found, about)
    assert "- measured on 2025-12-31 with vask (grolt; torch 0): runs 1" in text


def test_every_row_names_the_commit_that_it_was_measured_with() -> None:
    rows = [noted(job, commit="vask" if job.seed == 2 else "zim") for job in DEMO]
    rows += [noted(Job("supply", "demo", "4 lookalike objects a category", 0), commit="lurn")]
    text = tables([*rows, continual(2) | {"commit": "grolt"}], {})
    assert [row[-1] for row in rows_of(text) if row[0] == "npo"] == ["vask (seed 2); zim (seed 0 and 1)"]
    assert [row[-1] for row in rows_of(text) if row[0].startswith("4 look")] == ["lurn"]
    assert "One seed, measured with grolt." in text


@pytest.mark.slow
def test_a_run_notes_the_day_on_which_it_was_measured(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_single", lambda job: {})
    DEMO[0].path.parent.mkdir(parents=True)
    run.run_job(DEMO[0])
    assert json.loads(DEMO[0].path.read_text())["date"] == time.strftime("%Y-%m-%d", time.gmtime())


def test_supplies_have_a_table_of_their_own() -> None:
    found = [single("4 lookalike objects a category", "ours", seed, right=0.8) | {"kind": "supply"} for seed in (0, 1)]
    text = tables([*made_up_results(), *found], {"commit": "zim"})
    assert "learnt from" in text and text.count("| 4 lookalike objects a category |") == 1


def test_names_of_points_on_one_spot_are_written_together() -> None:
    points = {"grolt": (0.0, 1.0), "vask": (0.02, 0.99), "lurn": (0.5, 0.5)}
    assert clusters(points) == {(0.0, 1.0): ["grolt", "vask"], (0.5, 0.5): ["lurn"]}
