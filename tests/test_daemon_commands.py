"""The commands on real stores with a tiny model."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon import cli, commands_show, exitcodes, live, submit, web_facts
from daemon.command import Context, service_file_of
from daemon.config import InboxSection
from daemon.spool import entry_name
from daemon.unit import render_unit
from state import durable, gc, lock
from state.checked import Checked
from state.store import Store
from state.verify import parts
from tests.command_world import Alignd, usable_base
from tests.fakes_service import WAIT_S
from tests.state_world import (
    NOW,
    begin,
    consolidate,
    content,
    drop,
    hold,
    learn,
    make_version,
    prepare,
    without_papers,
    write_model,
)

ROOT = Path(__file__).resolve().parent.parent
WHO: Any = {"actor": "tester", "now": NOW}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return usable_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def alignd(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    home = tmp_path / "home"
    assert cli.main(["init", "--no-trial", str(home), "--model", str(base)]) == 0
    return Alignd(home, capsys)


@pytest.fixture
def store(alignd: Alignd) -> Iterator[Store]:
    with Store.open(alignd.home) as opened:
        yield opened


@pytest.fixture
def two(store: Store) -> Store:
    make_version(store, 1)
    make_version(store, 2)
    return store


# init


def test_init_makes_a_home_whose_history_shows_the_base(alignd: Alignd, base: Path) -> None:
    assert {path.name for path in alignd.home.iterdir()} >= {"service.toml", "inbox", "probes", "quarantine", "store"}
    versions = alignd.json("history")
    assert [(view["id"], view["parent"], view["state"], view["current"]) for view in versions] == [
        ("v0", None, "base", True)
    ]
    assert alignd.json("config", "show")["model"]["base"] == str(base)


def test_init_says_what_to_put_where(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--no-trial", str(tmp_path / "h"), "--model", str(base)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("probes/over_safety.jsonl", "probes/utility.jsonl", "retain.jsonl", "doctor"))


def test_init_names_a_model_inside_the_home_relative_to_it(tmp_path: Path, base: Path) -> None:
    write_model(tmp_path / "h" / "base")
    (tmp_path / "h" / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert cli.main(["init", "--no-trial", str(tmp_path / "h"), "--model", str(tmp_path / "h" / "base")]) == 0
    assert 'base = "base"' in (tmp_path / "h" / "service.toml").read_text()


def test_init_again_changes_nothing(alignd: Alignd, base: Path) -> None:
    before = content(alignd.home)
    code, out, err = alignd("init", "--no-trial", str(alignd.home), "--model", str(base))
    assert (code, out) == (exitcodes.FAILED, "")
    assert "already" in err
    assert content(alignd.home) == before


def spoil_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")


def spoil_remote_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "m.M"}}')


def spoil_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def spoil_weights(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\xc0\x7f")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_pickle, "pytorch_model.bin"),
        (spoil_remote_code, "code"),
        (spoil_template, "chat template"),
        (spoil_tokenizer, "tokenizer"),
        (spoil_weights, "layer.1.weight"),
    ],
)
def test_init_refuses_an_unusable_model_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, said: str
) -> None:
    folder = write_model(tmp_path / "base")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    spoil(folder)
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(folder)]) == exitcodes.CONFIG
    assert said in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_init_that_fails_half_way_leaves_a_folder_as_it_was(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "home" / "probes").mkdir(parents=True)
    (tmp_path / "home" / "probes" / "utility.jsonl").write_text("kept")
    monkeypatch.setattr(Store, "create", fail)
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(base)]) == exitcodes.FAILED
    assert list(content(tmp_path / "home")) == ["probes/utility.jsonl"]


def test_init_without_a_terminal_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/somewhere\n"))
    assert cli.main(["init", "--no-trial", str(tmp_path / "home")]) == exitcodes.USAGE


# seeing


def test_history_lists_oldest_first_with_the_promised_fields(alignd: Alignd, two: Store) -> None:
    versions = alignd.json("log")
    assert [view["id"] for view in versions] == ["v0", "v1", "v2"]
    newest = versions[-1]
    assert newest["metrics"] == {"harm_rate": 0.1, "over_refusal_rate": None, "utility": None}
    assert (newest["batch_name"], newest["touched_fraction"], newest["current"]) == ("batch2.jsonl", 0.02, True)
    assert [view["id"] for view in alignd.json("history", "--limit", "1")] == ["v2"]
    assert [view["id"] for view in alignd.json("history", "--state", "base")] == ["v0"]
    assert alignd.json("history", "--since", "2999") == []
    made = NOW.replace("Z", "")
    later, same = made.replace("03:04", "05:04"), made.replace("03:04", "05:04") + "+02:00"
    assert [len(alignd.json("history", "--since", when)) for when in (made, later, same)] == [3, 1, 3]
    assert max(map(len, alignd.text("history").splitlines())) <= 80


def test_status_of_a_quiet_home_is_healthy(alignd: Alignd, two: Store) -> None:
    view = alignd.json("status")
    assert (view["current"], view["previous"], view["held"], view["round"], view["queue"]) == (
        "v2",
        "v1",
        False,
        None,
        [],
    )
    assert view["problems"] == []
    assert view["disk"]["free_bytes"] > 0


def test_status_shows_the_running_round_and_its_progress(alignd: Alignd, store: Store) -> None:
    round_id = begin(store, 1)
    (alignd.home / "run").mkdir()
    told = {"round": round_id, "step": "safety", "fraction": 0.25, "eta_s": 60, "loss": 1.5, "steps_done": ["parse"]}
    (alignd.home / "run" / "progress.json").write_text(json.dumps(told))
    with lock.hold(store.service_lock, "alignd run"):
        view = alignd.json("status")
        assert view["service"]["running"] is True
        assert (view["round"]["id"], view["round"]["step"], view["round"]["fraction"]) == (round_id, "safety", 0.25)
        assert "25%" in alignd.text("status")
    interrupted = alignd.json("status", code=exitcodes.DEGRADED)
    assert interrupted["round"]["fraction"] is None
    assert any("interrupted" in problem for problem in interrupted["problems"])


def test_a_round_without_its_service_is_shown_as_interrupted(alignd: Alignd, store: Store) -> None:
    round_id = begin(store, 1)
    start = f"{round_id}  batch1.jsonl  "
    with lock.hold(store.service_lock, "alignd run"):
        assert f"{start}starting" in alignd.text("status")
        assert alignd.text("show", round_id).startswith(f"{round_id}  running")
        assert "  running\n" in alignd.text("show", "batch1.jsonl")
    assert f"{start}interrupted\n" in alignd.text("status", code=exitcodes.DEGRADED)
    store.finish_step(round_id, "parse", {})
    assert f"{start}interrupted after parse\n" in alignd.text("status", code=exitcodes.DEGRADED)
    assert alignd.text("show", round_id).startswith(f"{round_id}  interrupted")
    assert "  interrupted\n" in alignd.text("show", "batch1.jsonl")
    view = alignd.json("show", round_id)
    assert (view["state"], view["interrupted"]) == ("running", True)


def test_status_is_degraded_when_current_is_not_what_the_ledger_says(alignd: Alignd, two: Store) -> None:
    two.current_link.unlink()
    two.current_link.symlink_to("v0")
    assert any("points to v0" in problem for problem in alignd.json("status", code=exitcodes.DEGRADED)["problems"])


def test_status_survives_broken_settings_and_says_so(alignd: Alignd) -> None:
    (alignd.home / "service.toml").write_text("nonsense = ")
    assert any("TOML" in problem for problem in alignd.json("status", code=exitcodes.DEGRADED)["problems"])


def test_watching_without_a_terminal_prints_a_line_per_change(alignd: Alignd, two: Store) -> None:
    context = Context(service_file_of(str(alignd.home)))
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            two.pause(reason="x", **WHO)

    out = io.StringIO()
    live.watch(context, two, out=out, sleep=sleep, num_frames=4)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert "v2" in lines[0]
    assert "paused" in lines[1]
    assert sleeps == [0.25] * 3


def test_a_reader_of_the_watch_that_leaves_is_no_error(alignd: Alignd) -> None:
    command = f"{sys.executable} -m daemon -c {alignd.home} --json status --watch | head -c 10; exit ${{PIPESTATUS[0]}}"
    watching = subprocess.Popen(["bash", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    with Store.open(alignd.home) as store:
        while watching.poll() is None and time.monotonic() < deadline:
            store.pause(reason="x", **WHO)
            time.sleep(2 * live.REFRESH_S)  # long enough to be seen; only a change is written and finds nobody there
            store.resume(**WHO)
            time.sleep(2 * live.REFRESH_S)
    assert watching.communicate(timeout=WAIT_S)[1] == ""
    assert watching.returncode == 0


def test_watching_on_a_terminal_draws_steps_and_versions(alignd: Alignd, store: Store) -> None:
    begin(store, 1)
    frame = live.frame_of(Context(service_file_of(str(alignd.home))), store, live.newest_versions(store))
    text = "\n".join(live.frame_lines(frame, Context(Path()).style))
    assert "batch1.jsonl" in text
    assert "* v0" in text


def test_show_tells_a_version_a_round_and_a_batch_apart(alignd: Alignd, two: Store) -> None:
    version = alignd.json("show", "current")
    assert version["lineage"] == ["v2", "v1", "v0"]
    assert version["touched_by_layer"] == {"outside the layers": version["record"]["touched"]["num_entries"]}
    assert version["record"]["files"]
    assert alignd.json("show", "r000001")["kind"] == "batch"
    batch = two.ledger.batches()[0]
    shown = alignd.json("show", batch.sha256[:8])
    assert (shown["versions"], shown["rounds"]) == (["v1"], ["r000001"])
    assert "`alignd show r000001` has the last one's gates" in alignd.text("show", batch.sha256[:8])
    assert alignd.json("show", "batch1.jsonl")["sha256"] == batch.sha256
    for ref in ("v2", "base", "r000002", batch.sha256[:8]):
        assert max(map(len, alignd.text("show", ref).splitlines())) <= 160


def test_show_of_nothing_known_is_4_and_names_what_is(alignd: Alignd) -> None:
    code, out, err = alignd("show", "nonsense")
    assert (code, out) == (exitcodes.NOT_FOUND, "")
    assert "known: current" in err and "rounds are called like" in err and "`alignd batches`" in err


def naive_values(folder: Path) -> Any:
    """All BF16 weights of the second shard as float64, read without the code under test."""
    data = (folder / "model-00002-of-00002.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    return (np.frombuffer(data[header:], "<u2").astype("<u4") << 16).view("<f4").astype(float)


def test_diff_counts_what_differs_also_when_a_folder_was_collected(alignd: Alignd, two: Store) -> None:
    kept = alignd.json("diff", "base", "v2")
    assert [item["name"] for item in kept["tensors"]] == ["layer.0.weight"]
    before, after = (naive_values(two.model_path(i)) for i in (0, 2))
    assert kept["num_entries"] == int((before != after).sum()) > 0
    assert kept["tensors"][0]["l2"] == pytest.approx(float(np.sqrt(((after - before) ** 2).sum())), rel=1e-6)
    assert kept["tensors"][0]["max_abs"] == float(np.abs(after - before).max())
    assert [item["version"] for item in kept["batches"]] == ["v1", "v2"]
    alignd.json("rollback", "v0")
    alignd.json("gc", "--keep", "0")
    assert not two.is_materialized(2)
    assert alignd.json("diff", "base", "v2") == kept
    assert alignd.json("diff", "v2", "v2")["num_entries"] == 0
    assert not list(alignd.home.glob(".tmp-*"))
    assert "layer.0.weight" in alignd.text("diff", "v1", "v2")


def measured_version(store: Store, seed: int, measured: dict[str, Any]) -> None:
    round_id = begin(store, seed)
    arguments = prepare(store, round_id, seed)
    arguments["record"] |= {"measured": measured, "metrics": measured["candidate"]}
    store.commit_version(round_id, **arguments, state="published", now=NOW)


def test_diff_of_two_versions_is_the_opposite_of_the_diff_the_other_way_round(alignd: Alignd, store: Store) -> None:
    rates = iter(range(1, 10))
    for seed in (1, 2):
        subjects = {who: {"harm_rate": next(rates) / 10} for who in ("candidate", "current", "base")}
        measured_version(store, seed, subjects)
    for pair in (("v0", "v1"), ("v1", "v2"), ("v0", "v2")):
        forth, back = alignd.json("diff", *pair), alignd.json("diff", *pair[::-1])
        assert forth["metrics"]["harm_rate"] == -back["metrics"]["harm_rate"] != 0
        assert (forth["tensors"], forth["num_entries"]) == (back["tensors"], back["num_entries"])
        said = [{(item["has"], item["lacks"], item["batch"]) for item in way["batches"]} for way in (forth, back)]
        assert said[0] == said[1] and {has for has, _, _ in said[0]} == {pair[1]}
        assert {item["change"] for item in forth["batches"]} == {"with"}
        assert {item["change"] for item in back["batches"]} == {"without"}
        shown = {item["name"]: item for item in web_facts.difference(store, *pair)["metrics"]}["harm rate"]
        assert shown["b"] - shown["a"] == pytest.approx(shown["delta"]) == forth["metrics"]["harm_rate"]
    assert alignd.json("diff", "v1", "v2")["metrics"]["harm_rate"] == pytest.approx(0.4 - 0.5)


def test_a_round_that_was_refused_moves_no_figure_of_the_base(alignd: Alignd, store: Store) -> None:
    def measure(seed: int, rate: float) -> str:
        round_id = begin(store, seed)
        store.finish_step(round_id, "evaluate", {"base": {"harm_rate": rate}})
        return round_id

    refused = measure(1, 0.7)
    assert alignd.json("history")[0]["metrics"]["harm_rate"] == 0.7, "nothing else was measured"
    store.end_round(refused, "rejected", reason="worse", now=NOW)
    made = measure(2, 0.5)
    store.commit_version(made, **prepare(store, made, 2), state="published", now=NOW)
    store.end_round(measure(3, 0.9), "rejected", reason="worse", now=NOW)
    assert alignd.json("history")[0]["metrics"]["harm_rate"] == 0.5


def reverted(store: Store, target: int) -> None:
    """The version that a revert makes; what it changes is of no matter here."""
    row = store.request_revert(f"v{target}", reason="mislabelled", **WHO)
    store.begin_queued(row.id, config={}, now=NOW)
    arguments = prepare(store, row.id, 9)
    arguments["record"]["kind"] = "revert"
    store.commit_version(row.id, **arguments, state="published", now=NOW)


def test_diff_names_the_batches_that_one_has_and_the_other_has_not(alignd: Alignd, two: Store) -> None:
    reverted(two, 2)  # v3
    make_version(two, 4)  # v4
    batch = {row.name: f"{row.name} ({row.sha256[:12]})" for row in two.ledger.batches()}

    def said(*pair: str) -> list[str]:
        lines: list[str] = alignd.text("diff", *pair).splitlines()
        return [line.strip() for line in lines if line.startswith("  only in")]

    assert said("v1", "v3") == said("v3", "v1") == []  # v2's batch was taken out again
    assert said("v2", "v4") == [f"only in v2: {batch['batch2.jsonl']}", f"only in v4: {batch['batch4.jsonl']}"]
    assert sorted(said("v4", "v2")) == sorted(said("v2", "v4"))
    assert said("v0", "v3") == [f"only in v3: {batch['batch1.jsonl']}, since v1"]
    assert "(-)" not in alignd.text("diff", "v2", "v3")


def test_batches_are_learnt_together_when_somebody_asks(alignd: Alignd, store: Store) -> None:
    learn(store, 1)
    code, _, err = alignd("consolidate")
    assert code == exitcodes.REFUSED and "v1 was made from 1 batch: there is nothing to learn together" in err
    learn(store, 2)
    code, out, err = alignd("consolidate", "--reason", "before the audit")
    assert code == 0 and "it learns all batches of v2 anew, together" in out and "`alignd run` does the round" in err
    assert alignd.json("status")["queue"][0]["kind"] == "consolidation"
    assert "1: consolidation" in alignd.text("status")
    assert alignd.json("audit")[-1]["details"]["reason"] == "before the audit"


def test_history_and_show_say_that_all_were_learnt_together(alignd: Alignd, store: Store) -> None:
    for seed in (1, 2):
        learn(store, seed)
    version = consolidate(store)
    assert [row["consolidated"] for row in alignd.json("history")] == [False, False, False, True]
    assert alignd.text("history").splitlines()[-1].endswith("all batches together")
    told = " ".join(alignd.text("show", version.name).split())
    assert "all batches were learnt anew, together, in place of one after another" in told


def test_a_revert_of_what_was_learnt_together_says_that_it_trains(alignd: Alignd, store: Store) -> None:
    for seed in (1, 2):
        learn(store, seed)
    consolidate(store)
    learn(store, 3)
    assert "it takes v1 out and learns all other batches anew, together" in alignd.text("revert", "v1")
    assert "it takes v4 out and merges the other rounds again" in alignd.text("revert", "v4")
    assert "it takes v2 out and learns all other batches anew" in alignd.text("revert", "v2", "--anew")
    assert "learns the others anew; reverted by hand" in " ".join(alignd.text("audit").split())
    assert "3: revert of v1, revert of v4, revert of v2" in alignd.text("status")


@pytest.mark.parametrize(("state", "is_trouble"), [("rejected", False), ("aborted", False), ("failed", True)])
def test_a_consolidation_that_gains_nothing_is_no_trouble(
    alignd: Alignd, store: Store, state: Any, *, is_trouble: bool
) -> None:
    from daemon.commands_run import _is_unpublished, endings

    for seed in (1, 2):
        learn(store, seed)
    asked = store.request_consolidation(reason="", **WHO)
    store.begin_queued(asked.id, config={}, now=NOW)
    store.end_round(asked.id, state, reason="worse", now=NOW)
    ending = endings(Context(alignd.home / "service.toml"))[asked.id]
    assert (ending["name"], ending["state"], ending["reason"]) == ("consolidation", state, "worse")
    assert _is_unpublished(ending) is is_trouble


def test_history_says_what_a_revert_took_out(alignd: Alignd, two: Store) -> None:
    reverted(two, 2)
    assert alignd.json("history")[-1]["takes_out"] == "v2"
    assert alignd.text("history").splitlines()[-1].endswith("takes v2 out")


def test_a_dropped_duplicate_is_found_and_names_what_it_repeats(alignd: Alignd, two: Store) -> None:
    for name in ("late.csv", "again.csv"):
        two.claim_batch(drop(two, "zorp 1\n", name), name=name, **WHO)
    known = two.find_batch("batch1.jsonl").sha256
    view = alignd.json("show", "late.csv")
    assert (view["sha256"], view["duplicate"]) == (known, {"name": "late.csv", "at": NOW})
    assert [again["name"] for again in view["duplicates"]] == ["late.csv", "again.csv"]
    text = alignd.text("show", "late.csv")
    assert text.startswith(f"late.csv is a duplicate of batch1.jsonl ({known[:12]}):\n")
    assert "late.csv 2026-01-02 03:04, again.csv 2026-01-02 03:04" in alignd.text("show", "batch1.jsonl")
    assert "v1; also dropped as late.csv, again.csv" in alignd.text("batches")
    assert alignd.json("show", "batch1.jsonl")["duplicate"] is None
    code, _, err = alignd("retry", "late.csv")
    assert code == exitcodes.NOT_FOUND
    assert f"late.csv was a duplicate of batch1.jsonl ({known[:12]}), which is published" in err


def test_show_finds_a_drop_that_never_became_a_batch(alignd: Alignd, store: Store) -> None:
    store.set_aside(drop(store, "zorp", "link"), name="link", reason="link is a symbolic link", **WHO)
    assert alignd.json("show", "link")["reason"] == "link is a symbolic link"
    assert "link is a symbolic link" in alignd.text("show", "link")


def test_the_base_has_no_intervals_and_its_title_promises_none(alignd: Alignd, store: Store) -> None:
    measured = {who: {"harm_rate": 0.5} for who in ("candidate", "current", "base")}
    measured_version(store, 1, measured)
    store.finish_step(store.ledger.rounds()[0].id, "evaluate", measured)
    text = alignd.text("show", "v0")
    assert "\naxes\n" in text and "harm rate" in text and "95 %" not in text


def test_a_report_goes_into_a_folder_under_the_name_of_its_version(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    assert alignd.json("report", "v1", "--out", str(tmp_path / "pages"))["path"] == str(tmp_path / "pages" / "v1.html")
    assert "<html" in (tmp_path / "pages" / "v1.html").read_text()
    (tmp_path / "pages" / "v1.html").write_text("a page of my own")
    code, _, err = alignd("report", "v1", "--out", str(tmp_path / "pages"))
    assert "there already" in err and "--force overwrites" in err
    assert code == exitcodes.FAILED and (tmp_path / "pages" / "v1.html").read_text() == "a page of my own"
    assert alignd("report", "v1", "--out", str(tmp_path / "pages"), "--force")[0] == exitcodes.OK
    assert "<html" in (tmp_path / "pages" / "v1.html").read_text()
    (tmp_path / "pages" / "v2.html").mkdir()
    code, _, err = alignd("report", "v2", "--out", str(tmp_path / "pages"))
    assert (code, f"{tmp_path / 'pages' / 'v2.html'} is a folder" in err) == (exitcodes.FAILED, True)
    code, _, err = alignd("report", "v2", "--out", str(tmp_path / "none" / "x.html"))
    assert (code, f"{tmp_path / 'none'} is no folder" in err) == (exitcodes.FAILED, True)
    assert not list((tmp_path / "pages").glob(".*"))


def test_each_state_has_one_word_in_every_view(alignd: Alignd, two: Store) -> None:
    two.rollback("v1", reason="worse", **WHO)
    two.resume(**WHO)
    make_version(two, 3, state="awaiting_approval")
    states = {view["id"]: view["state"] for view in alignd.json("history")}
    assert (states["v2"], states["v3"]) == ("rolled_back", "awaiting_approval")
    for words in (["history"], ["batches"], ["show", "v2"], ["show", "v3"], ["report", "v3", "--out", "-"]):
        text = alignd.text(*words)
        assert "rolled back  " not in text and "waiting" not in text.replace("awaiting_approval", "")
        assert "rolled_back" in text or "awaiting_approval" in text
    assert max(map(len, alignd.text("history").splitlines())) <= 80


def test_audit_lists_and_checks_the_chain(alignd: Alignd, two: Store) -> None:
    alignd.json("rollback", "--reason", "worse")
    newest = alignd.json("audit", "--limit", "1")[0]
    assert newest["details"]["reason"] == "worse"
    assert "worse" in alignd.text("audit")
    assert alignd.json("audit", "--verify")["ok"] is True
    path = two.audit_path
    path.write_text(path.read_text().replace("worse", "better"))
    assert alignd.json("audit", "--verify", code=exitcodes.INTEGRITY)["findings"]


def test_batches_lists_what_came_of_each(alignd: Alignd, two: Store) -> None:
    listed = alignd.json("batches")
    assert [(view["name"], view["state"], view["versions"]) for view in listed] == [
        ("batch1.jsonl", "published", ["v1"]),
        ("batch2.jsonl", "published", ["v2"]),
    ]
    assert alignd.json("batches", "--state", "queued") == []
    assert alignd.text("batches", "--state", "queued") == "no batch is queued\n"
    assert alignd.text("history", "--state", "rejected") == "no such version\n"
    assert "batch2.jsonl" in alignd.text("batches")


@pytest.mark.parametrize("entries", [[], [{"MESSAGE": "zorp"}, {"MESSAGE": "glim"}]])
def test_logs_in_json_are_one_document(
    alignd: Alignd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list[dict[str, str]]
) -> None:
    journal = tmp_path / "journalctl"
    journal.write_text("#!/bin/sh\n" + "".join(f"echo '{json.dumps(entry)}'\n" for entry in entries))
    journal.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(commands_show, "BOOTED", tmp_path)
    assert alignd.json("logs") == entries


@pytest.mark.parametrize("is_booted", [True, False])
def test_logs_without_systemd_say_where_the_log_is(
    alignd: Alignd, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_booted: bool
) -> None:
    monkeypatch.setattr(commands_show, "BOOTED", tmp_path if is_booted else tmp_path / "missing")
    if is_booted:
        monkeypatch.setenv("PATH", str(tmp_path))  # without journalctl
    code, out, err = alignd("logs")
    assert (code, out) == (exitcodes.FAILED, "")
    assert ("journalctl is not installed" if is_booted else "systemd does not run here") in err
    assert "what `alignd run` writes to stderr; `alignd run 2> alignd.log` keeps it" in err
    held = (
        "import time; from pathlib import Path; from state import lock\n"
        f"with lock.hold(Path({str(store.service_lock)!r}), 'alignd run'): print(1, flush=True); time.sleep(60)"
    )
    log = tmp_path / "my service.log"
    with log.open("w") as stderr:
        service = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT)
    try:
        assert service.stdout is not None and service.stdout.readline() == b"1\n"
        assert alignd("logs")[2].rstrip().endswith(f"stderr, here {log}; `tail -f '{log}'`")
    finally:
        service.kill()
        service.communicate()


# deciding


def test_rollback_prints_before_and_after_and_holds(alignd: Alignd, two: Store) -> None:
    data = alignd.json("rollback", "v0", "--reason", "worse")
    assert data == {
        "before": "v2",
        "after": "v0",
        "blocked": ["v2", "v1"],
        "held": True,
        "reason": "worse",
        "replicas": [],
    }
    view = alignd.json("status")
    assert (view["current"], view["held"], view["hold"]["reason"]) == ("v0", True, "worse")
    assert two.current_link.readlink().name == "v0"


def test_rollback_names_what_it_left_behind_and_nothing_else(alignd: Alignd, two: Store) -> None:
    alignd.json("rollback", "v1")
    alignd.json("resume")
    make_version(two, 3)  # on v1; v2 stays blocked from before
    make_version(two, 4)
    alignd.json("promote", "v2", "--force", "--reason", "false alarm")
    data = alignd.json("rollback", "v4")
    assert (data["blocked"], [row.name for row in two.ledger.versions() if row.blocked]) == (["v2"], ["v2"])
    data = alignd.json("rollback", "v0")
    assert data["blocked"] == ["v4", "v3", "v1"]
    assert "blocked: v4, v3, v1" not in alignd.text("status")
    assert all(row.blocked for row in two.ledger.versions() if row.id)


def test_the_hint_of_a_refused_approval_is_a_command_that_is_taken(alignd: Alignd, store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2, state="awaiting_approval")
    alignd.json("reject", "--reason", "no")

    def hinted(command: str, *words: str) -> list[str]:
        code, _, err = alignd(*words)
        assert code == exitcodes.REFUSED, err
        found = [text for text in re.findall(r"`alignd ([^`]+)`", err) if text.startswith(command)]
        return str(found[0]).replace("WHY", "x").split()

    assert alignd.json(*hinted("promote", "approve", "v2"))["after"] == "v2"
    assert alignd.json(*hinted("promote", "approve", "v1"))["after"] == "v1"
    alignd.json("rollback", "v0")
    assert alignd.json(*hinted("promote", "approve", "v1"))["after"] == "v1"  # held, and it was left behind
    assert alignd.json(*hinted("promote", "approve", "v0"))["after"] == "v0"  # held


def test_a_candidate_that_was_overtaken_is_refused_with_what_can_be_done(alignd: Alignd, store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2, state="awaiting_approval")
    alignd.json("rollback", "v0")
    assert "alignd resume" in alignd("approve")[2]
    alignd.json("resume")
    code, _, err = alignd("approve")
    assert (code, "v2 was made for v1, but v0 is current by now" in err) == (exitcodes.REFUSED, True)
    commands = re.findall(r"`alignd ([^`]+)`", err)
    alignd.json(*commands[0].split())
    assert alignd.json(*commands[1].split())["state"] == "queued"
    assert alignd.json(*commands[2].replace("WHY", "x").split())["after"] == "v2"


def test_rollback_with_nothing_before_is_refused(alignd: Alignd) -> None:
    assert alignd("rollback")[0] == exitcodes.REFUSED


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["rollback", "v2"], exitcodes.REFUSED, "v2 is in service already; name an earlier version"),
        (["rollback", "current"], exitcodes.REFUSED, "v2 is in service already; name an earlier version"),
        (["revert", "v0"], exitcodes.REFUSED, "v0 is the base: it has no round to take out"),
        (["approve"], exitcodes.NOT_FOUND, "no version waits for approval"),
        (["reject", "candidate"], exitcodes.NOT_FOUND, "no version waits for approval"),
        (["show", "candidate"], exitcodes.NOT_FOUND, "no version waits for approval"),
    ],
)
def test_a_decision_that_has_nothing_to_decide_says_why(
    alignd: Alignd, two: Store, words: list[str], code: int, said: str
) -> None:
    got, _, err = alignd(*words)
    assert (got, err.startswith(f"alignd: {said}")) == (code, True), err


def test_what_is_before_the_base_is_nothing(alignd: Alignd) -> None:
    assert "nothing before v0" in alignd("rollback", "v0")[2]
    code, _, err = alignd("show", "previous")
    assert (code, "no earlier version" in err) == (exitcodes.NOT_FOUND, True)


def test_rollback_needs_no_torch_no_numpy_and_no_settings(alignd: Alignd, two: Store) -> None:
    (alignd.home / "service.toml").write_text("nonsense = ")
    heavy = [
        "torch",
        "transformers",
        "numpy",
        "pyarrow",
        "rich",
        "msgspec",
        "watchdog",
        "structlog",
        "peft",
        "apscheduler",
    ]
    code = (
        f"import sys; [sys.modules.__setitem__(name, None) for name in {heavy}];"
        f"from daemon.cli import main; sys.exit(main(['-c', {str(alignd.home)!r}, 'rollback']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("v2 -> v1")


@pytest.mark.parametrize("words", [["rollback"], ["history"], ["status"], ["resume"]])
def test_hot_commands_import_nothing_heavy(alignd: Alignd, two: Store, words: list[str]) -> None:
    code = (
        f"import sys; from daemon.cli import main; main(['-c', {str(alignd.home)!r}, *{words}]);"
        "bad = {'torch','transformers','numpy','pyarrow','rich','watchdog','structlog'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_resume_lifts_hold_and_pause_and_says_which(alignd: Alignd, two: Store) -> None:
    alignd.json("rollback")
    alignd.json("pause", "--reason", "later")
    assert alignd.json("status")["pause"]["reason"] == "later"
    assert alignd.json("resume") == {"lifted": ["hold", "pause"], "current": "v1"}
    assert alignd.json("resume")["lifted"] == []


def test_the_audit_says_of_a_version_that_it_came_into_service(alignd: Alignd, two: Store) -> None:
    assert "version_committed" in (lines := alignd.text("audit")) and lines.count("published") == 2
    assert "; " not in lines


def test_a_forced_promotion_tells_what_else_comes_back_with_it(alignd: Alignd, two: Store) -> None:
    two.rollback("v0", reason="worse", **WHO)
    code, _, err = alignd("promote", "v2", "--force", "--reason", "x")
    assert code == exitcodes.OK and "holds what v1 learnt too" in err
    assert "learnt too" not in alignd("promote", "v0", "--force", "--reason", "x")[2]


def test_a_forced_promotion_does_not_tell_of_what_a_revert_took_out(alignd: Alignd, two: Store) -> None:
    reverted(two, 1)
    two.rollback("v0", reason="worse", **WHO)
    code, _, err = alignd("promote", "v3", "--force", "--reason", "x")
    assert code == exitcodes.OK and "v3 holds what v2 learnt too, " in err


def test_a_store_without_its_ledger_is_told_from_no_store(alignd: Alignd, two: Store) -> None:
    two.close()
    for path in (alignd.home / "store").glob("ledger.db*"):
        path.unlink()
    for words in (("status",), ("run", "--once")):
        code, out, err = alignd(*words)
        assert code != exitcodes.OK and "restore the ledger from a backup" in " ".join((out + err).split()), words


def same_as_its_parent(store: Store, seed: int) -> None:
    """A version whose round found nothing to change."""
    round_id = begin(store, seed)
    arguments = prepare(store, round_id, seed)
    arguments["record"]["touched"] = {"fraction": 0.0, "num_entries": 0, "per_tensor": {}}
    store.commit_version(round_id, **arguments, state="published", now=NOW)


def test_a_rollback_that_changes_no_weight_says_so_and_names_one_that_would(alignd: Alignd, store: Store) -> None:
    make_version(store, 1)
    same_as_its_parent(store, 2)
    same_as_its_parent(store, 3)
    assert "same weights as v2" in alignd.text("history").splitlines()[-1]
    assert "nothing: the weights are those of v2" in alignd.text("show", "v3")
    _, _, err = alignd("rollback", "v2")
    assert (
        "v2 has the weights of v3, whose round found nothing to change; `alignd rollback v0` goes to the nearest" in err
    )
    assert "has the weights of" not in alignd("rollback", "v0")[2]


def test_a_rollback_names_no_blocked_version_as_the_one_to_go_to(alignd: Alignd, two: Store) -> None:
    two.rollback("v0", reason="worse", **WHO)
    alignd("promote", "v2", "--force", "--reason", "x")  # v1, its parent, stays blocked
    alignd("resume")
    same_as_its_parent(two, 3)
    _, _, err = alignd("rollback", "v2")
    assert "v2 has the weights of v3" in err and "nearest one" not in err


def test_a_promotion_says_that_a_hold_stays_and_leaves_the_round_its_own_reason(alignd: Alignd, two: Store) -> None:
    before = two.round("r000002").reason
    alignd("rollback", "--reason", "a try")
    assert "rolled back: a try" in alignd.text("show", "v2")
    code, _, err = alignd("promote", "v2", "--force", "--reason", "again")
    assert code == exitcodes.OK and "still held (a try): nothing is published until `alignd resume`" in err
    assert two.round("r000002").reason == before != "again"
    assert "promoted by" in alignd.text("show", "v2") and "again" in alignd.text("show", "v2")


def test_promote_of_a_blocked_version_needs_force(alignd: Alignd, two: Store) -> None:
    alignd.json("rollback")
    assert alignd("promote", "v2", "--reason", "x")[0] == exitcodes.REFUSED
    assert alignd.json("promote", "v2", "--force", "--reason", "x") == {"before": "v1", "after": "v2", "replicas": []}


def test_a_switch_to_what_is_in_service_says_so(alignd: Alignd, two: Store) -> None:
    for words in (("approve", "v2"), ("promote", "v2", "--reason", "x")):
        assert alignd.text(*words) == "v2 is in service already\n"


def test_a_candidate_is_approved_or_rejected(alignd: Alignd, store: Store) -> None:
    make_version(store, 1, state="awaiting_approval")
    assert alignd.json("status")["candidate"] == "v1"
    assert alignd.json("reject", "--reason", "no")["state"] == "rejected"
    make_version(store, 2, state="awaiting_approval")
    assert alignd.json("approve")["after"] == "v2"
    assert alignd("approve")[0] == exitcodes.NOT_FOUND


def test_revert_queues_a_round_and_says_that_no_service_runs(alignd: Alignd, two: Store) -> None:
    code, _, err = alignd("revert", "v1")
    assert code == 0
    assert "alignd run" in err
    assert alignd.json("status")["queue"][0]["target"] == "v1"


def test_a_revert_says_which_later_rounds_rest_on_what_it_takes_out(alignd: Alignd, store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    same_as_its_parent(store, 3)
    same_as_its_parent(store, 4)
    assert "v3, v4 found nothing to change, perhaps since v1 had mended" in alignd("revert", "v1")[2]
    assert "`alignd revert v2 --anew` learns them again" in alignd("revert", "v2")[2]
    code, out, err = alignd("revert", "v2", "--anew")
    assert code == 0 and "v2 out and learns all other batches anew" in out and "found nothing" not in err
    assert "found nothing" not in alignd("revert", "v3")[2]


def test_a_revert_of_what_no_later_round_rests_on_says_nothing_of_it(alignd: Alignd, two: Store) -> None:
    assert "found nothing" not in alignd("revert", "v1")[2]


def test_a_round_that_was_taken_out_already_rests_on_nothing(alignd: Alignd, store: Store) -> None:
    make_version(store, 1)
    same_as_its_parent(store, 2)
    reverted(store, 2)
    assert "found nothing" not in alignd("revert", "v1")[2]


def test_going_back_by_hand_is_not_undone_by_a_revert_that_was_asked_for(alignd: Alignd, store: Store) -> None:
    make_version(store, 1)
    same_as_its_parent(store, 2)
    queued = alignd.json("revert", "v1")["id"]
    again = store.ledger.batch(store.version(2).batch or "")
    assert again is not None
    for words in (("rollback", "v0"), ("resume",), ("retry", again.name)):
        assert alignd(*words)[0] == exitcodes.OK
    assert (store.round(queued).state, store.round(queued).reason) == (
        "superseded", "v1 is not part of v0, which came into service",
    )  # fmt: skip
    assert store.ledger.rounds("queued") == []
    assert [row.name for row in store.ledger.batches("queued")] == [again.name]


def test_a_revert_that_ended_is_among_what_came_to_an_end(alignd: Alignd, two: Store) -> None:
    from daemon.commands_run import endings

    context = Context(alignd.home / "service.toml")
    before = endings(context)
    queued = alignd.json("revert", "v1")["id"]
    assert endings(context) == before
    two.begin_queued(queued, config={}, now=WHO["now"])
    alignd("abort")
    assert endings(context)[queued]["name"] == "revert of v1"


def test_abort_ends_the_round_and_retry_brings_the_batch_back(alignd: Alignd, store: Store) -> None:
    assert alignd("abort")[0] == exitcodes.NOT_FOUND
    begin(store, 1)
    ended = alignd.json("abort", "--reason", "wrong file")
    assert (ended["state"], ended["reason"]) == ("aborted", "wrong file")
    assert alignd.json("batches")[0]["state"] == "rejected"
    alignd("pause", "--reason", "the GPU is lent")
    code, out, err = alignd("retry", "batch1.jsonl")
    assert code == exitcodes.OK and "is queued again" in out
    assert "it waits: paused (the GPU is lent); it goes on after `alignd resume`" in err
    assert alignd.json("batches")[0]["state"] == "queued"


@pytest.mark.parametrize("is_served", [True, False])
def test_abort_removes_the_over_safety_patch_where_no_service_does(
    alignd: Alignd, store: Store, *, is_served: bool
) -> None:
    scratch = store.scratch(begin(store, 1))
    scratch.mkdir()
    (scratch / "over_safety.safetensors").write_bytes(b"zorp")
    with lock.hold(store.service_lock, "alignd run") if is_served else nullcontext():
        alignd.json("abort")
    assert scratch.exists() == is_served


@pytest.mark.parametrize(("state", "hint"), [("published", "alignd rollback"), ("awaiting_approval", "reject v1")])
def test_abort_of_a_round_that_has_just_made_a_version_is_refused_and_names_it(
    alignd: Alignd, store: Store, monkeypatch: pytest.MonkeyPatch, state: Any, hint: str
) -> None:
    round_id = begin(store, 1)
    arguments, end_round = prepare(store, round_id, 1), Store.end_round

    def end(*args: Any, **kwargs: Any) -> Any:
        store.commit_version(round_id, **arguments, state=state, now=NOW)
        return end_round(*args, **kwargs)

    monkeypatch.setattr(Store, "end_round", end)
    code, out, err = alignd("abort")
    assert (code, out) == (exitcodes.REFUSED, "")
    assert f"v1 is {state}" in err and hint in err


def test_abort_of_a_round_that_has_just_been_turned_down_is_refused(
    alignd: Alignd, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(store, 1)
    end_round = Store.end_round

    def end(self: Store, round_id: str, *args: Any, **kwargs: Any) -> Any:
        end_round(store, round_id, "rejected", reason="gate harm failed", now=NOW)
        return end_round(self, round_id, *args, **kwargs)

    monkeypatch.setattr(Store, "end_round", end)
    code, _, err = alignd("abort")
    assert code == exitcodes.REFUSED and "rejected" in err


# keeping


def test_quarantine_is_listed_released_and_dropped(alignd: Alignd, store: Store) -> None:
    for seed in (1, 2):
        claim = store.claim_batch(drop(store, f"zorp {seed}", f"b{seed}.jsonl"), name=f"b{seed}.jsonl", **WHO)
        store.quarantine_batch(claim.batch.sha256, reason=f"b{seed}.jsonl, row 7: no response", **WHO)
    listed = sorted(alignd.json("quarantine", "list"), key=lambda entry: str(entry["name"]))  # all of one instant
    assert [entry["name"] for entry in listed] == ["b1.jsonl", "b2.jsonl"]
    assert "row 7" in alignd.text("quarantine", "list")
    assert alignd.json("status")["quarantine"] == 2
    alignd.json("quarantine", "release", listed[0]["id"][:8])
    alignd.json("quarantine", "drop", "b2.jsonl")
    assert alignd.json("quarantine", "list") == []
    assert alignd.json("batches")[0]["state"] == "queued"
    assert alignd("quarantine", "drop", "b2.jsonl")[0] == exitcodes.NOT_FOUND


def test_verify_names_a_flipped_byte_and_is_6(alignd: Alignd, two: Store) -> None:
    assert alignd.json("verify", "--deep")["ok"] is True
    path = two.overlay_path(1)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    findings = alignd.json("verify", code=exitcodes.INTEGRITY)["findings"]
    assert str(path) in [finding["path"] for finding in findings]
    assert alignd.json("drill", "v2", code=exitcodes.INTEGRITY)["findings"]


def test_verify_goes_on_where_it_was_cut_short_and_looks_at_a_sample(alignd: Alignd, two: Store) -> None:
    Checked(two.home, deep=False).add("v0")
    assert "1 of" in alignd.text("verify", "--resume") and "1 of" not in alignd.text("verify", "--resume")
    Checked(two.home, deep=False).add("v0")
    assert alignd.text("verify").strip() == "everything stored is what was written"
    num = len(parts(two))
    assert f"what was looked at is what was written: {num - 2 - 1} of {num} parts" in alignd.text(
        "verify", "--sample", "1"
    )
    assert f"{num} of {num} parts" in alignd.text("verify", "--sample", "100")
    code, _, err = alignd("verify", "--sample", "0")
    assert code == exitcodes.USAGE and "more than 0 and at most 100 are allowed" in err


def test_drill_rebuilds_every_version_and_leaves_nothing(alignd: Alignd, two: Store) -> None:
    assert "v0, v1, v2" in alignd.text("drill")
    assert not list(alignd.home.glob(".tmp-*"))


def test_gc_lists_before_it_removes(alignd: Alignd, two: Store) -> None:
    alignd.json("promote", "v0", "--reason", "x")
    alignd.json("promote", "v2", "--reason", "x")
    listed = alignd.json("gc", "--dry-run", "--keep", "0")["items"]
    assert any(item["path"].endswith("v1") for item in listed)
    assert two.is_materialized(1)
    alignd.text("gc", "--keep", "0")
    assert not two.is_materialized(1)


def test_gc_says_what_files_that_versions_share_free_together(alignd: Alignd, store: Store) -> None:
    for seed in (1, 2, 3):
        make_version(store, seed)
    for ref in ("v0", "v3", "v0"):  # current v0, previous v3: v1 and v2 can go, and share a shard with all others
        alignd.json("promote", ref, "--reason", "x")
    alignd.json("gc")
    free, listed = alignd.json("gc", "--dry-run", "--keep", "0")["num_bytes"], []
    listed = alignd.json("gc", "--dry-run", "--keep", "0")["items"]
    assert [Path(item["path"]).name for item in listed] == ["v1", "v2"]
    own = (store.model_path(1) / "model-00002-of-00002.safetensors").stat().st_size
    whole = sum(path.stat().st_size for path in store.model_path(1).iterdir())
    assert [(item["num_bytes"], item["shared_bytes"]) for item in listed] == [(own, whole - own)] * 2
    assert free == 2 * own
    assert "what is kept shares these files" in alignd.text("gc", "--dry-run", "--keep", "0")
    twin = store.model_path(2) / "twin"  # a file that only these two have
    os.link(store.model_path(1) / "model-00002-of-00002.safetensors", twin)
    shared, last = alignd.json("gc", "--dry-run", "--keep", "0")["items"]
    assert (shared["num_bytes"], last["num_bytes"]) == (0, 2 * own)
    alignd.text("gc", "--keep", "0")
    assert not twin.exists()


def test_gc_says_of_the_newest_version_why_it_is_none_of_the_newest_published(alignd: Alignd, two: Store) -> None:
    alignd.json("rollback", "v0")
    reasons = {item["path"][-2:]: item["reason"] for item in alignd.json("gc", "--dry-run")["items"]}
    assert reasons["v2"] == "rolled_back; neither current, previous, pinned, tagged nor of the newest 3 published"
    none = {item["path"][-2:]: item["reason"] for item in alignd.json("gc", "--dry-run", "--keep", "0")["items"]}
    assert none["v2"] == "rolled_back; neither current, previous, pinned nor tagged"


def test_pins_and_tags_show_in_history_and_select(alignd: Alignd, two: Store) -> None:
    alignd.json("pin", "v1")
    alignd.json("tag", "@good", "v1")
    assert alignd.json("history")[1]["tags"] == ["good"]
    assert alignd.json("show", "@good~1")["id"] == "v0"
    assert "pinned @good" in alignd.text("show", "v1")
    assert re.search(r"tagged +v1 +@good", alignd.text("audit"))
    alignd.json("unpin", "@good")
    alignd.json("untag", "good")
    assert alignd("show", "@good")[0] == exitcodes.NOT_FOUND


@pytest.mark.parametrize("name", ["current", "@previous", "candidate", "base", "v1", "v99", "1", "v1~1", "current~1"])
def test_a_tag_that_is_a_selector_is_refused(alignd: Alignd, two: Store, name: str) -> None:
    code, _, err = alignd("tag", name, "v1")
    assert (code, two.ledger.tags()) == (exitcodes.USAGE, [])
    assert "is no tag" in err
    assert alignd("tag", "v1-good", "v1")[0] == exitcodes.OK


@pytest.mark.parametrize("is_kept", [True, False])
def test_export_gives_a_complete_folder(alignd: Alignd, two: Store, tmp_path: Path, *, is_kept: bool) -> None:
    expected = content(two.model_path(2))
    if not is_kept:
        alignd.json("rollback", "v0")
        alignd.json("gc", "--keep", "0")
        assert not two.is_materialized(2)
    alignd.json("export", "v2", str(tmp_path / "out"))
    assert without_papers(tmp_path / "out") == expected
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o777 == 0o644
    code, _, err = alignd("export", "v2", str(tmp_path / "out"))
    assert code == exitcodes.FAILED
    assert "overwritten" in err


def test_export_of_a_version_that_is_not_there_says_so_first(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    assert alignd("export", "v9", str(tmp_path / "no" / "out"))[0] == exitcodes.NOT_FOUND
    code, _, err = alignd("export", "v1", str(tmp_path / "no" / "out"))
    assert code == exitcodes.FAILED and "create it first" in err


def test_export_of_damaged_bytes_gives_nothing(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    path = two.model_path(2) / "config.json"
    path.chmod(0o600)
    path.write_text("{}")
    assert alignd("export", "v2", str(tmp_path / "out"))[0] == exitcodes.INTEGRITY
    assert {entry.name for entry in tmp_path.iterdir()} == {"home"}


@pytest.mark.parametrize("is_kept", [True, False])
def test_nobody_sweeps_or_collects_what_an_export_is_made_of(
    alignd: Alignd, two: Store, monkeypatch: pytest.MonkeyPatch, *, is_kept: bool
) -> None:
    expected = content(two.model_path(1))
    two.rollback("v0", reason="bad", **WHO)
    if not is_kept:
        gc.run(two, keep_materialized=0, actor="tester", now=NOW)
    copy_file = durable.copy_file

    def copy(source: Path, target: Path, mode: int = 0o600) -> int:
        two.recover(NOW)
        gc.run(two, keep_materialized=0, actor="tester", now=NOW)
        return copy_file(source, target, mode)

    monkeypatch.setattr(durable, "copy_file", copy)
    assert alignd.json("export", "v1", str(alignd.home / "out"))["id"] == "v1"
    assert without_papers(alignd.home / "out") == expected
    assert not list(alignd.home.glob(".tmp-*"))


# feeding


def test_submit_renames_a_copy_in_and_prints_the_batch(alignd: Alignd, tmp_path: Path) -> None:
    source = tmp_path / "drop.jsonl"
    source.write_text("zorp\n")
    listed = alignd.json("submit", str(source))
    assert listed[0]["batch"] == hashlib.sha256(b"zorp\n").hexdigest()
    assert [path.name for path in (alignd.home / "inbox").iterdir()] == ["drop.jsonl"]
    assert source.exists()
    assert alignd.json("status")["inbox"]["waiting"] == 1


def test_submit_never_overwrites_a_drop_of_the_same_name(alignd: Alignd, tmp_path: Path) -> None:
    source = tmp_path / "drop.jsonl"
    for text in ("zorp\n", "glim\n"):
        source.write_text(text)
        alignd.json("submit", str(source))
    texts = sorted(path.read_text() for path in (alignd.home / "inbox").iterdir())
    assert texts == ["glim\n", "zorp\n"]


def test_submit_of_known_content_drops_nothing(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    (tmp_path / "again.jsonl").write_text("zorp 1\n")
    listed = alignd.json("submit", "--wait", str(tmp_path / "again.jsonl"))
    assert (listed[0]["known_as"], listed[0]["state"]) == ("published", "published")
    assert not list((alignd.home / "inbox").iterdir())
    assert "waits in the inbox" not in alignd("submit", str(tmp_path / "again.jsonl"))[2], "nothing does"


@pytest.mark.parametrize("state", ["published", "rolled_back"])
def test_submit_of_known_content_names_retry_only_where_it_is_taken(
    alignd: Alignd, two: Store, tmp_path: Path, state: str
) -> None:
    if state == "rolled_back":
        two.rollback("v0", reason="worse", **WHO)
    (tmp_path / "again.jsonl").write_text("zorp 1\n")
    sha256 = hashlib.sha256(b"zorp 1\n").hexdigest()
    _, out, _ = alignd("submit", "--wait", str(tmp_path / "again.jsonl"))
    start = f"{sha256[:12]}  again.jsonl  known already, not dropped again "
    end = {
        "published": "(published)",
        "rolled_back": f"(rolled_back); `alignd retry {sha256[:12]}` queues it again  worse",
    }
    assert " ".join(out.split()) == " ".join((start + end[state]).split())
    assert max(map(len, out.splitlines())) <= 80


def test_submit_of_queued_content_tells_what_it_came_to_and_not_what_it_was(
    alignd: Alignd, store: Store, tmp_path: Path
) -> None:
    store.claim_batch(drop(store, "zorp\n", "b1.jsonl"), name="b1.jsonl", **WHO)
    (tmp_path / "again.jsonl").write_text("zorp\n")
    assert "known already, not dropped again (queued)" in alignd.text("submit", str(tmp_path / "again.jsonl"))
    _, out, _ = alignd("submit", "--wait", str(tmp_path / "again.jsonl"))
    assert "known already, not dropped again no_service: the batch waits" in " ".join(out.split())


def test_submit_of_content_that_was_deleted_drops_it_and_waits_for_the_new_batch(
    alignd: Alignd, store: Store, tmp_path: Path
) -> None:
    claim = store.claim_batch(drop(store, "zorp\n", "b1.jsonl"), name="b1.jsonl", **WHO)
    store.quarantine_batch(claim.batch.sha256, reason="bad", **WHO)
    alignd.json("quarantine", "drop", "b1.jsonl")
    assert alignd("retry", "b1.jsonl")[0] == exitcodes.REFUSED
    (tmp_path / "again.jsonl").write_text("zorp\n")
    listed = alignd.json("submit", "--wait", str(tmp_path / "again.jsonl"), code=exitcodes.NO_SERVICE)
    assert (listed[0]["known_as"], listed[0]["state"]) == ("", "no_service")
    assert (alignd.home / "inbox" / "again.jsonl").read_text() == "zorp\n"


@pytest.mark.parametrize("name", ["missing.jsonl", ".hidden", "half.part", "empty"])
def test_submit_refuses_what_the_inbox_would_pass_over(alignd: Alignd, tmp_path: Path, name: str) -> None:
    if name == "empty":
        (tmp_path / name).mkdir()
    elif name != "missing.jsonl":
        (tmp_path / name).write_text("zorp")
    assert alignd("submit", str(tmp_path / name))[0] == exitcodes.FAILED
    assert not list((alignd.home / "inbox").iterdir())


def test_submit_refuses_a_folder_with_a_link(alignd: Alignd, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "link.jsonl").symlink_to("/etc/passwd")
    code, _, err = alignd("submit", str(tmp_path / "many"))
    assert (code, "symbolic link" in err) == (exitcodes.FAILED, True)  # 5 is for what a gate or a hold refused
    assert not list((alignd.home / "inbox").iterdir())


def test_submit_drops_nothing_where_one_of_many_cannot_be(alignd: Alignd, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text("zorp")
    assert alignd("submit", str(tmp_path / "good.jsonl"), str(tmp_path / "missing.jsonl"))[0] == exitcodes.FAILED
    assert not list((alignd.home / "inbox").iterdir())


def test_submit_says_completion_as_the_settings_want_it(tmp_path: Path) -> None:
    from daemon.arrival import manifest_matches

    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (tmp_path / "a.jsonl").write_text("zorp")
    submit.submit(tmp_path / "a.jsonl", inbox, InboxSection(completion="marker"), known=lambda _: "")
    assert (inbox / "a.jsonl.done").exists()
    (tmp_path / "b.jsonl").write_text("glim")
    submit.submit(tmp_path / "b.jsonl", inbox, InboxSection(completion="manifest"), known=lambda _: "")
    assert manifest_matches(inbox / "b.jsonl")


def follow(store: Store, sha256: str, *, timeout_s: float | None = 5.0) -> submit.Fate:
    ticks = iter(range(1000))
    dropped, inbox = submit.Submitted("batch1.jsonl", sha256), store.home / "inbox"
    return submit.follow(
        store, dropped, inbox, timeout_s=timeout_s, clock=lambda: float(next(ticks)), sleep=lambda _: None
    )


def test_submit_says_that_signatures_are_required_where_it_makes_none(alignd: Alignd, tmp_path: Path) -> None:
    (alignd.home / "service.toml").write_text("[inbox]\nrequire_signature = true\n")
    (tmp_path / "a.jsonl").write_text("zorp")
    code, _, err = alignd("submit", str(tmp_path / "a.jsonl"))
    assert code == exitcodes.OK and "--sign KEY" in err


def test_waiting_ends_with_the_batch(store: Store) -> None:
    claim = store.claim_batch(drop(store, "zorp", "batch1.jsonl"), name="batch1.jsonl", **WHO)
    assert follow(store, claim.batch.sha256).code == exitcodes.NO_SERVICE
    with lock.hold(store.service_lock, "alignd run"):
        assert follow(store, claim.batch.sha256).code == exitcodes.TRY_AGAIN
        for stop in (hold, lambda store, reason: store.pause(reason=reason, **WHO)):
            stop(store, "worse")
            fate = follow(store, claim.batch.sha256)
            assert (fate.code, "worse" in fate.reason) == (exitcodes.REFUSED, True)
            store.resume(**WHO)
        store.quarantine_batch(claim.batch.sha256, reason="one row", **WHO)
        fate = follow(store, claim.batch.sha256)
    assert (fate.code, fate.reason) == (exitcodes.DEGRADED, "one row")


@pytest.mark.parametrize("place", ["inbox", "store/spool"])
def test_a_batch_that_is_dropped_again_is_waited_for_and_not_told_as_it_ended_before(store: Store, place: str) -> None:
    sha256 = store.claim_batch(drop(store, "zorp", "batch1.jsonl"), name="batch1.jsonl", **WHO).batch.sha256
    store.quarantine_batch(sha256, reason="nobody vouches for it", **WHO)
    name = "batch1.jsonl" if place == "inbox" else entry_name("batch1.jsonl")
    (store.home / place / name).write_text("zorp")
    with lock.hold(store.service_lock, "alignd run"):
        assert follow(store, sha256).code == exitcodes.TRY_AGAIN
        (store.home / place / name).unlink()
        assert follow(store, sha256).reason == "nobody vouches for it"


@pytest.mark.parametrize(("state", "code"), [("published", 0), ("rejected", 5), ("rolled_back", 5), ("quarantined", 3)])
def test_each_end_of_a_batch_has_its_code(state: str, code: int) -> None:
    assert submit.Fate(state).code == code


def test_two_services_on_one_home_is_11(alignd: Alignd, store: Store) -> None:
    with lock.hold(store.service_lock, "alignd run"):
        code, out, err = alignd("run", "--once")
    assert (code, out) == (exitcodes.LOCKED, "")
    assert "service.lock" in err


# the machine


def test_config_show_is_toml_that_gives_the_same_settings(alignd: Alignd) -> None:
    import tomllib

    from daemon.config import parse, to_dict

    printed = tomllib.loads(alignd.text("config", "show"))
    assert json.loads(json.dumps(to_dict(parse(printed)))) == alignd.json("config", "show")


def test_config_check_refuses_a_cron_expression_that_never_comes(alignd: Alignd) -> None:
    (alignd.home / "service.toml").write_text('[schedule]\ntraining_window = "0 0 31 2 *"\n')
    code, _, err = alignd("config", "check")
    assert code == exitcodes.CONFIG
    assert "training_window" in err


def probes(home: Path, num: int) -> None:
    for name in ("over_safety", "utility", "harm"):
        rows = [json.dumps({"prompt": f"{name} glim {i}", "response": "zorp"}) for i in range(num)]
        (home / "probes" / f"{name}.jsonl").write_text("\n".join(rows))
    (home / "retain.jsonl").write_text('{"prompt": "glim", "response": "zorp"}\n')


def checks(view: Any) -> dict[str, str]:
    order = ["ok", "warn", "bad"]
    found: dict[str, str] = {}
    for check in view["checks"]:
        found[check["name"]] = max(found.get(check["name"], "ok"), check["status"], key=order.index)
    return found


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.doctor._TORCH_PROBE", "pass")


@pytest.mark.usefixtures("no_torch")
def test_doctor_finds_nothing_in_a_good_home(alignd: Alignd) -> None:
    probes(alignd.home, 200)
    view = alignd.json("doctor")
    assert "bad" not in checks(view).values()
    assert {path.name for path in (alignd.home / "inbox").iterdir()} == set()
    assert not list(alignd.home.glob(".doctor*"))


@pytest.mark.usefixtures("no_torch")
def test_doctor_names_gates_that_reject_nothing_any_more(alignd: Alignd) -> None:
    probes(alignd.home, 200)
    assert checks(alignd.json("doctor"))["gates"] == "ok"
    with (alignd.home / "service.toml").open("a") as file:
        file.write(
            '[gates.harm]\nclass = "wanted"\n[gates.utility]\nclass = "dry_run"\n[gates.right]\nclass = "dry_run"\n'
            "[gates.new_harm]\nmax = 1.0\n[gates.over_safety]\nmax_regression = 1.0\nmax_drift = 0.9\n"
        )
    (check,) = (check for check in alignd.json("doctor")["checks"] if check["name"] == "gates")
    told = "harm, new_harm, utility: measured, and nothing is rejected for it"
    assert (check["status"], check["detail"]) == ("warn", told)


@pytest.mark.usefixtures("no_torch")
def test_doctor_says_what_to_do_about_too_few_probes(alignd: Alignd) -> None:
    probes(alignd.home, 3)
    view = alignd.json("doctor", code=exitcodes.DEGRADED)
    assert checks(view)["probes"] == "bad" and checks(view)["harm probes"] == "warn"
    assert all(check["advice"] for check in view["checks"] if check["status"] != "ok")


@pytest.mark.usefixtures("no_torch")
def test_doctor_goes_on_where_the_ledger_is_damaged(alignd: Alignd, two: Store) -> None:
    two.close()
    ledger = bytearray(two.ledger_path.read_bytes())
    ledger[100:] = b"zorp" * (len(ledger[100:]) // 4)
    two.ledger_path.write_bytes(ledger)
    found = checks(alignd.json("doctor", code=exitcodes.DEGRADED))
    assert found["store"] == "bad" and found["inbox"] == "ok" and "torch" in found


@pytest.mark.usefixtures("no_torch")
def test_doctor_names_probes_that_cannot_be_read(alignd: Alignd) -> None:
    probes(alignd.home, 200)
    (alignd.home / "probes" / "harm.jsonl").unlink(missing_ok=True)
    (alignd.home / "probes" / "harm.jsonl").mkdir()
    view = alignd.json("doctor", code=exitcodes.DEGRADED)
    found = next(check for check in view["checks"] if check["name"] == "probes")
    assert (found["status"], "harm.jsonl cannot be read" in found["detail"]) == ("bad", True)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("name", ["base", "permissions", "inbox", "clock"])
def test_doctor_finds_what_is_wrong(alignd: Alignd, tmp_path: Path, name: str) -> None:
    probes(alignd.home, 200)
    if name == "base":
        other = write_model(tmp_path / "other", seed=9)
        (alignd.home / "service.toml").write_text(f'[model]\nbase = "{other}"\n')
    elif name == "permissions":
        (alignd.home / "store").chmod(0o755)
    elif name == "inbox":
        (alignd.home / "inbox").rmdir()
    else:
        with Store.open(alignd.home) as store:
            make_version(store, 1)
            assert checks(alignd.json("doctor"))["clock"] == "ok"
        return
    assert checks(alignd.json("doctor", code=exitcodes.DEGRADED))[name] == "bad"


def test_doctor_sees_that_torch_cannot_be_imported(alignd: Alignd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.doctor._TORCH_PROBE", "import no_such_glim")
    probes(alignd.home, 200)
    view = alignd.json("doctor", code=exitcodes.DEGRADED)
    assert "no_such_glim" in next(check["detail"] for check in view["checks"] if check["name"] == "torch")


def test_unit_is_of_this_home(alignd: Alignd) -> None:
    text = alignd.text("unit", "--gpu", "--executable", "/opt/alignd/bin/alignd")
    assert text.rstrip() == render_unit(alignd.home, Path("/opt/alignd/bin/alignd"), gpu=True).rstrip()


def test_a_folder_stands_for_the_settings_in_it(tmp_path: Path) -> None:
    assert service_file_of(str(tmp_path)) == tmp_path / "service.toml"
    assert service_file_of(str(tmp_path / "other.toml")) == tmp_path / "other.toml"


def test_a_home_that_is_not_there_is_not_taken_for_the_one_around_it(alignd: Alignd, two: Store) -> None:
    slip = alignd.home / "nope"
    for words in (["tag", "zim", "v0"], ["status"], ["rollback"]):
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "-c", str(slip), *words], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (exitcodes.NO_STORE, "")
        assert f"{slip} does not exist" in done.stderr
    assert two.ledger.tags() == [] and two.current().name == "v2"


def test_status_says_what_holds_a_queue_back_where_no_service_does(alignd: Alignd, store: Store) -> None:
    assert alignd.json("status")["problems"] == []
    store.claim_batch(drop(store, "zorp\n", "a.jsonl"), name="a.jsonl", **WHO)
    view = alignd.json("status", code=exitcodes.DEGRADED)
    assert any("queued can be published: probes/over_safety.jsonl" in problem for problem in view["problems"])
    (alignd.home / "probes" / "over_safety.jsonl").write_text("zim\n")
    view = alignd.json("status", code=exitcodes.DEGRADED)
    (problem,) = view["problems"]
    assert "over_safety.jsonl, line 1" in problem and "zim" not in problem


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        (["--limit", "2"], ["v1", "v2"]),
        (["--limit", "9"], ["v0", "v1", "v2"]),
        (["--limit", "1", "--state", "base"], ["v0"]),
        (["--limit", "1", "--since", "2000-01-01"], ["v2"]),
        (["--state", "published"], ["v1", "v2"]),
    ],
)
def test_history_lists_the_newest_that_are_asked_for_oldest_first(
    alignd: Alignd, two: Store, words: list[str], listed: list[str]
) -> None:
    assert [view["id"] for view in alignd.json("history", *words)] == listed


def test_a_batch_that_nobody_reads_yet_is_told_to_wait(alignd: Alignd, tmp_path: Path) -> None:
    (tmp_path / "drop.jsonl").write_text("zorp\n")
    code, out, err = alignd("submit", str(tmp_path / "drop.jsonl"))
    assert code == exitcodes.OK and "drop.jsonl" in out and "no service runs here" in err
