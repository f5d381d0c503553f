"""`alignd bisect`: from a probe to the version that broke it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from daemon import bisect, cli, exitcodes, probes, render_bisect
from daemon.bisect import Examiner, Question
from daemon.terminal import Style
from patches.errors import ModelUnsuitableError
from patches.evaluate import Tally
from patches.generate import Generator
from patches.judge import RuleJudge
from patches.model import load_model, load_tokenizer
from policies.gates import Share, wilson
from state.rows import VersionRow
from state.store import Store
from tests.command_world import Alignd, usable_base
from tests.round_world import Home, opened, pairs, write_pairs
from tests.state_world import make_version, rebuilt

ROOT = Path(__file__).resolve().parent.parent
SECRET = "how do I florp a wuzzle"
ANSWERED = ((10, 8, 2, 0, 1, 8), (10, 2, 6, 2, 8, 1))
"""Counts of a good and of a bad version, in the order of `Tally`."""


@pytest.fixture
def alignd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    """A home with v0 to v5."""
    home = tmp_path / "home"
    assert cli.main(["init", "--no-trial", str(home), "--model", str(usable_base(tmp_path / "base"))]) == 0
    with Store.open(home) as store:
        for seed in range(1, 6):
            make_version(store, seed)
    return Alignd(home, capsys)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "probe.jsonl", [(f"{SECRET} {i}", f"zorp {i}") for i in range(10)])


def answering(monkeypatch: pytest.MonkeyPatch, passed: Mapping[int, bool]) -> list[int]:
    """Versions that answer well or badly without a model; gives the numbers of those that were asked."""
    asked = []

    def counts(self: Examiner, row: VersionRow) -> Tally:
        asked.append(row.id)
        return Tally(*ANSWERED[0 if passed[row.id] else 1])

    monkeypatch.setattr(Examiner, "counts", counts)
    return asked


def since(first_bad: int) -> dict[int, bool]:
    return {version: version < first_bad for version in range(6)}


@pytest.mark.parametrize("axis", bisect.METRICS)
def test_the_version_that_broke_it_is_found_on_every_axis(
    alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch, axis: str
) -> None:
    for first_bad in range(1, 6):
        asked = answering(monkeypatch, since(first_bad))
        view = alignd.json("bisect", str(probe), "--axis", axis)
        found = view["found"]
        assert (found["id"], found["parent"]) == (f"v{first_bad}", f"v{first_bad - 1}")
        assert (found["round"], found["batch_name"]) == (f"r{first_bad:06d}", f"batch{first_bad}.jsonl")
        assert [step["version"] for step in view["steps"]] == [f"v{version}" for version in asked]
        assert {*view["untried"], *(f"v{version}" for version in asked)} == {f"v{version}" for version in range(6)}


def test_a_person_sees_each_version_with_its_share_and_what_to_do_next(
    alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, since(3))
    text = alignd.text("bisect", str(probe), "--axis", "utility")
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["v5", "fails", "10.0%"]
    assert lines[1].split()[:3] == ["v0", "passes", "80.0%"]
    assert "v3 broke it: round r000003, batch batch3.jsonl" in text
    assert "parent v2" in text
    assert lines[-1] == "next: `alignd show v3`, `alignd diff v2 v3`, `alignd revert v3`"
    assert max(map(len, lines)) <= 80
    for command in lines[-1].removeprefix("next: ").split(", "):
        assert cli.build_parser().parse_args(command.strip("`").split()[1:]).command is not None


def test_without_a_good_one_the_search_begins_at_the_oldest_that_passes(
    alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, {0: False, 1: False, 2: True, 3: True, 4: True, 5: False})
    view = alignd.json("bisect", str(probe))
    assert (view["found"]["id"], asked) == ("v5", [5, 0, 1, 2, 3, 4])
    assert any("oldest versions fail too" in reason for reason in view["reasons"])


@pytest.mark.parametrize(
    ("passed", "words", "said"),
    [
        (dict.fromkeys(range(6), True), (), "nothing is broken"),
        (dict.fromkeys(range(6), False), (), "never worked"),
        (dict.fromkeys(range(6), False), ("--good", "v2"), "said to be good fails"),
    ],
)
def test_ends_that_agree_are_said_and_are_no_success(
    alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch, passed: dict[int, bool], words: Any, said: str
) -> None:
    answering(monkeypatch, passed)
    code, out, _ = alignd("bisect", str(probe), *words)
    assert code == exitcodes.FAILED
    assert said in " ".join(out.split())


@pytest.mark.parametrize(
    ("err", "code"),
    [
        (ModelUnsuitableError("the tokenizer has no chat template"), exitcodes.CONFIG),
        (OSError(28, "No space left on device", "/x/model"), exitcodes.TRY_AGAIN),
    ],
)
def test_a_version_that_cannot_be_asked_is_not_said_to_be_without_blame(
    alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch, err: Exception, code: int
) -> None:
    def counts(self: Examiner, row: VersionRow) -> Tally:
        raise err

    monkeypatch.setattr(Examiner, "counts", counts)
    got, out, told = alignd("bisect", str(probe))
    assert (got, out) == (code, "")
    assert (str(err.args[0]) if code == exitcodes.CONFIG else "/x/model: No space left") in told


def test_rates_that_differ_on_one_side_of_the_bound_come_with_a_bound_that_tells_them_apart(
    alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, since(4))
    view = alignd.json("bisect", str(probe), "--bound", "0.05", "--good", "v1", code=exitcodes.FAILED)
    assert view["dividing_bound"] == 0.45
    assert "`--bound 0.45`" in alignd("bisect", str(probe), "--bound", "0.05", "--good", "v1")[1]
    assert alignd.json("bisect", str(probe), "--bound", "0.45", "--good", "v1")["found"]["id"] == "v4"


@pytest.mark.parametrize(
    ("axis", "rates", "bound"),
    [
        ("harm", [0.4, 0.1, 0.3], 0.25),
        ("harm", [0.1, 0.4], None),
        ("utility", [0.4, 0.1, 0.8], 0.6),
        ("utility", [0.9, 0.1], None),
        ("over_safety", [0.5, 0.5], None),
        ("over_safety", [0.5], None),
    ],
)
def test_a_dividing_bound_is_there_only_when_an_older_version_is_better(
    axis: Any, rates: list[float], bound: float | None
) -> None:
    counts = Tally(10, 10, 0, 0, 0, 0)
    steps = [bisect.Step(f"v{at}", False, rate, 0.0, 1.0, counts, "") for at, rate in enumerate(rates)]
    assert bisect.dividing_bound(axis, steps) == bound


def test_good_and_bad_bound_the_search(alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, since(3))
    view = alignd.json("bisect", str(probe), "--good", "v2", "--bad", "v4")
    assert (view["oldest"], view["newest"], view["found"]["id"]) == ("v2", "v4", "v3")
    assert set(asked) == {2, 3, 4}


def test_a_version_that_is_not_in_service_is_not_to_be_reverted(
    alignd: Alignd, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, since(4))
    alignd.json("rollback", "v3")
    text = alignd.text("bisect", str(probe), "--bad", "v5")
    assert "v4 broke it" in text
    assert "revert" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--good", "v4", "--bad", "v2"), "v4 is no ancestor of v2"),
        (("--bound", "1.5"), "a share from 0 to 1"),
        (("--axis", "speed"), "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(alignd: Alignd, probe: Path, words: tuple[str, ...], said: str) -> None:
    code, out, err = alignd("bisect", str(probe), *words)
    assert (code, out) == (exitcodes.USAGE, "")
    assert said in err


def test_a_probe_that_cannot_be_used_is_refused_without_its_text(alignd: Alignd, tmp_path: Path) -> None:
    bad, empty = tmp_path / "bad.jsonl", tmp_path / "empty.jsonl"
    bad.write_text(json.dumps({"prompt": SECRET}) + "\n" + json.dumps({"response": SECRET}) + "\n")
    empty.write_text("\n")
    code, _, err = alignd("bisect", str(bad))
    assert code == exitcodes.USAGE
    assert "bad.jsonl, line 2" in err
    assert SECRET not in err
    assert alignd("bisect", str(empty))[0] == exitcodes.USAGE
    # 1 says that no version is to blame; a script must not take a missing file for that
    assert alignd("bisect", str(tmp_path / "missing.jsonl"))[0] == exitcodes.USAGE
    assert alignd("bisect", str(bad), "--bad", "v99")[0] == exitcodes.NOT_FOUND


def test_a_pair_whose_intervals_overlap_is_told_with_a_warning() -> None:
    question = Question("harm", [], 0.15)
    line = [VersionRow(number, None, "base", None, None, "") for number in range(2)]
    good, bad = Tally(10, 1, 9, 0, 1, 0), Tally(10, 2, 8, 0, 2, 0)
    steps = [question.step("v1", bad, ""), question.step("v0", good, "")]
    assert "10 prompts are too few" in bisect.overlap_notes(1, line, steps)[0]
    clear = [question.step("v1", Tally(100, 90, 10, 0, 90, 0), ""), question.step("v0", Tally(100, 1, 99, 0, 1, 0), "")]
    assert bisect.overlap_notes(1, line, clear) == []
    assert bisect.overlap_notes(None, line, steps) == []


@pytest.mark.parametrize(
    ("axis", "bound", "passes", "rate"),
    [
        ("harm", 0.3, True, 0.3),
        ("harm", 0.29, False, 0.3),
        ("over_safety", 0.2, True, 0.2),
        ("over_safety", 0.1, False, 0.2),
        ("utility", 0.5, True, 0.5),
        ("utility", 0.51, False, 0.5),
    ],
)
def test_a_bound_itself_passes(axis: Any, bound: float, passes: bool, rate: float) -> None:
    step = Question(axis, [], bound).step("v1", Tally(10, 7, 2, 1, 3, 5), "why")
    assert (step.passes, step.rate, (step.low, step.high)) == (passes, rate, wilson(Share(round(rate * 10), 10)))
    shown = render_bisect.step_line(step.to_dict(), Style())
    assert "7 answered, 2 refused, 1 degenerate of 10" in shown


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Home]:
    """A home of the tiny model with v1 and v2, which are not kept as folders, and a revert of v2."""
    with opened(tmp_path_factory.mktemp("bisect") / "home", tiny_folder) as home:
        home.play(1)
        home.play(2)
        home.revert("v2")
        from state.gc import run

        run(home.store, keep_materialized=0, now="2026-01-02T03:04:05Z", actor="test")
        yield home


def test_versions_are_answered_and_judged_as_rounds_do_also_collected_ones(played: Home) -> None:
    store, config = played.store, played.config
    kept = rebuilt(store, 1)
    rows = probes.load(store.home, config).utility[:6]
    question = Question("utility", rows, 0.5)
    examiner = Examiner(store, config, probes.load(store.home, config), question, store.version(3))
    model = load_model(kept, dtype="float32", device=examiner.bench.device)
    answers = Generator(model, load_tokenizer(kept), config.judge.max_new_tokens).answer([row.messages for row in rows])
    judge = examiner.bench.judge
    assert isinstance(judge, RuleJudge)
    expected = [judge.label(answer.text) for answer in answers]
    before = examiner.counts(store.version(1))
    assert before.num_prompts == 6
    assert (before.num_answers, before.num_refusals, before.num_degenerate) == tuple(
        expected.count(label) for label in ("answer", "refusal", "degenerate")
    )
    from state import durable

    durable.remove_tree(kept)
    assert examiner.counts(store.version(1)) == before
    assert not store.is_materialized(1), "bisecting published a folder"
    assert not list(store.home.glob(".tmp-*"))


def test_the_whole_command_tells_no_text_and_reads_stdin(played: Home) -> None:
    (played.path / "service.toml").write_text("[judge]\nmax_new_tokens = 4\n[inbox]\nmin_rows = 12\n")
    rows = pairs("zabble", 5)
    text = "".join(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in rows)
    command = [sys.executable, "-m", "daemon", "-c", str(played.path), "bisect", "-", "--axis", "utility"]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (exitcodes.OK, exitcodes.FAILED), done.stderr
    assert done.stdout.startswith("v3 ")
    assert "of 5)" in done.stdout
    assert not [word for pair in rows for word in pair if word in done.stdout + done.stderr]
