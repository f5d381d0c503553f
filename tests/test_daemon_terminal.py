"""Text for people: widths, colours, numbers."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import terminal
from daemon.terminal import Style

PLAIN = Style()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_used_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.style_of(Terminal()).colour
    assert not terminal.style_of(io.StringIO()).colour


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_are_off_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    assert not terminal.style_of(Terminal()).colour


def test_an_empty_no_color_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "")
    assert terminal.style_of(Terminal()).colour


def test_a_file_name_cannot_command_the_terminal() -> None:
    assert terminal.printable("a\x1b[2Jb\nc\udc80d") == "a\\x1b[2Jb\\nc\\udc80d"


def test_a_table_fits_the_columns_by_cutting_the_flexible_ones() -> None:
    rows = [["v1", "a-very-long-name-that-nobody-needs-to-read-whole-" * 2, "1.0%"]]
    lines = terminal.table(["ID", "NAME", "RATE"], rows, Style(columns=40), right="RATE", flexible="NAME")
    assert max(map(terminal.width, lines)) == 40
    assert lines[1].endswith("…  1.0%")


def test_a_table_that_fits_is_not_cut() -> None:
    lines = terminal.table(["ID", "RATE"], [["v1", "1"], ["v10", "100"]], PLAIN, right="RATE", flexible="ID")
    assert lines == ["ID   RATE", "v1      1", "v10   100"]


def test_colours_do_not_count_for_the_width() -> None:
    painted = Style(colour=True).paint("good", "good")
    assert painted != "good"
    assert Style(colour=True).paint("", "good") == ""
    assert terminal.width(painted) == 4
    assert terminal.table(["A", "B"], [[painted, "x"]], PLAIN)[1].endswith("good\x1b[0m  x")


def test_wide_characters_count_twice_and_combining_ones_not_at_all() -> None:
    assert terminal.width("日本") == 4
    assert terminal.width("e\u0301") == 1


@given(st.text(), st.integers(2, 30))
def test_a_cut_text_is_never_wider_than_asked(text: str, columns: int) -> None:
    shown = terminal.printable(text)
    assert terminal.width(terminal.cut(shown, columns)) <= columns


def test_numbers_have_one_form() -> None:
    assert [terminal.percent(v) for v in (None, 0.0, 0.0412, 1.0)] == ["-", "0.0%", "4.1%", "100%"]
    assert [terminal.signed_percent(v) for v in (None, -0.0412, 0.05)] == ["-", "-4.1", "+5.0"]
    assert [terminal.size(v) for v in (None, 12, 1500, 999_000, 13_000_000_000)] == [
        "-",
        "12 B",
        "1.5 KB",
        "999 KB",
        "13.0 GB",
    ]
    assert [terminal.duration(v) for v in (None, 42.9, 185, 7800)] == ["-", "42s", "3m 05s", "2h 10m"]
    assert [terminal.number(v) for v in (None, 1234567, 0.000123456)] == ["-", "1,234,567", "0.0001235"]
    assert terminal.when("2026-01-31T12:05:59.123+00:00") == "2026-01-31 12:05"


def test_a_sparkline_shows_the_course_and_nothing_for_a_single_point() -> None:
    assert terminal.sparkline([0.0, 1.0, 2.0, 3.0], 4) == "▁▃▅█"
    assert len(terminal.sparkline([float(i) for i in range(100)], 16)) == 16
    assert terminal.sparkline([1.0], 8) == ""
    assert terminal.sparkline([1.0, 1.0], 8) == "▁▁"


def test_a_bar_stays_in_its_columns() -> None:
    assert [terminal.bar(f, 4) for f in (-1.0, 0.5, 2.0)] == ["░░░░", "██░░", "████"]


def test_fields_without_a_value_are_left_out() -> None:
    assert terminal.fields([("name", "x"), ("empty", ""), ("longer", "y")], PLAIN) == ["name    x", "longer  y"]


def test_wrapped_text_fits_and_keeps_paths_whole() -> None:
    path = "/a/rather-long/path-with-hyphens/file.jsonl"
    lines = terminal.wrapped(f"problem: {path} cannot be read by anybody at all", Style(columns=50), indent=9)
    assert path in lines[0] + lines[1]
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert max(map(len, lines)) <= 52


def test_a_long_value_of_a_field_goes_on_below_itself() -> None:
    lines = terminal.fields([("name", "zorp " * 12), ("x", "y")], Style(columns=40))
    assert max(map(len, lines)) <= 40
    assert lines[1].startswith(" " * 6 + "zorp")
    assert lines[-1] == "x     y"


@pytest.mark.parametrize("columns", range(20, 40))
def test_a_note_stands_beside_its_row_or_whole_below_it_and_all_fits(columns: int) -> None:
    notes = ["", "v1", "taken out by v3 again"]
    lines = terminal.noted_table(["A", "B"], [["x" * 15, "y"]] * 3, notes, Style(columns=columns))
    assert max(map(terminal.width, lines)) <= columns
    assert "v1" in " ".join(lines) and "taken out by v3 again" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("word", ["z" * 150, "日本語" * 30, "e\u0301" * 150])
@pytest.mark.parametrize("start", ["", "because of "])
def test_a_word_that_is_wider_than_a_line_is_broken(word: str, start: str) -> None:
    lines = terminal.wrapped(f"{start}{word} it is", PLAIN, indent=4)
    assert max(map(terminal.width, lines)) <= 80
    assert word in "".join(line.strip() for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])


def test_a_path_that_is_wider_than_a_line_is_left_whole_to_be_copied() -> None:
    path = "/home" * 40
    assert f"`{path}`," in [line.strip() for line in terminal.wrapped(f"look at `{path}`, please", PLAIN, indent=4)]


def test_a_long_value_of_a_field_is_painted_line_by_line() -> None:
    painted = Style(colour=True).paint("zorp " * 30, "warn")
    lines = terminal.fields([("held", painted)], PLAIN)
    assert len(lines) > 1 and max(map(terminal.width, lines)) <= 80
    assert all(line.endswith("\x1b[0m") for line in lines)


@given(st.text(), st.integers(20, 80), st.integers(0, 6))
def test_wrapped_text_loses_nothing_and_fits(text: str, columns: int, indent: int) -> None:
    shown = terminal.printable(text).replace("/", "")
    lines = terminal.wrapped(shown, Style(columns=columns), indent=indent)
    assert "".join("".join(lines).split()) == "".join(shown.split())
    assert max(map(terminal.width, lines)) <= columns
