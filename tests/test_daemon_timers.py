"""Timers only wake, and are what the settings say."""

import threading
from datetime import UTC, datetime

import pytest

from daemon import config as settings
from daemon.config import ConfigError
from daemon.timers import TRAINING_WINDOW, VERIFY, CronTrigger, Timers, cron_setting


class Woken:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.event = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.event.set()


def _config(**schedule: str) -> settings.Config:
    return settings.parse({"schedule": schedule})


def test_stopping_while_a_job_is_being_run_fails_in_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CronTrigger, "get_next_fire_time", lambda trigger, previous, now: None if previous else now)
    for _ in range(50):  # without the pause one in five stops met it; an exception in a thread fails the test
        woken = Woken()
        timers = Timers(_config(), woken)
        timers.start()
        assert woken.event.wait(3)
        timers.stop()
    assert set(woken.reasons) <= {TRAINING_WINDOW, VERIFY}


def test_stopping_twice_or_before_the_start_does_nothing() -> None:
    timers = Timers(_config(), Woken())
    timers.stop()
    timers.start()
    timers.stop()
    timers.stop()


def test_a_wrong_cron_expression_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.verify: cron field hour: '25'"):
        Timers(_config(verify="0 25 * * *"), Woken())


def test_a_refused_reload_changes_nothing() -> None:
    timers = Timers(_config(verify="0 3 * * *"), Woken())
    before = {job.id: str(job.trigger) for job in timers._scheduler.get_jobs()}
    with pytest.raises(ConfigError):
        timers.apply(_config(training_window="never"))
    assert {job.id: str(job.trigger) for job in timers._scheduler.get_jobs()} == before


def test_an_empty_verify_means_never() -> None:
    timers = Timers(_config(verify="0 3 * * *"), Woken())
    timers.apply(_config(verify=""))
    assert {job.id for job in timers._scheduler.get_jobs()} == {"training_window"}


def test_the_trigger_counts_sunday_as_zero() -> None:
    trigger = CronTrigger(cron_setting("x", "0 0 * * 0"))
    monday = datetime(2026, 3, 2, tzinfo=UTC)
    assert trigger.get_next_fire_time(None, monday) == datetime(2026, 3, 8, tzinfo=UTC)
    assert trigger.get_next_fire_time(datetime(2026, 3, 8, tzinfo=UTC), monday) == datetime(2026, 3, 15, tzinfo=UTC)
