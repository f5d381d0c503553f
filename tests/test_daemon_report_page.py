"""`alignd report`: what stands on the page, and that the page needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, exitcodes, modelcard, plots, provenance, report_facts, report_page
from daemon.commands_explain import version_view
from daemon.terminal import number
from state.rows import VersionRow
from tests.command_world import Alignd, usable_base
from tests.round_world import THINGS, VERBS, WORDS, Home, opened
from tests.state_world import make_version

VOID = {"meta", "br", "link", "img", "hr", "input", "path", "use"}
TABLES = ("axes", "gates", "harm-by-batch", "utility-by-category", "training", "search", "sets", "touched", "inputs")


class Page(HTMLParser):
    """The tags, ids, links and texts by section of a page; raises when a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if found.get("id") else []  # type: ignore[list-item]
        if tag == "section":
            self._section = found["id"] or ""
            self.sections[self._section] = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.sections[self._section] += f" {data.strip()}"

    def text(self, section: str) -> str:
        """What is read in a section."""
        return " ".join(self.sections[section].split())


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Home]:
    """v1 and v2 of batches, v3 a revert of v2."""
    with opened(tmp_path_factory.mktemp("report") / "home", tiny_folder) as home:
        home.play(1)
        home.play(2)
        home.revert("v2")
        yield home


def facts_of(home: Home, ref: str) -> dict[str, Any]:
    row = home.store.resolve(ref)
    return report_facts.gather(home.store, row, version_view(home.store, row))


@pytest.mark.parametrize("ref", ["v0", "v1", "v2", "v3"])
def test_a_page_is_whole_and_needs_nothing_from_outside(played: Home, ref: str) -> None:
    text = report_page.render(facts_of(played, ref))
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object", "image")]
    targets = [value for _, attrs in page.tags for key, value in attrs.items() if key.endswith(("href", "src"))]
    assert [target for target in targets if not (target or "").startswith("#")] == []
    assert {(target or "")[1:] for target in targets} <= set(page.ids)
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.findall(r"url\((?!#)|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


@pytest.mark.parametrize("ref", ["v0", "v1", "v2", "v3"])
def test_no_prompt_and_no_answer_is_on_the_page(played: Home, ref: str) -> None:
    text = report_page.render(facts_of(played, ref))
    words = set(re.findall(r"[a-z]+", Page(text).sections[""] + " ".join(Page(text).sections.values())))
    assert words & {*VERBS, *THINGS, *WORDS} == set()


def test_the_same_version_gives_the_same_bytes(played: Home) -> None:
    assert report_page.render(facts_of(played, "v2")) == report_page.render(facts_of(played, "v2"))


def test_a_version_that_no_batch_was_dropped_for_says_what_it_is(played: Home) -> None:
    assert "revert of" in Page(report_page.render(facts_of(played, "v3"))).text("lineage")
    assert "revert of" not in Page(report_page.render(facts_of(played, "v2"))).text("lineage")


def test_a_version_of_a_batch_has_every_part(played: Home) -> None:
    record = played.store.version_record(2)
    page = Page(report_page.render(facts_of(played, "v2")))
    assert page.text("lineage").count("published") == 2
    assert "v1 (parent)" in page.text("axes")
    for gate in record["gates"]:
        assert gate["name"] in page.text("gates")
        assert all(reason in page.text("gates") for reason in gate["reasons"])
    assert "batch1.jsonl" in page.text("harm-by-batch")
    assert "chores" in page.text("utility-by-category")
    trained = [name for name, result in record["steps"].items() if "losses" in result]
    assert len(trained) >= 2
    assert all(name in page.text("training") for name in trained)
    for reason in record["steps"]["search"]["reasons"]:
        assert reason[1:] in page.text("search")
    for trial in record["steps"]["search"]["trials"]:
        assert " ".join(map(number, (trial["score"], *trial["point"].values()))) in page.text("search")
    assert "safety set" in page.text("sets")
    touched = [name for name, count in record["touched"]["per_tensor"].items() if count]
    assert all(name in page.text("touched") for name in touched)
    assert all(sha256 in page.text("inputs") for sha256 in record["inputs"].values())
    assert "merge.search.trials" in page.text("inputs")
    assert "version_committed" in page.text("audit")
    assert "<svg" in report_page.render(facts_of(played, "v2"))


def test_what_a_revert_lacks_is_left_out_with_a_sentence(played: Home) -> None:
    page = Page(report_page.render(facts_of(played, "v3")))
    assert "The patch of v2 was taken out" in page.text("")
    assert page.text("training") == "Training Nothing was trained for this version."
    assert page.text("search") == "Coefficients No coefficients were searched for this version."
    assert page.text("sets") == "Sets and overlap No sets were drawn for this version."
    assert "over_safety" in page.text("gates")
    assert "entries" in page.text("touched")


def test_the_base_says_that_nothing_was_done_to_it(played: Home) -> None:
    page = Page(report_page.render(facts_of(played, "v0")))
    assert "no round made it" in page.text("")
    assert "No gate judged this version" in page.text("gates")
    assert page.text("touched") == "Touched entries No entry differs from the parent."
    assert "store_created" in page.text("audit")


def test_every_section_has_a_title_and_something_to_read(played: Home) -> None:
    for ref in ("v0", "v1", "v3"):
        page = Page(report_page.render(facts_of(played, ref)))
        assert set(TABLES) < set(page.sections)
        assert all(len(page.text(section).split()) > 2 for section in TABLES)


def test_a_hostile_name_is_text(played: Home) -> None:
    facts = facts_of(played, "v2")
    facts["version"]["batch_name"] = "<script>alert(1)</script>\x1b[2J"
    page = Page(report_page.render(facts))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "<script>alert(1)</script>\\x1b[2J" in page.text("identity")


# plots


def share(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": None if value is None else value / 2, "high": value, "num_samples": None}


def test_plots_use_the_colours_of_the_page_only() -> None:
    axes = [{"axis": "harm_rate", "v0": share(None), "parent": share(0.5), "this": share(0.25)}]
    drawn = [
        plots.axes_plot(axes, {"v0": "v0", "parent": "v1", "this": "v2"}),
        plots.loss_plot({"step": "safety", "steps": 4, "losses": [1.0, None, 3.0, 4.0]}),
        plots.grid_plot("set", ["q", "k"], ["layer 0", "layer 1"], [[0.1, 0.2], [None, 0.0]]),
        plots.trials_plot([{"score": 1.0}, {"score": 2.0}], 1),
    ]
    for svg in drawn:
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")
        assert "var(--ink)" in svg
        assert re.findall(r"#[0-9a-f]{6}\b(?!\")", svg.replace("#ffffff", "")) == []
        assert "<metadata" not in svg
        assert not re.search(r"\b20\d\d-\d\d", svg)


def test_ids_of_two_plots_do_not_meet() -> None:
    found = [plots.loss_plot({"step": step, "steps": 3, "losses": [1.0, 2.0, 3.0]}) for step in ("safety", "refit")]
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in found]
    assert ids[0]
    assert ids[0] & ids[1] == set()


def test_a_thinned_curve_is_drawn_over_all_steps() -> None:
    svg = plots.loss_plot({"step": "safety", "steps": 60, "losses": [float(at) for at in range(30)]})
    assert ">60<" in svg.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("losses", [[], [1.0]])
def test_a_curve_needs_two_points(losses: list[float]) -> None:
    assert plots.loss_plot({"step": "safety", "steps": len(losses), "losses": losses}) == ""


def test_many_layers_are_drawn_without_a_number_in_every_cell() -> None:
    layers = [f"layer {at}" for at in range(40)]
    svg = plots.grid_plot("set", ["q"], layers, [[0.5] * 40])
    assert "50.0" not in svg
    assert "50.0" in plots.grid_plot("set", ["q"], layers[:4], [[0.5] * 4])


# the command


@pytest.fixture
def alignd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    home = tmp_path / "home"
    assert cli.main(["init", "--no-trial", str(home), "--model", str(usable_base(tmp_path / "base"))]) == 0
    return Alignd(home, capsys)


def made(alignd: Alignd) -> VersionRow:
    from state.store import Store

    with Store.open(alignd.home) as store:
        return make_version(store, 1)


def test_a_record_with_little_in_it_is_reported_all_the_same(alignd: Alignd, tmp_path: Path) -> None:
    made(alignd)
    for ref in ("base", "current"):
        out = tmp_path / f"{ref}.html"
        assert alignd.json("report", ref, "--out", str(out))["path"] == str(out)
        page = Page(out.read_text())
        assert "Nothing was trained" in page.text("training")
    assert "10.0%" in page.text("axes")


def test_the_page_goes_beside_the_user_by_default_and_to_stdout_with_a_dash(
    alignd: Alignd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(alignd)
    monkeypatch.chdir(tmp_path)
    assert "v1 is explained in" in alignd.text("report", "v1")
    assert alignd.text("report", "v1", "--out", "-") == (tmp_path / "v1.html").read_text() + "\n"


def test_a_report_of_nothing_or_into_nowhere_is_refused(alignd: Alignd, tmp_path: Path) -> None:
    assert alignd("report", "v9")[0] == exitcodes.NOT_FOUND
    code, _, err = alignd("report", "v0", "--out", str(tmp_path / "missing" / "x.html"))
    assert code == exitcodes.FAILED
    assert "is no folder" in err


def test_show_of_a_sparse_record_leaves_out_what_is_not_there(alignd: Alignd) -> None:
    made(alignd)
    text = alignd.text("show", "v1")
    assert "harm rate" in text
    assert "training" not in text
    assert "gates" not in text
    assert "`alignd report v1`" in text


@pytest.mark.parametrize("ref", ["v0", "v1"])
def test_the_card_that_leaves_the_home_has_the_bounds_of_each_gate(played: Home, ref: str) -> None:
    row = played.store.resolve(ref)
    version = provenance.gather(played.store, row, version_view(played.store, row), base_name="base")
    lines = [line.split(" | ")[:3] for line in modelcard.card(version, "hf").splitlines()]
    found = [line[1:] for line in lines if line[0] == "| harm"]
    gate = played.config.gates.harm
    bounds = f"max {gate.max}, max_regression {gate.max_regression}"
    assert found == ([] if ref == "v0" else [[gate.klass, bounds]])
