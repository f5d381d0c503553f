"""What `bisect` prints of the version that broke something, and what it says to do next."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.render_bisect import conclusion_lines
from daemon.terminal import Style

FOUND: dict[str, Any] = {
    "id": "v6", "parent": "v5", "round": "r000006", "kind": "batch", "took_out": None, "batch": "ab" * 32,
    "batch_name": "glim.jsonl", "is_in_service": True,
}  # fmt: skip
OTHERS = {"batch": None, "batch_name": None}


@pytest.mark.parametrize(
    ("changes", "origin", "advice"),
    [
        ({}, "batch glim.jsonl (abababababab)", "`alignd revert v6`"),
        ({"kind": "revert", "took_out": "v2", **OTHERS}, "which took v2 out", "`alignd rollback v5`"),
        ({"kind": "consolidation", "took_out": "v2", **OTHERS}, "which took v2 out", "`alignd rollback v5`"),
        ({"kind": "consolidation", **OTHERS}, "which learnt all batches anew, together", "`alignd rollback v5`"),
    ],
)
def test_it_says_how_the_version_came_to_be_and_what_takes_it_away(
    changes: dict[str, Any], origin: str, advice: str
) -> None:
    view = {"found": FOUND | changes, "reasons": [], "untried": []}
    text = " ".join(" ".join(conclusion_lines(view, Style())).split())
    assert f"v6 broke it: round r000006, {origin}, parent v5" in text
    assert text.endswith(f"`alignd show v6`, `alignd diff v5 v6`, {advice}")
