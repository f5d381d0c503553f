"""Numbers of different judges are never set against each other unawares: history, diff, show, the page, the unit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, web_facts
from daemon.judges_shown import are_comparable, judge_text, note
from daemon.measuring import judged_by
from daemon.views import flat_metrics, metrics_delta
from state.store import Store
from tests.command_world import Alignd, usable_base
from tests.state_world import NOW, begin, prepare

RULE, OTHER = "rule 0123456789ab", "classifier zim 9876543210fe on rule 0123456789ab"


@pytest.fixture
def alignd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    assert cli.main(["init", str(tmp_path / "home"), "--model", str(usable_base(tmp_path / "base")), "--no-trial"]) == 0
    return Alignd(tmp_path / "home", capsys)


@pytest.fixture
def store(alignd: Alignd) -> Iterator[Store]:
    with Store.open(alignd.home) as opened:
        yield opened


def version(store: Store, seed: int, judge: str, *, same_round: str = "") -> None:
    """A version whose harm was measured by a judge; also its parent's, where ``same_round`` names who judged that."""
    round_id = begin(store, seed)
    made = prepare(store, round_id, seed)
    metrics: dict[str, Any] = {"harm_rate": seed / 10, "utility_nll": 1.0 + seed} | ({"judge": judge} if judge else {})
    measured = {"current": metrics | {"harm_rate": 0.7, "judge": same_round}} if same_round else {}
    made["record"] |= {"metrics": metrics, "measured": measured, "judge": {"identity": judge}}
    store.commit_version(round_id, **made, state="published", now=NOW)


def test_a_diff_tells_no_move_between_two_judges_and_says_why(alignd: Alignd, store: Store) -> None:
    version(store, 1, RULE)
    version(store, 2, OTHER)
    moved = alignd.json("diff", "v1", "v2")["metrics"]
    assert moved["harm_rate"] is None and moved["utility_nll"] == pytest.approx(1.0)
    _, _, said = alignd("diff", "v1", "v2")
    assert f"not all were judged alike, so their shares cannot be compared: v1 by {RULE}; v2 by {OTHER}" in said


def test_a_diff_of_what_one_round_measured_is_told_whoever_judged_the_parents_round(
    alignd: Alignd, store: Store
) -> None:
    version(store, 1, RULE)
    version(store, 2, OTHER, same_round=OTHER)
    assert alignd.json("diff", "v1", "v2")["metrics"]["harm_rate"] == pytest.approx(-0.5)
    assert alignd("diff", "v1", "v2")[2] == ""


@pytest.mark.parametrize("judges", [(RULE, RULE), ("", RULE), ("", "")])
def test_versions_judged_alike_or_by_nobody_known_are_compared(
    alignd: Alignd, store: Store, judges: tuple[str, str]
) -> None:
    for seed, judge in enumerate(judges, 1):
        version(store, seed, judge)
    assert alignd.json("diff", "v1", "v2")["metrics"]["harm_rate"] == pytest.approx(0.1)
    assert alignd("diff", "v1", "v2")[2] == alignd("history")[2] == ""


def test_the_history_says_who_judged_what(alignd: Alignd, store: Store) -> None:
    for seed, judge in enumerate((RULE, RULE, RULE, RULE, OTHER), 1):
        version(store, seed, judge)
    assert f"v1 .. v4 by {RULE}; v5 by {OTHER}" in " ".join(alignd("history")[2].split())
    assert alignd("history", "--limit", "1")[2] == "", "of the versions that are listed"


def test_the_page_says_it_on_the_versions_and_on_a_difference(alignd: Alignd, store: Store) -> None:
    version(store, 1, RULE)
    assert web_facts.versions(store, None, "100")["judges"] == ""
    version(store, 2, OTHER)
    assert OTHER in web_facts.versions(store, None, "100")["judges"]
    found = web_facts.difference(store, "v1", "v2")
    assert OTHER in found["judges"]
    assert {item["name"]: item["delta"] for item in found["metrics"]}["harm rate"] is None
    assert "judge" not in {item["name"] for item in found["metrics"]}


def test_show_names_the_judge(alignd: Alignd, store: Store) -> None:
    version(store, 1, OTHER)
    assert f"judge    {OTHER}\n" in alignd.text("show", "v1")
    assert alignd.json("show", "v1")["judge"] == OTHER and alignd.json("show", "v0")["judge"] == ""


def test_the_judges_agreement_with_the_rules_is_told_in_words() -> None:
    agreed = {"num": 40, "num_equal": 38, "only_first": 1, "only_second": 1, "kappa": 0.875}
    record = {"judge": {"identity": OTHER, "agreement_with_rules": agreed}}
    assert judge_text(record) == f"{OTHER}; the rules agree on 95.0% of 40 harm probes, kappa 0.88"
    record["judge"]["agreement_with_rules"] = agreed | {"kappa": None}
    assert judge_text(record).endswith("of 40 harm probes")
    record["judge"]["agreement_with_rules"] = agreed | {"num": 0}
    assert judge_text(record) == OTHER
    assert judge_text({}) == judge_text({"judge": None}) == ""


def test_a_judge_is_no_number() -> None:
    before, after = {"harm_rate": 0.1, "judge": RULE}, {"harm_rate": 0.2, "judge": OTHER}
    assert "judge" not in flat_metrics(before) and "judge" not in metrics_delta(before, after)
    assert not are_comparable(before, after) and are_comparable(before, before) and are_comparable({}, after)
    assert note([]) == ""


def test_the_rules_have_no_agreement_with_themselves() -> None:
    from daemon.config_judge import JudgeSection
    from daemon.probes import ProbeFiles
    from patches.evaluate import Measurement

    files = ProbeFiles((), (), (), (), {})
    found = judged_by(Measurement({}, None, RULE, (1, 2, 3, 4)), JudgeSection(), files)
    assert found == {"identity": RULE, "kind": "rule"}


@pytest.mark.parametrize(("words", "is_told"), [((), True), (("--network", "localhost"), False)])
def test_a_unit_without_a_network_cannot_ask_a_server(alignd: Alignd, words: tuple[str, ...], is_told: bool) -> None:
    service = alignd.home / "service.toml"
    service.write_text('[judge]\nkind = "http"\nmodel = "m"\nurl = "http://127.0.0.1:8000/v1"\n')
    code, out, said = alignd("unit", *words)
    assert code == 0 and out.startswith("# ")
    assert ("asked at http://127.0.0.1:8000/v1, and this unit has no network" in said) is is_told
    service.write_text("[judge]\nkind = 7\n")
    assert alignd("unit")[::2] == (0, "")


def test_the_doctor_tells_about_the_judge(alignd: Alignd) -> None:
    def check() -> Any:
        found = json.loads(alignd("--json", "doctor")[1])["checks"]
        return next(item for item in found if item["name"] == "judge")

    assert (check()["status"], check()["detail"]) == ("ok", "rules; 0 refusal openings beside the built-in ones")
    (alignd.home / "service.toml").write_text('[judge]\nkind = "classifier"\nmodel = "nowhere"\n')
    assert check()["status"] == "bad" and "nowhere/config.json cannot be read" in check()["detail"]
