"""The line from the worker to the supervisor."""

import io

import pytest

from daemon.progress import DoneEvent, FailedEvent, Outcome, ProgressEvent, Reporter, StepEvent, decode_event


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_every_report_comes_back_as_its_event() -> None:
    out = io.StringIO()
    reporter = Reporter(out)
    reporter.progress("derive", 0.5, loss=1.25)
    reporter.step("derive", {"patch": "abc"})
    reporter.failed("it broke", retry=True)
    reporter.done(Outcome("ready", ("fine",), {"record": {"n": 1}}))
    assert [decode_event(line) for line in out.getvalue().splitlines()] == [
        ProgressEvent("derive", 0.5, 1.25),
        StepEvent("derive", {"patch": "abc"}),
        FailedEvent("it broke", True),
        DoneEvent("ready", ["fine"], {"record": {"n": 1}}),
    ]


def test_progress_is_sent_at_most_five_times_a_second() -> None:
    out, clock = io.StringIO(), Clock()
    reporter = Reporter(out, clock=clock)
    for tick in range(1000):
        clock.now = tick / 1000
        reporter.progress("derive", tick / 2000)
    assert len(out.getvalue().splitlines()) == 5


def test_a_new_step_and_the_end_of_a_step_are_always_sent() -> None:
    out = io.StringIO()
    reporter = Reporter(out, clock=Clock())
    for step, fraction in (("derive", 0.0), ("derive", 0.5), ("derive", 1.0), ("merge", 0.0)):
        reporter.progress(step, fraction)
    assert [line.count("derive") for line in out.getvalue().splitlines()] == [1, 1, 0]


def test_a_loss_that_is_no_number_is_sent_as_null() -> None:
    out = io.StringIO()
    Reporter(out).progress("derive", float("nan"), loss=float("inf"))
    assert decode_event(out.getvalue()) == ProgressEvent("derive", 0.0, None)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"event":"other"}', b'{"event":"done","outcome":"great"}', b"Loading: 10%"],
)
def test_a_line_that_is_no_event_is_none(line: bytes) -> None:
    assert decode_event(line) is None


def test_what_is_told_can_always_be_sent_and_printed() -> None:
    out = io.StringIO()
    reporter = Reporter(out)
    reporter.failed("a\udcff\x1b[31m", retry=True)
    reporter.done(Outcome("quarantined", ("b\ud800\n",)))
    events = [decode_event(line) for line in out.getvalue().splitlines()]
    assert events == [FailedEvent("a\\udcff\\x1b[31m", True), DoneEvent("quarantined", ["b\\ud800\\n"])]


def test_a_line_that_is_nested_too_deeply_is_no_event() -> None:
    assert decode_event('{"event": "step", "step": "a", "result": {"a": ' + "[" * 100_000) is None
