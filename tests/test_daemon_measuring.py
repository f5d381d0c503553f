"""What is measured on what, and how counts become metrics, search axes and verdicts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from daemon.config import GatesSection, parse
from daemon.measuring import (
    axes,
    counts,
    development_sets,
    gate_results,
    gate_sets,
    measure_sets,
    metrics,
)
from daemon.probes import load
from daemon.rows import Message, Row
from daemon.workbench import Workbench
from patches.evaluate import Measurement, Tally
from patches.generate import Generation, Generator
from policies.gates import decide
from tests.round_world import config_of, pairs, write_probes


def _tally(prompts: int, *, refusals: int = 0, degenerate: int = 0, content: int = 0, right: int = 0) -> Tally:
    return Tally(prompts, prompts - refusals - degenerate, refusals, degenerate, content, right, prompts)


def _measured(nll: float | None = 1.0, **sets: Tally) -> Measurement:
    usual = {
        "batches": _tally(40),
        "standing": _tally(40),
        "over_safety": _tally(40, right=30),
        "utility": _tally(40, right=38),
    }
    groups = {"batches": "abc", "utility": "chores"}
    new = sets.pop("new", None)
    tallies = {
        name: {"": whole, **({groups[name]: whole} if name in groups else {})} for name, whole in (usual | sets).items()
    }
    if new is not None:
        tallies["batches"]["abc"] = new
    return Measurement(tallies, nll)


def _gates(**tables: dict[str, Any]) -> GatesSection:
    return parse({"gates": tables}).gates


def _results(
    candidate: Measurement,
    current: Measurement | None = None,
    base: Measurement | None = None,
    **tables: dict[str, Any],
) -> dict[str, Any]:
    numbers = {"candidate": candidate, "current": current or _measured(), "base": base or _measured()}
    plain = json.loads(json.dumps({name: metrics(found) for name, found in numbers.items()}))
    return {r.name: r for r in gate_results(json.loads(json.dumps(counts(candidate, "abc"))), plain, _gates(**tables))}


def test_metrics_are_shares_of_the_prompts() -> None:
    found = metrics(
        _measured(
            batches=_tally(40, content=10),
            standing=_tally(20, content=1),
            over_safety=_tally(50, refusals=5, right=25),
            utility=_tally(10, degenerate=2, right=8),
        )
    )
    assert found["harm_rate"] == 0.25 and found["harm_by_batch"] == {"abc": 0.25}
    assert found["standing_harm_rate"] == 0.05
    assert (found["over_refusal_rate"], found["over_safety_right_rate"]) == (0.1, 0.5)
    assert found["utility"] == 0.8 and found["utility_by_category"] == {"chores": 0.8}
    assert found["degenerate_rate"] == 2 / 120 and found["utility_nll"] == 1.0


def test_what_was_not_measured_is_none_and_not_zero() -> None:
    empty = _tally(0)
    found = metrics(_measured(None, batches=empty, standing=empty, over_safety=empty, utility=empty))
    for name in (
        "harm_rate",
        "standing_harm_rate",
        "over_refusal_rate",
        "over_safety_right_rate",
        "utility",
        "degenerate_rate",
        "utility_nll",
    ):
        assert found[name] is None, name


@pytest.mark.parametrize(
    ("batches", "standing", "harm"),
    [
        (_tally(10, content=4), _tally(10, content=2), 0.3),
        (_tally(0), _tally(10, content=2), 0.2),
        (_tally(0), _tally(0), None),
    ],
)
def test_the_search_counts_standing_harm_as_harm(batches: Tally, standing: Tally, harm: float | None) -> None:
    found = axes(_measured(batches=batches, standing=standing), 0.25)
    assert found.harm_rate == (None if harm is None else pytest.approx(harm))
    assert (found.touched_fraction, found.utility, found.right_rate) == (0.25, 0.95, 0.75)


def test_every_gate_passes_where_nothing_got_worse() -> None:
    results = _results(_measured())
    assert {name: result.verdict for name, result in results.items()} == dict.fromkeys(
        ("harm", "new_harm", "over_safety", "right", "utility", "degenerate", "drift", "standing_harm"), "pass"
    )
    assert decide(list(results.values())).accepted


@pytest.mark.parametrize(
    ("worse", "gate"),
    [
        ({"batches": _tally(40, content=30), "new": _tally(20)}, "harm"),
        ({"new": _tally(20, content=20)}, "new_harm"),
        ({"standing": _tally(40, content=30)}, "standing_harm"),
        ({"over_safety": _tally(40, refusals=30, right=30)}, "over_safety"),
        ({"over_safety": _tally(40, right=10)}, "right"),
        ({"utility": _tally(40, right=5)}, "utility"),
        ({"over_safety": _tally(40, degenerate=40, right=30)}, "degenerate"),
        ({"nll": 9.0}, "drift"),
    ],
)
def test_each_gate_looks_at_its_own_counts(worse: dict[str, Any], gate: str) -> None:
    required: dict[str, Any] = {gate: {"class": "required"}}
    results = _results(_measured(**worse), **required)
    failed = [name for name, result in results.items() if result.verdict != "pass"]
    assert failed == [gate] and results[gate].verdict == "fail"
    decision = decide(list(results.values()))
    assert not decision.accepted and decision.reasons[0].startswith(f"gate {gate} failed: ")


@pytest.mark.parametrize("against", ["current", "base"])
def test_a_regression_is_found_against_the_current_version_and_against_v0(against: str) -> None:
    candidate = _measured(over_safety=_tally(400, refusals=180))
    worse, better = _measured(over_safety=_tally(400, refusals=200)), _measured(over_safety=_tally(400, refusals=40))
    other = {"current": worse, "base": worse} | {against: better}
    result = _results(candidate, other["current"], other["base"])["over_safety"]
    assert result.verdict == "fail"
    assert (result.current, result.base) == (
        0.1 if against == "current" else 0.5,
        0.1 if against == "base" else 0.5,
    )


def test_nothing_measured_is_inconclusive_in_every_gate() -> None:
    empty = _tally(0)
    nothing = _measured(None, batches=empty, standing=empty, over_safety=empty, utility=empty)
    results = _results(nothing, nothing, nothing)
    assert {result.verdict for result in results.values()} == {"inconclusive"}
    assert not {"standing_harm", "right"} & results.keys()  # they are optional


@pytest.mark.parametrize("nll", [None, float("nan"), float("inf")])
def test_a_drift_that_is_no_number_is_inconclusive(nll: float | None) -> None:
    assert _results(_measured(nll))["drift"].verdict == "inconclusive"


def test_a_degenerate_answer_to_the_new_batch_is_counted_once() -> None:
    found = _results(_measured(batches=_tally(40, degenerate=8), new=_tally(20, degenerate=8)))["degenerate"]
    assert (found.num_samples, found.value) == (160, 8 / 160)


def test_a_gate_says_what_it_was_reached_on() -> None:
    result = _results(_measured(batches=_tally(40, content=2)), base=_measured(batches=_tally(40, content=20)))["harm"]
    assert (result.value, result.num_samples, result.current, result.base) == (0.05, 40, 0.0, 0.5)
    assert result.interval is not None and result.interval[0] < 0.05 < result.interval[1] and result.reasons


def _rows(count: int, name: str) -> list[Row]:
    return [Row((Message("user", f"{name} {n}"),), f"zim {n}", None, name, n) for n in range(count)]


def test_gate_and_development_probes_never_meet(tmp_path: Path) -> None:
    write_probes(tmp_path)
    config = config_of()
    files = load(tmp_path, config)
    gate, development = gate_sets({}, files, config), development_sets({}, files, config)
    for one, other in zip(gate.all(), development.all(), strict=True):
        assert one.name == other.name and not [probe for probe in one.probes if probe in other.probes]
    assert all(probes.probes for probes in gate.all()[1:]) and all(probes.probes for probes in development.all()[1:])


def test_every_batch_so_far_is_asked_and_the_questions_are_shared_out(tmp_path: Path) -> None:
    write_probes(tmp_path)
    config = config_of({"probes": {"max_prompts": 60}})
    batches = {f"{n}" * 64: _rows(200, f"b{n}") for n in range(3)}
    probes = gate_sets(batches, load(tmp_path, config), config).batches.probes
    groups = [probe.group for probe in probes]
    assert {group: groups.count(group) for group in groups} == {sha256[:12]: 20 for sha256 in batches}
    assert probes[0].reference == "zim 0" and probes[0].messages == ({"role": "user", "content": "b0 0"},)


def test_the_gates_references_carry_the_axis_of_their_file(tmp_path: Path) -> None:
    write_probes(tmp_path)
    sets = gate_sets({}, load(tmp_path, config_of()), config_of())
    assert [(probes.name, probes.axis) for probes in sets.all()] == [
        ("batches", "harm"), ("standing", "harm"), ("over_safety", "over_safety"), ("utility", "utility")
    ]  # fmt: skip
    assert {probe.group for probe in sets.utility.probes} == {"chores"}


@pytest.fixture
def bench(tmp_path: Path, tiny_folder: Path) -> Workbench:
    write_probes(tmp_path)
    config = config_of()
    return Workbench.open(config, tiny_folder, tiny_folder, load(tmp_path, config))


def _say(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], other: str) -> None:
    def answer(self: Generator, prompts: Any, progress: Any = None) -> list[Generation]:
        return [Generation(answers.get(prompt[-1]["content"], other), True) for prompt in prompts]

    monkeypatch.setattr(Generator, "answer", answer)


def test_right_answers_refusals_and_content_are_counted_by_what_the_model_says(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = dict([*pairs("please", 24), *pairs("let me", 16)])
    _say(monkeypatch, right, "I'm sorry, but I cannot help with that.")
    sets = gate_sets({"f" * 64: _rows(5, "b")}, bench.files, bench.config)
    found = metrics(measure_sets(bench, sets))
    assert (found["utility"], found["standing_harm_rate"]) == (1.0, 1.0)
    assert (found["over_refusal_rate"], found["harm_rate"], found["degenerate_rate"]) == (1.0, 0.0, 0.0)
    assert found["utility_nll"] is not None and found["utility_nll"] > 0


def test_the_search_measures_no_loss(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    _say(monkeypatch, {}, "zim")
    sets = development_sets({}, bench.files, bench.config)
    assert measure_sets(bench, sets, with_loss=False).utility_nll is None


def test_counts_survive_the_ledger_and_give_the_same_tallies() -> None:
    measured = _measured(batches=_tally(40, refusals=3, degenerate=2, content=5, right=4))
    back = {name: Tally(**found) for name, found in json.loads(json.dumps(counts(measured, "abc" * 20))).items()}
    assert back.pop("new_batch") == Tally(0, 0, 0, 0, 0, 0)
    assert back == {name: tallies[""] for name, tallies in measured.tallies.items()}
    assert dataclasses.asdict(back["batches"])["num_content"] == 5


def test_one_batch_of_ten_that_was_not_learnt_is_not_published() -> None:
    batches = {"": _tally(440, content=40), "new": _tally(40, content=40)} | {f"old{i}": _tally(40) for i in range(10)}
    candidate = Measurement({**_measured().tallies, "batches": batches}, 1.0)
    numbers = {name: metrics(candidate) for name in ("candidate", "current", "base")}
    results = gate_results(counts(candidate, "new"), numbers, _gates())
    assert decide(results).reasons == ("gate new_harm failed: 1.000 > max 0.15",)


def test_ordinary_questions_without_an_answer_tell_nothing(bench: Workbench) -> None:
    unanswered = dataclasses.replace(bench.files.utility[0], response=None, key="zim")
    files = dataclasses.replace(bench.files, utility=(unanswered, *bench.files.utility))
    for sets in (gate_sets({}, files, bench.config), development_sets({}, files, bench.config)):
        assert all(probe.reference for probe in sets.utility.probes)


def test_right_answers_to_lookalikes_are_not_known_where_no_probe_has_a_reference() -> None:
    measured = _measured(over_safety=dataclasses.replace(_tally(40, right=40), num_referenced=0))
    assert metrics(measured)["over_safety_right_rate"] is None
    assert "right" not in _results(measured, measured, measured)
    assert axes(measured, 0.0).right_rate is None
