"""Growth of steps: what an exponent is, that each point is measured apart, and that pictures have every curve."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import growth, growth_plots
from benchmarks.speed.growth import Curve, Point
from benchmarks.speed.growth_steps import STEPS, Work


def curve(power: float, *, step: str = "zorp", axis: str = "rows", scale: float = 1e-3) -> Curve:
    return Curve(step, axis, tuple(Point(n, scale * n**power, n / 100) for n in (100, 1000, 10_000)))


@pytest.mark.parametrize(("power", "is_linear"), [(0.0, True), (0.5, True), (1.0, True), (1.1, True), (1.3, False)])
def test_what_grows_faster_than_its_work_is_told(power: float, is_linear: bool) -> None:
    found = curve(power, scale=1.0)
    assert found.exponent == pytest.approx(power) and found.is_linear is is_linear
    assert (", faster than its work" in growth.table([found])) is not is_linear
    assert found.to_dict()["is_linear"] is is_linear and len(found.to_dict()["points"]) == 3


def test_a_curve_comes_back_from_what_is_kept() -> None:
    assert Curve.of(json.loads(json.dumps(curve(1.0).to_dict()))) == curve(1.0)


def test_the_last_two_points_count() -> None:
    bent = Curve("zorp", "rows", (Point(1, 1, 0), Point(10, 1, 0), Point(100, 100, 0)))
    assert bent.exponent == pytest.approx(2) and bent.is_linear is False


def test_points_too_short_to_tell_are_not_judged() -> None:
    for found in (curve(2.0, scale=1e-12), Curve("zorp", "rows", (Point(1, 9.0, 0),))):
        assert found.exponent is found.is_linear is None
        assert "too short to tell" in growth.table([found])


def test_only_the_step_itself_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def burn() -> int:
        return sum(range(20_000_000))

    def late(name: str, place: Path) -> tuple[float, Work]:
        burn()
        return float(name), lambda: None

    monkeypatch.setitem(STEPS, "late", ("rows", (), late))
    monkeypatch.setitem(STEPS, "work", ("rows", (), lambda name, place: (float(name), burn)))
    found = {}
    for step in ("late", "work"):
        growth.child(step, "7", "nowhere")
        found[step] = json.loads(capsys.readouterr().out)
    assert found["late"]["size"] == found["work"]["size"] == 7
    assert found["late"]["seconds"] < found["work"]["seconds"] / 2


def test_memory_is_what_the_step_takes_and_not_what_was_made_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def early(name: str, place: Path) -> tuple[float, Work]:
        bytearray(b"x" * (300 << 20))
        return float(name), lambda: bytearray(b"x" * (40 << 20))

    monkeypatch.setitem(STEPS, "early", ("rows", (), early))
    growth.child("early", "7", "nowhere")
    assert 35 <= json.loads(capsys.readouterr().out)["mib"] < 150


@pytest.mark.parametrize(
    ("step", "names", "sizes"),
    [
        ("read a batch", ("10", "20000"), [10, 20_000]),
        ("screen and split it", ("50", "60"), [50, 60]),
        ("record a teacher", ("3",), [3]),
        ("SNIP scores", ("3",), [3]),
        ("answers", ("3", "300"), [3, 300]),
        ("ten steps of training", ("3",), [3]),
        ("try one merge", ("0.02B",), [6_426_624]),
        ("merge and write a version", ("0.02B",), [6_426_624]),
        ("rebuild a version", ("0.02B",), [6_426_624]),
        ("rebuild the last of a chain", ("1", "3"), [1, 3]),
        ("roll back to the first", ("2",), [2]),
        ("history", ("2",), [2]),
        ("verify --deep", ("2",), [2]),
    ],
)
def test_every_step_is_measured(
    tmp_path: Path, step: str, names: tuple[str, ...], sizes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        growth.child(step, name, str(tmp_path / name))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [point["size"] for point in found] == sizes
    assert all(point["seconds"] > 0 and (point["mib"] is None or point["mib"] >= 0) for point in found)


def test_each_point_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = "import os; from benchmarks.speed.growth_steps import STEPS; " \
           "STEPS['read a batch'] = ('rows', (), lambda name, place: (os.getpid(), lambda: None)); "  # fmt: skip
    monkeypatch.setattr(growth, "_IN_A_PROCESS", fake + growth._IN_A_PROCESS)
    monkeypatch.setitem(STEPS, "read a batch", ("rows", (), lambda name, place: (os.getpid(), lambda: None)))
    pids = [point.size for point in growth.measured("read a batch", tmp_path, ("10", "20")).points]
    assert len({*pids, os.getpid()}) == 3


def test_the_steps_of_the_list_are_those_that_are_tested() -> None:
    tested: Any = test_every_step_is_measured
    (marks,) = [mark for mark in tested.pytestmark if mark.name == "parametrize"]
    assert [case[0] for case in marks.args[1]] == list(STEPS)


def test_a_picture_an_axis_has_every_curve_and_is_the_same_each_time(tmp_path: Path) -> None:
    curves = [
        curve(1, step="one"),
        curve(2, step="two"),
        Curve("three", "rounds", (Point(1, 1, None), Point(100, 2, None))),
    ]
    paths = growth_plots.plot(curves, tmp_path)
    assert [path.name for path in paths] == ["growth-rows.svg", "growth-rounds.svg"]
    rows, rounds = (path.read_text() for path in paths)
    assert all(word in rows for word in ("one", "two", "seconds of the processor", "MiB"))
    assert "not measured" in rounds and "not measured" not in rows
    assert "three" in rounds and ">one<" not in rounds
    (tmp_path / "again").mkdir()
    again = growth_plots.plot(curves, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
