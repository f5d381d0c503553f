"""Charts as files: what is drawn, that nothing is overwritten, and that no text of a batch gets into one."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, exitcodes, figures
from daemon.views import View
from state import durable
from state.store import Store
from tests.command_world import Alignd, usable_base
from tests.state_world import NOW, begin, prepare

SECRET = "zorp"
"""Is in every batch of these tests."""
POINTS = [("v1", 0.0, 0.1, 3.0), ("v2", 0.02, 0.11, 2.0), ("v3", 0.5, None, 1.0)]


def a_version(store: Store, seed: int, categories: dict[str, float]) -> None:
    round_id = begin(store, seed)
    arguments = prepare(store, round_id, seed)
    rates = {"harm_rate": 0.1 * seed, "over_refusal_rate": 0.5, "utility": 0.9, "standing_harm_by_category": categories}
    trials = [
        {"point": {"beta": float(at)}, "score": score, "axes": {"harm_rate": harm, "over_refusal_rate": refused}}
        for at, (_, harm, refused, score) in enumerate(POINTS)
    ]
    search = {"winner": trials[0], "trials": trials, "num_trials": 3, "reasons": []}
    arguments["record"] |= {"metrics": rates, "steps": {"search": search}}
    store.commit_version(round_id, **arguments, state="published", now=NOW)


@pytest.fixture
def alignd(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Alignd:
    home = tmp_path / "home"
    assert cli.main(["init", "--no-trial", str(home), "--model", str(usable_base(tmp_path / "base"))]) == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Alignd(home, capsys)


@pytest.fixture
def two(alignd: Alignd) -> Iterator[Store]:
    with Store.open(alignd.home) as store:
        a_version(store, 1, {"poison": 0.25, "fraud": 1.0})
        a_version(store, 2, {"poison": 0.5, "fraud": 0.0})
        yield store


def words_of(svg: bytes) -> list[str]:
    return [text for element in ElementTree.fromstring(svg).iter() if (text := (element.text or "").strip())]


def test_all_charts_are_written_as_png_into_this_folder(alignd: Alignd, two: Store) -> None:
    out = alignd.text("plot")
    names = ["axes.png", "harm.png", "search-v2.png"]
    assert [Path(line).name for line in out.splitlines()] == names == sorted(path.name for path in Path().iterdir())
    for name in names:
        data = Path(name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        across, up = struct.unpack(">II", data[16:24])
        assert across > 600 and up > 150
        assert Path(name).stat().st_mode & 0o777 == 0o644


def test_what_is_drawn_is_what_was_measured(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    listed = alignd.json("plot", "--format", "svg", "--out", str(tmp_path / "here"), "--ref", "v1")
    axes, harm, search = (words_of(Path(item["path"]).read_bytes()) for item in listed)
    assert {"harm", "over-refusal", "utility", "in service", "v1", "v2"} <= set(axes)
    assert {"poison", "fraud", "25", "50", "100", "0", "v1", "v2"} <= set(harm)
    assert {"Merges tried for v1", "What each does (taken: 1)", "1, 2"} <= set(search)


def test_no_text_of_a_batch_and_no_name_of_one_is_in_a_chart(alignd: Alignd, two: Store) -> None:
    for item in alignd.json("plot", "--format", "svg"):
        text = Path(item["path"]).read_text()
        assert SECRET not in text and "batch1" not in text and str(alignd.home) not in text


@pytest.mark.parametrize("form", ["png", "svg"])
def test_equal_versions_give_equal_bytes(alignd: Alignd, two: Store, form: str) -> None:
    alignd.text("plot", "--format", form)
    first = {path.name: path.read_bytes() for path in Path().iterdir()}
    alignd.text("plot", "--format", form, "--force")
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == first


def test_one_chart_goes_to_the_file_that_is_named_in_the_form_of_its_ending(alignd: Alignd, two: Store) -> None:
    alignd.text("plot", "harm", "--out", "a.SVG")
    assert words_of(Path("a.SVG").read_bytes())
    alignd.text("plot", "axes", "--out", "b.png")
    assert Path("b.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_overwritten_and_nothing_written_where_one_is_there(alignd: Alignd, two: Store) -> None:
    Path("harm.png").write_text("mine")
    code, _, err = alignd("plot")
    assert code == exitcodes.FAILED and "harm.png: there already; --force overwrites" in err
    assert [path.name for path in Path().iterdir()] == ["harm.png"] and Path("harm.png").read_text() == "mine"
    alignd.text("plot", "--force")
    assert Path("harm.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_in_the_place_of_a_chart_is_told_also_with_force(alignd: Alignd, two: Store) -> None:
    Path("harm.png").mkdir()
    code, _, err = alignd("plot", "--force")
    assert code == exitcodes.FAILED and "harm.png is a folder" in err
    assert [path.name for path in Path().iterdir()] == ["harm.png"]


def test_a_chart_is_there_whole_or_not_at_all(alignd: Alignd, two: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    Path("axes.png").write_text("mine")
    monkeypatch.setattr(durable.Writer, "commit", full)
    assert alignd("plot", "axes", "--force")[0] == exitcodes.FAILED
    assert [path.name for path in Path().iterdir()] == ["axes.png"] and Path("axes.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pie"], exitcodes.USAGE, "one of axes, harm, search is expected"),
        (["--out", "a.svg"], exitcodes.USAGE, "is one file, and 3 charts are asked for"),
        (["axes", "--out", "a.svg", "--format", "png"], exitcodes.USAGE, "--format png does not fit a.svg"),
        (["axes", "--out", "no/a.svg"], exitcodes.FAILED, "mkdir -p"),
        (["--out", "nowhere"], exitcodes.FAILED, "mkdir -p"),
        (["search", "--ref", "v9"], exitcodes.NOT_FOUND, "no version is called 'v9'"),
        (["search", "--ref", "v0"], exitcodes.NOT_FOUND, "nothing was searched for v0"),
    ],
)
def test_what_cannot_be_drawn_is_told_and_nothing_written(
    alignd: Alignd, two: Store, words: list[str], code: int, said: str
) -> None:
    got, out, err = alignd("plot", *words)
    assert (got, out) == (code, "") and said in err and err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_home_without_measurements_has_nothing_to_draw_and_a_part_is_left_out_with_a_note(alignd: Alignd) -> None:
    code, _, err = alignd("plot")
    assert code == exitcodes.NOT_FOUND and "no version was measured yet" in err
    with Store.open(alignd.home) as store:
        a_version(store, 1, {})
    code, out, err = alignd("plot")
    assert code == exitcodes.OK and len(out.splitlines()) == 2 and "harm by category" in err


def test_names_that_are_no_names_are_drawn_as_text(alignd: Alignd) -> None:
    names = ["$\\frac{$", "日本語", "<script>&", "x" * 200, "a\x1b[2J", ""]
    with Store.open(alignd.home) as store:
        a_version(store, 1, dict.fromkeys(names, 0.5))
    alignd.text("plot", "harm")
    alignd.text("plot", "harm", "--format", "svg")
    words = words_of(Path("harm.svg").read_bytes())
    assert {"$\\frac{$", "日本語", "<script>&", "x" * 31 + "…", "a\\x1b[2J"} <= set(words)


def a_view(number: int, **changes: Any) -> View:
    metrics = {"harm_rate": 0.1, "over_refusal_rate": None, "utility": 0.5}
    return {"id": f"v{number}", "state": "published", "current": number == 1, "metrics": metrics} | changes


def test_a_version_that_left_service_has_hollow_marks() -> None:
    chart = figures.versions_chart([a_view(0), a_view(1), a_view(2, state="rolled_back")])
    assert chart is not None
    svg = figures.image(chart, "svg").decode()
    assert len(re.findall(r"fill: #ffffff; stroke: #c2321f", svg)) >= 1
    plain = figures.versions_chart([a_view(0), a_view(1), a_view(2)])
    assert plain is not None and "fill: #ffffff; stroke: #c2321f" not in figures.image(plain, "svg").decode()


def test_many_versions_are_drawn_as_lines_without_marks() -> None:
    chart = figures.versions_chart([a_view(number, state="rejected") for number in range(300)])
    assert chart is not None and figures.image(chart, "png").startswith(b"\x89PNG")
    assert len(figures.image(chart, "svg")) < 60_000


def test_a_merge_without_figures_is_left_out_of_the_points() -> None:
    trials = [
        {"score": 1.0, "axes": {"harm_rate": 0.9, "over_refusal_rate": 0.5}},
        {"score": 2.0, "axes": {}},
        {"score": 3.0, "axes": {"harm_rate": 0.1, "over_refusal_rate": 0.5}},
    ]
    chart = figures.search_chart("v1", {"trials": trials, "winner": None})
    assert chart is not None
    words = words_of(figures.image(chart, "svg"))
    assert "What each does" in words
    assert figures.search_chart("v1", {"trials": trials[:1], "winner": 0}) is None
    assert figures.search_chart("v1", None) is None


def test_a_number_stands_beside_a_dot_and_not_at_the_middle_of_its_neighbourhood() -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    plot = Figure().subplots()
    figures._draw_points(plot, [{"axes": {"harm_rate": 0.074, "over_refusal_rate": 0.124}}], None)
    (label,) = plot.texts
    assert isinstance(label, Annotation) and label.xy == pytest.approx((7.4, 12.4))
