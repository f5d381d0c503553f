"""Cron expressions and the decision whether a round may start."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.cron import parse_cron
from policies.schedule import LONGEST_RETRY_S, Situation, is_out_of_attempts, may_start_round, retry_at

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)  # a Sunday
ALWAYS = parse_cron("* * * * *")


@pytest.mark.parametrize(
    ("expression", "at", "matches"),
    [
        ("* * * * *", NOON, True),
        ("0 12 * * *", NOON, True),
        ("1 12 * * *", NOON, False),
        ("*/15 * * * *", NOON.replace(minute=45), True),
        ("*/15 * * * *", NOON.replace(minute=46), False),
        ("0 9-17/4 * * *", NOON.replace(hour=13), True),
        ("0 9-17/4 * * *", NOON.replace(hour=14), False),
        ("5/20 * * * *", NOON.replace(minute=25), True),
        ("* * * * 0", NOON, True),
        ("* * * * 7", NOON, True),
        ("* * * * 1", NOON, False),
        ("* * * * mon", NOON + timedelta(days=1), True),
        ("* * * MAR *", NOON, True),
        ("* * * apr *", NOON, False),
        ("0,30 12 * * *", NOON.replace(minute=30), True),
    ],
)
def test_cron_matches_as_crontab_5_says(expression: str, at: datetime, matches: bool) -> None:
    assert parse_cron(expression).matches(at) is matches


def test_cron_with_both_day_fields_matches_on_either() -> None:
    cron = parse_cron("0 0 13 * fri")
    assert cron.matches(datetime(2026, 3, 13))  # a Friday the 13th
    assert cron.matches(datetime(2026, 3, 6))  # a Friday
    assert cron.matches(datetime(2026, 4, 13))  # a Monday the 13th
    assert not cron.matches(datetime(2026, 4, 14))


def test_cron_finds_the_next_leap_day_across_a_century() -> None:
    assert parse_cron("0 0 29 2 *").next_after(datetime(2096, 3, 1)) == datetime(2104, 2, 29)


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("* * * *", "4 fields"),
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "day of week"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("*-5 * * * *", "minute"),
        ("one * * * *", "minute"),
        ("0 0 30 2 *", "never comes"),
        ("", "0 fields"),
    ],
)
def test_cron_refuses_what_it_cannot_read_and_names_the_field(expression: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_cron(expression)


@given(
    st.sampled_from(["* * * * *", "*/7 3 * * *", "17 3 * * *", "0 0 1 */2 *", "30 6 * * 1-5", "0 12 13 * fri"]),
    st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2040, 1, 1)),
)
def test_cron_next_after_is_the_first_matching_minute_after(expression: str, at: datetime) -> None:
    cron = parse_cron(expression)
    found = cron.next_after(at)
    assert found is not None and found > at and cron.matches(found) and found.second == 0
    probe = at.replace(second=0, microsecond=0) + timedelta(minutes=1)
    for _ in range(500):
        if probe >= found:
            break
        assert not cron.matches(probe)
        probe += timedelta(minutes=1)


def test_round_may_start_when_nothing_is_in_the_way() -> None:
    assert may_start_round(NOON, ALWAYS, Situation(free_bytes=5, min_free_bytes=5)).accepted


@pytest.mark.parametrize(
    ("situation", "said"),
    [
        (Situation(held="it answers wrongly"), "alignd resume"),
        (Situation(paused="holiday"), "holiday"),
        (Situation(awaiting_approval=["v4"]), "v4 waits for approval"),
        (Situation(free_bytes=4, min_free_bytes=5), "4 bytes of disk are free"),
        (Situation(missing_probes=["probes.utility"]), "probes.utility"),
        (Situation(retry_at=NOON + timedelta(seconds=1)), "the next is at 2026-03-01T12:00:01+00:00"),
    ],
)
def test_round_may_not_start_and_the_reason_says_what_to_do(situation: Situation, said: str) -> None:
    decision = may_start_round(NOON, ALWAYS, situation)
    assert not decision.accepted
    assert said in decision.reasons[0]


def test_round_waits_for_the_training_window_and_says_when_it_opens() -> None:
    decision = may_start_round(NOON, parse_cron("* 2-4 * * *"), Situation())
    assert decision.reasons == ("outside the training window, which opens at 2026-03-02T02:00+00:00",)


def test_round_may_start_exactly_at_its_retry_time() -> None:
    assert may_start_round(NOON, ALWAYS, Situation(retry_at=NOON)).accepted


def test_every_reason_is_given_and_the_hold_comes_first() -> None:
    decision = may_start_round(NOON, ALWAYS, Situation(held="a", paused="b", missing_probes=["c"]))
    assert [reason[:4] for reason in decision.reasons] == ["held", "paus", "prob"]


def test_retry_wait_doubles_up_to_an_hour() -> None:
    waits = [(retry_at(NOON, attempts, 60) - NOON).total_seconds() for attempts in (1, 2, 3, 7, 1000)]
    assert waits == [60, 120, 240, LONGEST_RETRY_S, LONGEST_RETRY_S]


def test_retry_wait_is_never_shorter_than_asked_for() -> None:
    assert (retry_at(NOON, 1, 7200) - NOON).total_seconds() == 7200


@pytest.mark.parametrize(("attempts", "gives_up"), [(0, False), (2, False), (3, True), (4, True)])
def test_giving_up_after_max_attempts(attempts: int, gives_up: bool) -> None:
    assert is_out_of_attempts(attempts, 3).accepted is gives_up
