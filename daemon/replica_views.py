"""The replicas as the values that `--json` prints, and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from daemon.terminal import NOTHING, Colour, Style, printable, table, when, wrapped

if TYPE_CHECKING:
    from daemon.config import Config
    from policies.handover import Replica
    from state.store import Store

View = dict[str, Any]

_COLOURS: Final[dict[str, Colour]] = {"in_sync": "good", "pending": "warn", "degraded": "bad"}


def read_replica(values: dict[str, Any]) -> Replica | None:
    """A replica as the store keeps it; None where another alignd wrote something else."""
    from policies.handover import Replica  # most homes have no replica, and their commands start faster without it

    try:
        return Replica(**values)
    except TypeError:
        return None


def replica_views(store: Store, config: Config | None) -> list[View]:
    """Every replica of the settings, and what is known of it; without settings those that are known."""
    if not (store.replicas or (config and config.serving)):
        return []
    from policies.handover import Replica

    known = {name: read_replica(values) for name, values in store.replicas.items()}
    listed = {name: replica.kind for name, replica in known.items() if replica}
    if config is not None:
        listed = {section.name: section.kind for section in config.serving}
    desired = store.current().id
    # what nobody was told yet is wanted all the same
    rows = [known.get(name) or Replica(name, kind, desired) for name, kind in listed.items()]
    return [replica_view(row, desired) for row in rows]


def replica_view(replica: Replica, desired: int) -> View:
    """One replica."""
    is_told = replica.desired == desired
    return {
        "name": replica.name,
        "kind": replica.kind,
        "state": replica.state if is_told else "pending",
        "desired": f"v{desired}",
        "observed": None if replica.observed is None else f"v{replica.observed}",
        "sending": None if replica.sending is None else f"v{replica.sending}",
        "since": replica.since or None,
        "failures": replica.num_failures if is_told else 0,
        "error": replica.error,
    }


def degraded_problems(views: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `status` says about degraded replicas."""
    return [
        f"replica {view['name']} should serve {view['desired']} and serves {view['observed'] or 'something unknown'}: "
        f"{view['error']}; `alignd serving sync` tells it anew"
        for view in views
        if view["state"] == "degraded"
    ]


def in_short(views: Sequence[Mapping[str, Any]]) -> str:
    """How many are in sync, and who is not; empty where there are no replicas."""
    if not views:
        return ""
    words = [f"{sum(view['state'] == 'in_sync' for view in views)} of {len(views)} in sync"]
    words += [f"{view['name']} {view['state']}" for view in views if view["state"] != "in_sync"]
    return ", ".join(words)


def serving_lines(views: Sequence[Mapping[str, Any]], style: Style) -> list[str]:
    """One line a replica, its last error below it."""
    if not views:
        return ["no replica is told: service.toml has no [[serving]]"]
    rows = [
        [
            printable(view["name"]),
            view["kind"],
            style.paint(view["state"], _COLOURS[view["state"]]),
            view["desired"],
            view["observed"] or NOTHING,
            when(view["since"]) if view["since"] else NOTHING,
        ]
        for view in views
    ]
    head, *lines = table(["REPLICA", "KIND", "STATE", "DESIRED", "OBSERVED", "SINCE"], rows, style, flexible="REPLICA")
    told = [head]
    for line, view in zip(lines, views, strict=True):
        told.append(line)
        if view["error"]:
            told += wrapped(f"    {printable(view['error'])}", style, indent=4)
    return told
