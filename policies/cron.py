"""Cron expressions, as crontab(5) reads them: five fields, Sunday is 0 or 7, either day field may match."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_PART = re.compile(r"(?P<low>\*|\w+)(-(?P<high>\w+))?(/(?P<step>\d+))?")
_LONGEST_DAYS = 8 * 366 + 1
"""29 February can be eight years away, around a century."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A set of minutes, in the time zone of the datetimes it is asked about."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Both day fields are restricted, so that one of them matching is enough."""

    def matches(self, at: datetime) -> bool:
        """Whether the minute of ``at`` is in the set."""
        return at.minute in self.minutes and at.hour in self.hours and self._matches_day(at)

    def next_after(self, at: datetime) -> datetime | None:
        """The first minute of the set that starts after ``at``; None when there is none (30 February)."""
        start = at.replace(second=0, microsecond=0) + timedelta(minutes=1)
        for day in range(_LONGEST_DAYS):
            date = start + timedelta(days=day)
            if not self._matches_day(date):
                continue
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    found = date.replace(hour=hour, minute=minute)
                    if found >= start:
                        return found
        return None

    def _matches_day(self, at: datetime) -> bool:
        day, weekday = at.day in self.days, at.isoweekday() % 7 in self.weekdays
        return at.month in self.months and ((day or weekday) if self.either_day else (day and weekday))


def parse_cron(expression: str) -> Cron:
    """The minutes that a crontab expression names.

    Raises:
        ValueError: not five fields, a value out of range, or a set that no date is in.
    """
    parts = expression.lower().split()
    if len(parts) != len(_FIELDS):
        raise ValueError(
            f"cron expression {expression!r} has {len(parts)} fields; write five, separated by spaces: "
            "minute hour day-of-month month day-of-week, for instance '0 2 * * *'"
        )
    minutes, hours, days, months, weekdays = map(_parse_field, _FIELDS, parts)
    either = not parts[2].startswith("*") and not parts[4].startswith("*")
    cron = Cron(minutes, hours, days, months, frozenset(day % 7 for day in weekdays), either)
    if cron.next_after(datetime(2000, 1, 1)) is None:
        raise ValueError(f"cron expression {expression!r} names a date that never comes")
    return cron


def _parse_field(field: _Field, text: str) -> frozenset[int]:
    return frozenset().union(*(_parse_part(field, part) for part in text.split(",")))


def _parse_part(field: _Field, text: str) -> range:
    found = _PART.fullmatch(text)
    if not found or (found["low"] == "*" and found["high"]):
        raise _refusal(field, text)
    step = int(found["step"] or 1)
    if found["low"] == "*":
        low, high = field.low, field.high
    else:
        low = _value(field, found["low"])
        # crontab(5): a step after a single number runs to the end of the field
        high = _value(field, found["high"]) if found["high"] else (field.high if found["step"] else low)
    if step < 1 or low > high:
        raise _refusal(field, text)
    return range(low, high + 1, step)


def _value(field: _Field, text: str) -> int:
    if text in field.words:
        return field.words.index(text) + field.low
    if not text.isdecimal() or not field.low <= int(text) <= field.high:
        raise _refusal(field, text)
    return int(text)


def _refusal(field: _Field, text: str) -> ValueError:
    words = f" or {field.words[0]}..{field.words[-1]}" if field.words else ""
    allowed = f"{field.low}..{field.high}{words}, *, a-b, */n or a,b"
    return ValueError(f"cron field {field.name}: {text!r} is not allowed; use {allowed}")
