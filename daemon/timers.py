"""Wake-ups at times of the clock. A job only wakes the control loop; what is due is decided there, from the ledger.

What comes after some seconds is the loop's own: these here go by the clock of the wall, which may be set.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from daemon.config import Config, ConfigError
from daemon.log import TIMER_FAILED
from policies.cron import Cron, parse_cron

TRAINING_WINDOW: Final = "training_window"
VERIFY: Final = "verify"

_log = structlog.get_logger()


def cron_setting(key: str, expression: str) -> Cron:
    """The minutes of a cron setting. Raises ConfigError naming the key."""
    try:
        return parse_cron(expression)
    except ValueError as err:
        raise ConfigError(f"{key}: {err}") from err


class CronTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires at every minute of a `Cron`, in UTC; APScheduler's own counts weekdays from Monday."""

    def __init__(self, cron: Cron) -> None:
        self._cron = cron

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first minute after both; None when there is none."""
        return self._cron.next_after(max(previous_fire_time or now, now))


class Timers:
    """Wakes the control loop by name: `TRAINING_WINDOW`, `VERIFY`.

    Args:
        wake: called on a timer thread with the reason; must only set a flag.
    """

    def __init__(self, config: Config, wake: Callable[[str], None]) -> None:
        self._wake = wake
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = BackgroundScheduler(timezone=UTC, job_defaults=defaults)
        self._scheduler.add_listener(_report, EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Takes the periodic times from ``config``, also after a reload. Raises ConfigError, changing nothing."""
        schedule = config.schedule
        window = cron_setting("schedule.training_window", schedule.training_window)
        verify = cron_setting("schedule.verify", schedule.verify) if schedule.verify else None
        self._put(TRAINING_WINDOW, CronTrigger(window))
        if verify is not None:
            self._put(VERIFY, CronTrigger(verify))
        elif self._scheduler.get_job(VERIFY):
            self._scheduler.remove_job(VERIFY)

    def start(self) -> None:
        """Starts the timer thread."""
        self._scheduler.start()

    def stop(self) -> None:
        """Ends the timer thread; does nothing when it does not run."""
        if not self._scheduler.running:
            return
        # A job that is just being run must be put away before the scheduler counts as stopped, or its thread fails.
        self._scheduler.pause()
        self._scheduler.get_jobs()  # waits for the lock that the timer thread holds meanwhile
        self._scheduler.shutdown(wait=False)

    def _put(self, name: str, trigger: BaseTrigger) -> None:
        self._scheduler.add_job(self._wake, trigger, args=[name], id=name, replace_existing=True)


def _report(event: Any) -> None:
    _log.warning(TIMER_FAILED, timer=event.job_id, code=event.code)
