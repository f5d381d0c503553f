"""How a version came to be, read out of its record, and what `show` makes of it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from daemon import explain, render_made, render_version, views
from daemon.terminal import Style, width
from policies.gates import Share, wilson
from policies.search import Axes, Weights, score
from state.rows import PointerRow, VersionRow

AT = "2026-01-31T12:05:00+00:00"
MEASURED: dict[str, dict[str, Any]] = {
    "candidate": {"harm_rate": 0.1, "over_refusal_rate": 0.2, "utility": 1.0},
    "current": {"harm_rate": 0.3, "over_refusal_rate": 0.2, "utility": 0.9},
    "base": {"harm_rate": 0.9, "over_refusal_rate": None, "utility": 1.0},
}
GATES = [
    {"name": name, "klass": klass, "verdict": "pass", "value": 0.1, "interval": (0.0, 0.2), "num_samples": num, **more}
    for name, klass, num, more in (
        ("harm", "required", 20, {"reasons": ("0.100 <= max 0.1", "0.100 <= current version 0.300 + 0.03")}),
        ("over_safety", "wanted", 10, {"reasons": ("0.200 <= v0 0.500 + 0.02",)}),
        ("utility", "required", 50, {"reasons": ("1.000 >= v0 1.000 - 0.05",)}),
    )
]
POINT = {"alpha": 1.0, "beta": 0.8, "safety_fraction": 0.3, "over_safety_fraction": 0.3, "retention_rate": 1.0}
STEPS: dict[str, Any] = {
    "gate": {"accepted": True, "reasons": ["every gate passed"]},
    "mask": {
        "safety_sizes": {f"m.layers.{at}.q.weight": 0.1 * at for at in range(1, 4)},
        "over_safety_sizes": {"m.layers.1.q.weight": 0.2},
        "overlap": {},
    },
    "search": {
        "winner": {"point": POINT, "axes": {"harm_rate": 0.0}, "score": 2.9},
        "reasons": ["score 2.900; 2 merges were tried"],
        "num_trials": 2,
        "trials": [
            {"point": {**POINT, "beta": 1.0}, "axes": {"harm_rate": 0.1}, "score": 2.8},
            {"point": POINT, "axes": {"harm_rate": 0.0}, "score": 2.9},
        ],
    },
    "teach": {"num_batch": 30, "losses_of_nothing": []},
    "safety": {
        "steps": 9,
        "stop_reason": "all 9 steps done",
        "start_loss": 0.5,
        "end_loss": 6.0,
        "losses": [0.5, 6.0],
        "terms": {"batch": 1},
    },
    "over_safety": {
        "steps": 0,
        "stop_reason": "nothing is left to loosen",
        "start_loss": 0.0,
        "end_loss": 0.0,
        "losses": [],
        "terms": {},
    },
    "mend": {"steps": 3, "stop_reason": "stop_loss 1", "start_loss": 2.0, "end_loss": 1.0, "losses": [2.0, 1.5, 1.0]},
}
RECORD: dict[str, Any] = {
    "gates": GATES,
    "measured": MEASURED,
    "steps": STEPS,
    "touched": {
        "num_entries": 60,
        "fraction": 0.06,
        "per_tensor": {"m.layers.0.q.weight": 10, "m.layers.1.q.weight": 20, "m.layers.1.k.weight": 30},
    },
}


def of_axes(record: dict[str, Any]) -> dict[str, Any]:
    found = explain.axes(record, MEASURED["candidate"], {"v0": MEASURED["base"], "parent": MEASURED["current"]})
    return {axis["axis"]: axis for axis in found}


def test_axes_have_the_wilson_intervals_of_the_same_probes() -> None:
    harm = of_axes(RECORD)["harm_rate"]
    assert [harm[who]["value"] for who in ("v0", "parent", "this")] == [0.9, 0.3, 0.1]
    for who, hits in (("v0", 18), ("parent", 6), ("this", 2)):
        assert (harm[who]["low"], harm[who]["high"]) == wilson(Share(hits, 20))
        assert harm[who]["num_samples"] == 20
    assert of_axes(RECORD)["over_refusal_rate"]["v0"] == {"value": None, "low": None, "high": None, "num_samples": None}


def test_what_was_measured_in_another_round_has_no_interval() -> None:
    harm = of_axes({"gates": GATES})["harm_rate"]
    assert harm["this"]["low"] is not None
    assert (harm["parent"]["value"], harm["parent"]["low"]) == (0.3, None)


def test_the_base_has_one_column() -> None:
    assert [set(axis) for axis in explain.axes({}, {}, {})] == [{"axis", "this"}] * 3


def test_every_step_with_losses_is_a_training_in_the_order_of_the_round() -> None:
    found = explain.derivation(STEPS, "batch")["trainings"]
    assert [training["step"] for training in found] == ["over_safety", "safety", "mend"]
    assert found[1]["losses"] == [0.5, 6.0]
    assert found[2]["terms"] == {}


def test_the_winner_of_the_search_is_found_among_the_trials() -> None:
    found = explain.derivation(STEPS, "batch")["search"]
    assert (found["winner"], found["num_trials"], found["point"]["beta"]) == (1, 2, 0.8)


def test_sets_are_summarised_and_empty_ones_left_out() -> None:
    safety, over = explain.derivation(STEPS, "batch")["sets"]
    assert (safety["num"], safety["min"], safety["median"], safety["max"]) == (3, 0.1, 0.2, pytest.approx(0.3))
    assert over["name"] == "over-safety set"
    overlapping = {**STEPS["mask"], "overlap": {"m.layers.1.q.weight": 0.5}}
    assert [found["name"] for found in explain.derivation({"mask": overlapping}, "batch")["sets"]][2:] == ["overlap"]


def test_sets_are_told_by_layer_with_the_entries_that_they_hold() -> None:
    mask = {
        "safety_sizes": {"m.layers.0.q.weight": 0.5, "m.layers.0.k.weight": 0.1, "m.layers.1.q.weight": 0.2},
        "over_safety_sizes": {"m.layers.0.q.weight": 0.25},
        "overlap": {"m.layers.0.q.weight": 0.3, "m.layers.0.k.weight": 0.1, "m.layers.1.q.weight": 0.0},
    }
    num_entries = {"m.layers.0.q.weight": 100, "m.layers.0.k.weight": 300, "m.layers.1.q.weight": 100}
    found = explain.derivation({"mask": mask}, "batch", num_entries=num_entries)["sets_by_layer"]
    first, second = ({name: tuple(held.values()) for name, held in layer["sets"].items()} for layer in found)
    assert first == {
        "safety set": (pytest.approx(80 / 400), 80),
        "over-safety set": (0.25, 25),
        "overlap": (pytest.approx(60 / 400), None),
    }
    assert second == {"safety set": (0.2, 20), "overlap": (0.0, None)}
    lines = render_made.layer_lines(found, Style())
    assert lines[0].split("  ")[0] == "LAYER" and re.search(r"layer 0 +80  20\.0% +25  25\.0% +15\.0%", lines[1])
    assert re.search(r"layer 1 +20  20\.0% +- +0\.0%", lines[2])
    unsized = explain.derivation({"mask": mask}, "batch")["sets_by_layer"][0]["sets"]["safety set"]
    assert unsized == {"fraction": pytest.approx(0.3), "num_marked": None}


def test_sets_that_hold_nothing_are_not_told_layer_by_layer() -> None:
    empty = {"safety_sizes": {"m.layers.0.q.weight": 0.0}, "over_safety_sizes": {"m.layers.0.q.weight": 0.0}}
    layers = explain.derivation({"mask": empty}, "batch", num_entries={"m.layers.0.q.weight": 9})["sets_by_layer"]
    assert layers and render_made.layer_lines(layers, Style()) == []


def test_of_many_layers_those_that_hold_most_are_shown_in_their_order() -> None:
    sizes = {f"m.layers.{at}.q.weight": (at % 7) / 10 for at in range(12)}
    layers = explain.derivation({"mask": {"safety_sizes": sizes}}, "batch")["sets_by_layer"]
    lines = render_made.layer_lines(layers, Style())
    assert [line.split()[1] for line in lines[1:-1]] == ["4", "5", "6", "11"]
    assert lines[-1] == "and 8 more that hold less (`--json` shows all)"


CONFIG = {
    "merge": {
        "search": {
            "harm_weight": 1.0,
            "over_refusal_weight": 1.0,
            "utility_weight": 2.0,
            "degenerate_weight": 3.0,
            "touched_weight": 0.05,
        }
    }
}


def test_the_formula_of_a_score_gives_the_score() -> None:
    weights = explain.derivation(STEPS, "batch", config=CONFIG)["search"]["weights"]
    axes = Axes(0.1, 0.2, 0.9, 0.95, 0.01, 0.3)
    naive = sum(weight * getattr(axes, axis) for axis, weight in weights.items()) + 1.0 + 1.0 / 2
    assert naive == pytest.approx(score(axes, Weights(1.0, 1.0, 2.0, 3.0, 0.05)))
    assert render_made.formula_text(weights) == (
        "1.5 - harm - 0.5 over-refusal + 0.5 right answers to lookalikes + 2 utility - 3 degenerate answers "
        "- 0.05 touched"
    )
    assert explain.derivation(STEPS, "batch")["search"]["weights"] == {}


@pytest.mark.parametrize("columns", [60, 78, 120])
def test_the_merges_that_were_tried_are_a_table_that_fits_and_marks_the_winner(columns: int) -> None:
    names = [field.name for field in dataclasses.fields(Axes)]
    trials = [
        {
            "point": {name: value + at / 100 for name, value in POINT.items()},
            "axes": dict.fromkeys(names, 0.5),
            "score": (at * 7) % 11 / 10,
        }
        for at in range(10)
    ]
    found = {"winner": trials[3], "trials": trials, "num_trials": 10, "reasons": ["because"]}
    search = explain.derivation({"search": found}, "batch")["search"]
    lines = render_made.trial_lines(search, Style(columns=columns))
    assert max(map(width, lines)) <= columns
    assert [line.split()[0] for line in lines[1:-1]] == ["1", "2", "*", "5", "7", "10"]
    assert lines[3].split()[:3] == ["*", "4", "1.000"]
    assert lines[-1] == "and 4 more that scored less (`--json` shows all)"


def test_a_revert_and_the_base_have_no_derivation() -> None:
    assert explain.derivation({"evaluate": {}, "gate": {}}, "revert") == {
        "trainings": [],
        "search": None,
        "sets": [],
        "sets_by_layer": [],
    }
    assert explain.touched({}) is None


def test_touched_entries_are_spread_over_layers() -> None:
    found = explain.touched(RECORD)
    assert found is not None
    assert found["by_layer"] == {"layer 0": 10, "layer 1": 50}
    assert (found["num_tensors"], found["min"], found["median"], found["max"]) == (3, 10, 30, 50)


def test_a_grid_has_a_row_a_kind_and_a_column_a_layer() -> None:
    kinds, layers, rows = explain.layer_grid(
        {"m.layers.10.q.weight": 0.1, "m.layers.2.q.weight": 0.2, "m.layers.2.k.weight": 0.3}
    )
    assert (kinds, layers) == (["q", "k"], ["layer 2", "layer 10"])
    assert rows == [[0.2, 0.1], [0.3, None]]


ARRIVAL = PointerRow(3, 2, 1, "publish", "service", "", AT)


def test_why_tells_how_it_was_made_judged_and_brought_into_service() -> None:
    told = explain.why(
        "published", STEPS, kind="revert", arrival=asdict(ARRIVAL), taken_out="v1", reasons=["wrong batch"]
    )
    assert told == [
        "the patch of v1 was taken out and the others merged again, without training",
        "every gate passed",
        "published by service",
        "wrong batch",
    ]


def test_why_does_not_say_a_reason_twice() -> None:
    arrival = asdict(replace(ARRIVAL, action="promote", actor="ann", reason="false alarm"))
    told = explain.why("published", {}, arrival=arrival, taken_out=None, reasons=["false alarm", "worse", "worse"])
    assert told == ["promoted by ann: false alarm", "worse"]


def test_the_base_was_made_by_no_round() -> None:
    assert "no round made it" in explain.why("base", {}, arrival=None, taken_out=None, reasons=[])[0]


def test_groups_are_told_by_who_they_were_measured_on() -> None:
    record = {"measured": {"candidate": {"harm_by_batch": {"b1": 0.1}}, "base": {"harm_by_batch": {"b1": 0.9}}}}
    assert explain.harm_by_batch(record, {"b1": "glim.jsonl"}) == [
        {"group": "b1", "name": "glim.jsonl", "v0": 0.9, "parent": None, "this": 0.1}
    ]
    assert explain.utility_by_category({}) == []


def shown(columns: int, **changes: Any) -> list[str]:
    """Lines of a version, v1's child."""
    row = VersionRow(2, 1, "published", "b" * 64, "r000002", AT, metrics=MEASURED["candidate"], touched_fraction=0.06)
    view = views.version_view(row, views.Names(2, {"b" * 64: "glim\x1b[2J.jsonl"})) | {
        "lineage": ["v2", "v1", "v0"],
        "model": None,
        "gates": views.gates_view(GATES),
        "axes": list(of_axes(RECORD).values()),
        "judge": "rule 0123456789ab",
        "why": explain.why("published", STEPS, arrival=asdict(ARRIVAL), taken_out=None, reasons=[]),
        **explain.derivation(STEPS, "batch"),
        "touched": explain.touched(RECORD),
        "source": None,
        **changes,
    }
    return render_version.version_lines(view, Style(columns=columns))


@pytest.mark.parametrize("columns", [80, 120])
def test_a_version_explains_itself_within_the_terminal_and_on_about_a_screen(columns: int) -> None:
    lines = shown(columns)
    text = "\n".join(lines)
    assert max(map(width, lines)) <= columns
    assert len(lines) <= 60
    assert "every gate passed; published by service" in text
    assert "harm rate          90.0% (70 .. 97)" in text
    assert "gates: 3 of 3 passed, 2 of 2 required ones" in text
    assert "0.5 -> 6" in text and "the safety patch forgets, so that its loss rises" in text
    assert "over_safety ended by: nothing is left to loosen" in text
    assert "alpha 1, beta 0.8" in " ".join(text.split())
    assert "`alignd report v2`, `alignd diff v1 v2`" in text
    assert not any("\x1b" in line for line in lines)


def test_the_parent_is_not_shown_twice_when_it_is_v0() -> None:
    titles = next(line for line in shown(80, parent="v0") if line.lstrip().startswith("AXIS"))
    assert titles.split() == ["AXIS", "V0", "V2"]


def test_a_training_without_steps_has_no_loss_to_show() -> None:
    lines = render_made.training_lines(explain.derivation(STEPS, "batch")["trainings"], Style())
    assert lines[1].split() == ["over_safety", "0", "-"]


def test_the_rows_of_a_consolidation_are_those_of_all_batches() -> None:
    steps = {"gather": {"num_batches": 3, "num_train": 40}, "teach": {"num_batch": 40}}
    assert explain.rows_of({"steps": steps}) == {"num_batches": 3, "num_train": 40, "num_batch": 40}
