"""What is known about a running worker, and how long it will take."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from daemon.board import Board, job_facts
from daemon.child import Child
from daemon.job import LOSS_POINTS, Job, estimate_s
from daemon.progress import DoneEvent, FailedEvent, StepEvent
from tests.fakes_service import wait_until


def _job(*events: Mapping[str, object], then: str = "") -> Job:
    lines = "".join(json.dumps(dict(event)) + "\n" for event in events)
    code = f"import sys, time; sys.stdout.write({lines!r}); sys.stdout.flush(); {then}"
    return Job("round", "r000001", Child([sys.executable, "-S", "-c", code], env=dict(os.environ), wake=lambda: None))


def _ending(job: Job, limit_s: float = 60.0) -> DoneEvent | FailedEvent:
    found: list[DoneEvent | FailedEvent] = []

    def has_ended() -> bool:
        ending = job.poll(limit_s, lambda event: None)
        found.extend([ending] if ending else [])
        return bool(found)

    wait_until(has_ended)
    return found[0]


def _progress(fraction: float, loss: float | None = None) -> dict[str, object]:
    return {"event": "progress", "step": "derive", "fraction": fraction, "loss": loss}


def test_steps_are_handed_on_in_order_before_the_outcome() -> None:
    steps: list[StepEvent] = []
    job = _job(
        *({"event": "step", "step": name, "result": {}} for name in "abc"), {"event": "done", "outcome": "ready"}
    )
    wait_until(lambda: job.poll(60, steps.append) is not None)
    assert [event.step for event in steps] == ["a", "b", "c"]
    assert list(job.durations_s) == ["a", "b", "c"]


def test_an_end_without_an_outcome_is_a_failure_that_names_the_step() -> None:
    ending = _ending(_job(_progress(0.5), then="sys.exit(3)"))
    assert ending == FailedEvent("the worker died in step derive: exit code 3", True)


def test_an_outcome_counts_even_if_the_exit_goes_wrong() -> None:
    assert _ending(_job({"event": "done", "outcome": "ready"}, then="sys.exit(3)")) == DoneEvent("ready")


def test_a_worker_that_will_not_leave_after_its_outcome_is_ended() -> None:
    started = time.monotonic()
    ending = _ending(_job({"event": "done", "outcome": "ready"}, then="time.sleep(60)"), limit_s=0.3)
    assert ending == DoneEvent("ready") and time.monotonic() - started < 40


def test_the_losses_of_a_step_are_thinned_and_reach_back_to_its_first() -> None:
    job = _job(*(_progress(0.5, loss=float(nth)) for nth in range(LOSS_POINTS + 7)))
    _ending(job)
    assert job.losses["derive"].points == [float(nth) for nth in range(0, LOSS_POINTS + 7, 2)]
    assert len(job.losses["derive"].points) <= LOSS_POINTS


def test_time_left_comes_from_the_fraction_and_from_earlier_rounds() -> None:
    job = _job(_progress(0.25), then="time.sleep(60)")
    wait_until(lambda: job.poll(60, lambda event: None) is None and job.step == "derive")
    time.sleep(0.05)
    before = job.elapsed_s()
    alone = estimate_s(job, {})
    assert alone is not None and 3 * before <= alone <= 3 * job.elapsed_s()
    before = job.elapsed_s()
    later = estimate_s(job, {"parse": 5.0, "derive": 9.0, "merge": 20.0, "gate": 1.0})
    assert later is not None and 3 * before + 21 <= later <= 3 * job.elapsed_s() + 21
    job.end()


def test_nothing_is_guessed_about_a_step_that_only_begins() -> None:
    job = _job(_progress(0.0), then="time.sleep(60)")
    wait_until(lambda: job.poll(60, lambda event: None) is None and job.step == "derive")
    assert estimate_s(job, {}) is None
    guess = estimate_s(job, {"derive": 50.0})
    assert guess is not None and 45 < guess <= 50
    job.end()


def test_the_board_has_the_same_keys_with_and_without_a_job() -> None:
    job = _job(_progress(0.5))
    assert job_facts(None, {}, []).keys() == job_facts(job, {}, []).keys()
    _ending(job)


def test_the_board_writes_only_what_changed_and_at_most_five_times_a_second(tmp_path: Path) -> None:
    board = Board(tmp_path)
    path = tmp_path / "run" / "progress.json"
    assert board.show({"state": "idle"}, at="1")
    assert not board.show({"state": "training"}, at="2")
    assert json.loads(path.read_text())["state"] == "idle"
    time.sleep(0.25)
    assert board.show({"state": "training"}, at="3")
    assert json.loads(path.read_text()) == {"at": "3", "pid": os.getpid(), "state": "training"}
    board.remove()
    board.remove()
    assert not path.exists()


def test_what_a_service_left_that_was_killed_while_it_wrote_the_board_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _die)
        with pytest.raises(_CrashError):
            Board(tmp_path).show({"state": "idle"}, at="1")
    assert list((tmp_path / "run").iterdir())
    Board(tmp_path)
    assert list((tmp_path / "run").iterdir()) == []


class _CrashError(Exception):
    """The process dies here."""


def _die(*_: object) -> None:
    raise _CrashError


def test_step_durations_survive_a_restart_and_a_damaged_file_is_no_matter(tmp_path: Path) -> None:
    Board(tmp_path).save_durations({"derive": 2.5, "merge": 1.0})
    assert Board(tmp_path).load_durations() == {"derive": 2.5, "merge": 1.0}
    (tmp_path / "run" / "durations.json").write_text("{")
    assert Board(tmp_path).load_durations() == {}


def test_a_board_that_cannot_be_written_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    Board(tmp_path).show({"state": "idle"}, at="1")
