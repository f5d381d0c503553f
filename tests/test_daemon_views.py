"""What `--json` prints, and what people see of it."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from daemon import explain, live, render, render_show, render_steps, views
from daemon.status_view import Standing, status_view
from daemon.steps import STEPS
from daemon.terminal import Style, width
from state.rows import BatchRow, ControlRow, RoundRow, VersionRow

AT = "2026-01-31T12:05:00+00:00"
BASE = VersionRow(0, None, "base", None, None, AT)
V1 = VersionRow(
    1, 0, "published", "b" * 64, "r000001", AT, metrics={"harm_rate": 0.25, "right_rate": 0.5}, touched_fraction=0.03
)
BATCH = BatchRow("b" * 64, "glim\x1b[2J.jsonl", 1, "published", AT, 1500, 1, "drop-1")
ROUND = RoundRow("r000002", "batch", "b" * 64, None, 1, "running", "parse", AT, artefacts={"parse": {"rows": 3}})
GATE = {
    "name": "harm",
    "klass": "required",
    "verdict": "fail",
    "value": 0.25,
    "interval": (0.2, 0.3),
    "num_samples": 100,
    "current": 0.3,
    "base": None,
    "reasons": ("0.250 > max 0.1",),
}


def standing(**changes: Any) -> Standing:
    return replace(Standing(current=V1, previous=BASE, num_versions=2), **changes)


def test_every_version_has_the_three_axes_null_where_not_measured() -> None:
    listed = views.history_view([V1, BASE], views.Names(current=1))
    assert [view["id"] for view in listed] == ["v0", "v1"]
    assert listed[0]["metrics"] == {"harm_rate": None, "over_refusal_rate": None, "utility": None}
    assert listed[1]["metrics"] == {"harm_rate": 0.25, "over_refusal_rate": None, "utility": None, "right_rate": 0.5}


def test_a_version_has_the_promised_fields() -> None:
    names = views.Names(1, {"b" * 64: "glim.jsonl"}, {1: ["good"]}, {"r000001": "every gate passed"})
    assert views.version_view(V1, names) == {
        "id": "v1",
        "parent": "v0",
        "state": "published",
        "batch": "b" * 64,
        "batch_name": "glim.jsonl",
        "round": "r000001",
        "created": AT,
        "metrics": {"harm_rate": 0.25, "over_refusal_rate": None, "utility": None, "right_rate": 0.5},
        "touched_fraction": 0.03,
        "current": True,
        "blocked": False,
        "pinned": False,
        "imported": False,
        "tags": ["good"],
        "reason": "every gate passed",
        "takes_out": None,
        "consolidated": False,
    }


def test_values_that_json_lacks_become_null_or_text() -> None:
    value = views.plain({1: math.nan, "b": (math.inf, 2.0, None, True), "c": {"d": {3}}})
    assert value == {"1": None, "b": [None, 2.0, None, True], "c": {"d": [3]}}
    json.dumps(value, allow_nan=False)


def test_status_has_the_promised_fields_and_nulls_when_nothing_happens() -> None:
    view = status_view(standing())
    assert {key: view[key] for key in ("current", "previous", "candidate", "held", "hold", "round", "queue")} == {
        "current": "v1",
        "previous": "v0",
        "candidate": None,
        "held": False,
        "hold": None,
        "round": None,
        "queue": [],
    }
    assert view["service"] == {"running": False, "pid": None, "state": None, "message": "", "page": None}
    assert set(view) >= {"paused", "inbox", "quarantine", "disk", "problems"}


def test_status_of_the_base_has_what_the_newest_round_measured_on_it() -> None:
    found = status_view(standing(current=BASE, base_metrics={"harm_rate": 0.75}))
    assert found["metrics"]["harm_rate"] == 0.75


def test_status_tells_who_holds_and_why() -> None:
    view = status_view(standing(held=ControlRow("held", "worse answers", "ann", AT)))
    assert view["held"] is True
    assert view["hold"] == {"reason": "worse answers", "actor": "ann", "since": AT}


def test_a_round_that_goes_on_says_after_which_step_and_is_not_at_none_of_it() -> None:
    told = {"round": "r000002", "step": None, "fraction": 0.0, "eta_s": None, "loss": None, "steps_done": ["parse"]}
    view = status_view(standing(running=ROUND, progress=told, service_pid=7))["round"]
    assert (view["step"], view["fraction"], view["interrupted"]) == (None, None, False)
    assert render.round_text(view, Style()).endswith("  going on after parse")
    new = status_view(standing(running=replace(ROUND, step="", artefacts={}), service_pid=7))["round"]
    assert (new["step"], render.round_text(new, Style()).endswith("  starting")) == (None, True)


def test_a_running_round_with_a_long_name_is_told_in_one_line() -> None:
    told = {"round": "r000002", "step": "over_safety", "fraction": 0.5, "eta_s": 3599, "loss": 12.345}
    busy = standing(running=ROUND, progress=told, service_pid=7, batch_names={"b" * 64: "n" * 150})
    lines = render.status_lines(status_view(busy), Style())
    assert max(map(width, lines)) <= 80
    assert any("nn…" in line and "over_safety" in line and "loss 12.345" in line for line in lines)


def test_long_names_in_the_queue_leave_it_short() -> None:
    waiting = [replace(BATCH, sha256=f"{at}" * 64, name="n" * 150) for at in range(5)]
    lines = render.status_lines(status_view(standing(queued=waiting)), Style())
    (at,) = [place for place, line in enumerate(lines) if line.startswith("queue")]
    assert "5: nnn" in lines[at] and "and 2 more" in lines[at] + lines[at + 1]


def test_progress_of_another_round_is_not_shown() -> None:
    told = {"round": "r000002", "step": "derive", "fraction": 0.5, "eta_s": 10, "loss": 1.0, "steps_done": ["parse"]}
    now = status_view(standing(running=ROUND, progress=told))["round"]
    assert (now["step"], now["fraction"], now["steps_done"]) == ("derive", 0.5, ["parse"])
    late = status_view(standing(running=ROUND, progress=told | {"round": "r000001"}))["round"]
    assert (late["step"], late["fraction"], late["steps_done"]) == ("parse", None, ["parse"])


def test_a_revert_ends_with_its_version_or_with_the_reason_why_there_is_none() -> None:
    revert = replace(
        ROUND, id="r000003", kind="revert", batch=None, target=1, state="rejected", reason="gate harm failed"
    )
    view = views.request_ending_view(replace(revert, version=None))
    assert (view["name"], view["state"], view["reason"], view["versions"]) == (
        "revert of v1",
        "rejected",
        "gate harm failed",
        [],
    )
    view = views.request_ending_view(replace(revert, state="published", version=4))
    assert (view["reason"], view["versions"]) == ("", ["v4"])


def test_what_waits_is_told_with_every_reason_whole() -> None:
    revert = replace(ROUND, id="r000003", kind="revert", batch=None, target=1, state="queued")
    reasons = ["paused (the GPU is needed until noon); `alignd resume` goes on", "v2 waits for approval"]
    told = [views.waiting_view(row, reasons) for row in (revert, replace(BATCH, state="running"))]
    assert [(view["state"], view["reason"]) for view in told] == [
        ("queued", "; ".join(reasons)),
        ("interrupted", "; ".join(reasons)),
    ]
    assert (told[0]["id"], told[0]["name"], told[1]["id"]) == ("r000003", "revert of v1", BATCH.sha256)
    lines = render.endings_lines(told, Style())
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()).count(f"waits: {'; '.join(reasons)}") == 2


def test_the_queue_lists_reverts_before_batches() -> None:
    revert = replace(ROUND, id="r000003", kind="revert", batch=None, target=1, state="queued")
    view = status_view(standing(waiting_rounds=[revert], queued=[BATCH]))
    assert [item["kind"] for item in view["queue"]] == ["revert", "batch"]


def test_gates_are_found_wherever_a_round_recorded_them() -> None:
    view = views.round_view(replace(ROUND, artefacts={"evaluate": {"result": {"gates": [GATE]}}}))
    assert view["gates"][0]["verdict"] == "fail"
    assert (view["gates"][0]["low"], view["gates"][0]["high"]) == (0.2, 0.3)


def test_touched_entries_are_summed_by_layer_in_the_order_of_layers() -> None:
    counts = {"model.layers.10.mlp.up": 1, "model.layers.2.mlp.up": 2, "model.layers.2.attn.q": 3, "lm_head": 4}
    assert list(explain.touched_by_layer(counts).items()) == [
        ("layer 2", 5),
        ("layer 10", 1),
        (explain.OUTSIDE_LAYERS, 4),
    ]


def test_a_delta_needs_both_sides() -> None:
    deltas = views.metrics_delta({"harm_rate": 0.5, "utility": math.nan}, {"harm_rate": 0.25, "utility": 1.0, "x": 1})
    assert deltas == {"harm_rate": -0.25, "over_refusal_rate": None, "utility": None, "x": None}


def test_the_history_of_a_person_fits_80_columns() -> None:
    row = replace(V1, state="rolled_back", blocked=True, pinned=True, metrics=dict.fromkeys(views.AXES, 1.0))
    names = views.Names(0, {"b" * 64: "a-batch-with-a-really-long-name.parquet"}, {1: ["release-candidate"]})
    lines = render.history_lines(views.history_view([BASE, row], names), Style())
    assert max(map(width, lines)) <= 80
    assert lines[1].startswith("*")


def test_notes_are_whole_also_at_80_columns() -> None:
    row = replace(V1, blocked=True, pinned=True, state="awaiting_approval")
    names = views.Names(0, {"b" * 64: "a-batch-with-a-really-long-name.parquet"}, {1: ["release-candidate"]})
    lines = render.history_lines(views.history_view([BASE, row], names), Style())
    assert lines[-1] == "    blocked pinned @release-candidate" and "NOTE" not in lines[0]
    short = replace(row, state="published", pinned=False)
    lines = render.history_lines(views.history_view([BASE, short], views.Names(0, {"b" * 64: "glim.jsonl"})), Style())
    assert lines[0].endswith("TOUCHED  NOTE") and lines[-1].endswith("3.0%  blocked")
    batch = replace(BATCH, state="rejected", reason="gate harm failed: " + "0.250 > max 0.1; " * 9)
    lines = render.batches_lines([views.batch_view(batch, [1])], Style())
    assert max(map(width, lines)) <= 80
    assert lines[2].startswith("    gate harm failed: 0.250 > max 0.1; ") and lines[2].endswith("…")


def test_nothing_a_person_sees_carries_control_characters() -> None:
    told = {"round": "r000002", "step": "derive", "fraction": 0.5, "eta_s": 9, "loss": 1.25}
    busy = standing(running=ROUND, progress=told, service_pid=7, queued=[BATCH], batch_names={"b" * 64: BATCH.name})
    lines = render.status_lines(status_view(busy), Style())
    lines += render.batches_lines([views.batch_view(BATCH, [1])], Style())
    lines += render_show.batch_lines(views.batch_view(BATCH, [1]), Style())
    assert not any("\x1b" in line for line in lines)
    assert any("50%" in line and "loss 1.250" in line for line in lines)


def test_a_gate_is_shown_with_interval_and_reason() -> None:
    text = "\n".join(render_show.gates_lines(views.gates_view([GATE]), Style()))
    assert "25.0%  20.0 .. 30.0" in text
    assert "harm: 0.250 > max 0.1" in text


def test_long_details_are_counted_and_not_printed() -> None:
    lines = render_steps.other_lines({"a": {str(i): i for i in range(100)}, "num_b": list(range(50))}, Style())
    assert lines == ["a  100 values, 0 to 99", "b  50 values, 0 to 49"]
    many = render_steps.other_lines({str(i): i for i in range(100)}, Style())
    assert (len(many), many[-1]) == (41, "and 60 more (`--json` shows all)")


STATS = {
    "num_records": 9, "num_rows": 6, "num_train": 3, "num_dev": 1, "num_gate": 2, "warnings": ["openings only"],
    "dropped": {"marked_safe": 2, "long_prompt": 1}, "dropped_at": {"long_prompt": "a.csv, row 3; a.csv, row 4"},
    "files": [{"name": "a.csv", "format": "csv", "compression": "gzip", "signature": "plain", "rows": 9}],
}  # fmt: skip


def test_a_batch_and_a_round_are_told_in_words_and_not_in_keys() -> None:
    row = replace(ROUND, artefacts={"parse": STATS, "teach": {"num_batch": 3, "num_new_kind": 4}, "evaluate": {}})
    view = views.round_view(row) | explain.derivation(row.artefacts, row.kind)
    text = "\n".join(render_show.batch_lines(views.batch_view(replace(BATCH, stats=STATS)), Style()))
    for shown in (text, "\n".join(render_show.round_lines(view, Style()))):
        assert "9 read, 6 usable" in shown and "3 to learn from, 1 to search on, 2 to judge on" in shown
        assert "2 marked safe; 1 whose prompt does not fit the model's context" in " ".join(shown.split())
        assert "(first: a.csv, row 3, a.csv, row 4)" in " ".join(shown.split())
        assert "a.csv: 9 rows, plain (csv in gzip)" in shown and "openings only" in shown
        assert "num_" not in shown and "_at" not in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["new", "kind", "4"] in rows and ["of", "the", "batch,", "or", "of", "all", "together", "3"] in rows


def test_the_live_view_marks_steps_done_running_and_to_come() -> None:
    round_ = {"steps_done": ["parse"], "step": "derive", "fraction": 0.5, "eta_s": 65, "loss": 2.0}
    lines = live.step_lines(round_, ["parse", "derive", "merge"], {"derive": [3.0, 2.0]}, Style())
    assert lines[0].split() == ["✓", "parse"]
    assert "50%" in lines[1]
    assert "1m 05s left  loss 2.000  █▁" in lines[1]
    assert lines[2].split() == ["·", "merge"]


def test_a_line_is_printed_when_a_step_moves_on_by_a_tenth() -> None:
    def frame(fraction: float) -> dict[str, Any]:
        told = {"round": "r000002", "step": "derive", "fraction": fraction}
        return status_view(standing(running=ROUND, progress=told))

    assert live.change_key(frame(0.50)) == live.change_key(frame(0.55))
    assert live.change_key(frame(0.50)) != live.change_key(frame(0.61))


def test_the_base_shows_what_the_newest_round_measured_on_it() -> None:
    listed = views.history_view([BASE, V1], views.Names(1, base_metrics={"harm_rate": 0.75}))
    assert [view["metrics"]["harm_rate"] for view in listed] == [0.75, 0.25]


def test_grouped_metrics_are_compared_group_by_group() -> None:
    before, after = {"harm_by_batch": {"glim": 0.5}}, {"harm_by_batch": {"glim": 0.25, "zorp": 0.1}}
    deltas = views.metrics_delta(before, after)
    assert (deltas["harm_by_batch.glim"], deltas["harm_by_batch.zorp"]) == (-0.25, None)
    text = "\n".join(render_show.metrics_lines(after, {"v0": deltas}, Style()))
    assert "harm by batch glim  25.0%  -25.0" in text


def test_a_round_shows_its_candidate_against_what_it_was_measured_with() -> None:
    numbers = {"candidate": {"harm_rate": 0.1}, "current": {"harm_rate": 0.3}, "base": {"harm_rate": 0.6}}
    row = replace(ROUND, artefacts={"gate": {"gates": [GATE]}, "parse": {"rows": 3}, "evaluate": numbers})
    view = views.round_view(row) | explain.derivation(row.artefacts, row.kind)
    assert view["steps"] == ["parse", "evaluate", "gate"]
    text = "\n".join(render_show.round_lines(view, Style()))
    assert "harm rate  10.0%       -20.0    -50.0" in text


def test_the_steps_shown_are_those_of_the_round_in_its_order() -> None:
    trees = [ast.parse((Path(live.__file__).parent / name).read_text()) for name in ("round.py", "making.py")]
    functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}

    def steps_of(name: str) -> list[str]:
        calls = [node for node in ast.walk(functions[name]) if isinstance(node, ast.Call)]
        done = [
            call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == "done" and call.args
        ]
        return [ast.literal_eval(call.args[0]) for call in sorted(done, key=lambda call: call.lineno)]

    parse, merge = steps_of("_batch")
    assert [parse, *steps_of("make_patch"), merge, *steps_of("_judge")] == list(STEPS["batch"])
    assert [*steps_of("_revert"), *steps_of("_judge")] == list(STEPS["revert"])
