"""The command that brings the store of an older alignd up to date."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from daemon.command import Answer, Command, Context, utc_now

if TYPE_CHECKING:
    from state.layout import Layout


def upgrade(context: Context, args: argparse.Namespace) -> Answer:
    """Brings the ledger up to the schema that this alignd works with; a service does the same when it starts."""
    from state import lock
    from state.store import Store, existing

    layout = existing(context.home)
    if _is_served_up_to_date(context, layout):
        return _nothing_to_do()
    with lock.hold(layout.service_lock, "alignd upgrade"):
        done = Store.upgrade(context.home, actor=context.actor, now=utc_now())
        with context.store() as store:
            store.catch_up()
    if done is None:
        return _nothing_to_do()
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


def _is_served_up_to_date(context: Context, layout: Layout) -> bool:
    """Whether somebody holds the service's lock on a store that needs no upgrade; its holder does what else is left."""
    from state import lock
    from state.errors import SchemaError

    if lock.holder(layout.service_lock) is None:
        return False
    try:
        context.store().close()
    except SchemaError:
        return False
    return True


def _nothing_to_do() -> Answer:
    from state.schema import SCHEMA_NUMBER

    data: dict[str, Any] = {
        "upgraded": False,
        "before": SCHEMA_NUMBER,
        "after": SCHEMA_NUMBER,
        "copy": None,
        "changes": [],
    }
    return Answer(data, (f"nothing to do: the store has schema {SCHEMA_NUMBER}, as this alignd wants it",))


COMMANDS: Final = (
    Command(
        "upgrade",
        "Bring the store of an older alignd up to date, with a copy of its ledger kept",
        ("alignd upgrade", "alignd -c /var/lib/alignd upgrade"),
        upgrade,
    ),
)
