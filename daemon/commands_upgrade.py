"""The command that brings the store of an older alignd up to date."""

from __future__ import annotations

import argparse
from typing import Any, Final

from daemon.command import Answer, Command, Context, utc_now


def upgrade(context: Context, args: argparse.Namespace) -> Answer:
    """Brings the ledger up to the schema that this alignd works with; a service does the same when it starts."""
    from state import lock
    from state.schema import SCHEMA_NUMBER
    from state.store import Store, existing

    with lock.hold(existing(context.home).service_lock, "alignd upgrade"):
        done = Store.upgrade(context.home, actor=context.actor, now=utc_now())
        with context.store() as store:
            store.catch_up()
    data: dict[str, Any]
    if done is None:
        data = {"upgraded": False, "before": SCHEMA_NUMBER, "after": SCHEMA_NUMBER, "copy": None, "changes": []}
        return Answer(data, (f"nothing to do: the store has schema {SCHEMA_NUMBER}, as this alignd wants it",))
    data = {
        "upgraded": True,
        "before": done.before,
        "after": done.after,
        "copy": str(done.copy),
        "changes": list(done.steps),
    }
    lines = (
        f"the store has schema {done.after}; it had {done.before}",
        *(f"  {what}" for what in done.steps),
        f"the ledger as it was is kept in {done.copy}",
    )
    return Answer(data, lines)


COMMANDS: Final = (
    Command(
        "upgrade",
        "Bring the store of an older alignd up to date, with a copy of its ledger kept",
        ("alignd upgrade", "alignd -c /var/lib/alignd upgrade"),
        upgrade,
    ),
)
