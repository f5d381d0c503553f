"""Timers only wake, and are what the settings say."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from daemon import config as settings
from daemon.config import ConfigError
from daemon.timers import RESCAN, RETRY, CronTrigger, Timers, cron_setting


class Woken:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.event = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.event.set()


def _config(**schedule: str) -> settings.Config:
    return settings.parse({"inbox": {"rescan_s": 3600.0}, "schedule": schedule})


def test_a_retry_wakes_at_its_time_and_a_later_one_replaces_it() -> None:
    woken = Woken()
    timers = Timers(_config(), woken)
    timers.start()
    try:
        timers.wake_at(datetime.now(UTC) + timedelta(hours=1))
        timers.wake_at(datetime.now(UTC) + timedelta(milliseconds=50))
        assert woken.event.wait(3)
        assert woken.reasons == [RETRY]
    finally:
        timers.stop()


def test_a_retry_that_is_long_overdue_still_wakes() -> None:
    woken = Woken()
    timers = Timers(_config(), woken)
    timers.wake_at(datetime.now(UTC) - timedelta(hours=3))
    timers.start()
    try:
        assert woken.event.wait(3)
    finally:
        timers.stop()


def test_stopping_while_a_retry_is_being_run_fails_in_no_thread() -> None:
    for _ in range(50):  # without the pause one in five stops met it; an exception in a thread fails the test
        woken = Woken()
        timers = Timers(_config(), woken)
        timers.wake_at(datetime.now(UTC) - timedelta(hours=3))
        timers.start()
        assert woken.event.wait(3)
        timers.stop()


def test_the_inbox_is_rescanned_periodically() -> None:
    woken = Woken()
    timers = Timers(settings.parse({"inbox": {"rescan_s": 0.05}}), woken)
    timers.start()
    try:
        assert woken.event.wait(3)
        assert woken.reasons[0] == RESCAN
    finally:
        timers.stop()


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
    assert {job.id for job in timers._scheduler.get_jobs()} == {"rescan", "training_window"}


def test_the_trigger_counts_sunday_as_zero() -> None:
    trigger = CronTrigger(cron_setting("x", "0 0 * * 0"))
    monday = datetime(2026, 3, 2, tzinfo=UTC)
    assert trigger.get_next_fire_time(None, monday) == datetime(2026, 3, 8, tzinfo=UTC)
    assert trigger.get_next_fire_time(datetime(2026, 3, 8, tzinfo=UTC), monday) == datetime(2026, 3, 15, tzinfo=UTC)
