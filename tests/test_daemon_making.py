"""The steps from rows to one patch, which the service and the proving ground share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

import pytest

from daemon import making
from daemon.making import make_patch
from daemon.patching import Patching
from daemon.steps import STEPS
from patches.merge import Setting

POINT = Setting(0.9, 0.1, 0.2, 1.0, 0.5)
DONE_HERE = STEPS["batch"][STEPS["batch"].index("teach") : STEPS["batch"].index("merge")]


class _Work:
    """Notes what is asked of it."""

    bench = "bench"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*_: object) -> str:
            self.asked.append(name)
            return name

        return ask


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> _Work:
    """Work whose search chooses one point, and whose merge tells what it merged."""
    found = _Work()

    def search(*_: object) -> dict[str, Any]:
        found.asked.append("search")
        return {"winner": {"point": asdict(POINT)}}

    monkeypatch.setattr(making, "search_merge", search)
    monkeypatch.setattr(making, "merged_patch", lambda patches, point: (patches, point))
    return found


def test_every_step_is_done_once_in_its_order_and_what_won_the_search_is_merged(work: _Work) -> None:
    steps: dict[str, Any] = {}

    def done(step: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        assert step not in steps
        steps[step] = make()
        return cast("Mapping[str, Any]", steps[step])

    made: object = make_patch(cast(Patching, work), lambda _: {}, done=done, progress=lambda _: print)
    assert made == ("patches", POINT)
    assert tuple(steps) == DONE_HERE


def test_a_step_that_is_done_already_is_not_done_again(work: _Work) -> None:
    kept: dict[str, Any] = {step: {} for step in DONE_HERE} | {"search": {"winner": {"point": asdict(POINT)}}}
    made: object = make_patch(
        cast(Patching, work), lambda _: {}, done=lambda step, make: kept[step], progress=lambda _: print
    )
    assert made == ("patches", POINT) and work.asked == ["patches"]
