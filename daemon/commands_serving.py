"""Commands about the engines that serve the model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from daemon import exitcodes
from daemon.command import Answer, Command, Context, arg, service_pid
from daemon.replica_views import read_replica, replica_views, serving_lines

if TYPE_CHECKING:
    from daemon.config import Config


def serving(context: Context, args: argparse.Namespace) -> Answer:
    """Lists the replicas; exits with 3 where one is degraded."""
    with context.store() as store:
        views = replica_views(store, _settings(context))
    code = exitcodes.DEGRADED if any(view["state"] == "degraded" for view in views) else exitcodes.OK
    return Answer(views, tuple(serving_lines(views, context.style)), code)


def _settings(context: Context) -> Config | None:
    from daemon.config import ConfigError

    try:
        return context.config()
    except ConfigError:
        return None  # what is known can be shown all the same


def sync(context: Context, args: argparse.Namespace) -> Answer:
    """Tells every replica anew, through the service where one runs."""
    from policies.handover import to_tell_anew

    config = context.config()
    if not config.serving:
        return Answer([], tuple(serving_lines([], context.style)))
    with context.store() as store:
        if service_pid(store) is not None:
            from daemon.serving_pass import ask_service

            is_done = ask_service(store, config, timeout_s=args.timeout)
        else:
            from dataclasses import asdict

            from daemon.serving_pass import tell_here

            known = [replica for values in store.replicas.values() if (replica := read_replica(values))]
            anew = {replica.name: asdict(to_tell_anew(replica)) for replica in known}
            store.note_replicas(anew, store.versions_in_replicas)
            is_done = tell_here(context, store, config, timeout_s=args.timeout)
        views = replica_views(store, config)
    code = exitcodes.OK if all(view["state"] == "in_sync" for view in views) else exitcodes.DEGRADED
    notes = () if is_done else (f"not done after {args.timeout:g} s; `alignd serving` shows how it goes on",)
    return Answer(views, tuple(serving_lines(views, context.style)), code if is_done else exitcodes.TRY_AGAIN, notes)


COMMANDS: Final = (
    Command(
        "serving",
        "List the replicas that serve the model, and what each one serves",
        ("alignd serving", "alignd --json serving | jq '.[].observed'"),
        serving,
    ),
    Command(
        "serving sync",
        "Tell every replica anew, also those that were given up on",
        ("alignd serving sync", "alignd serving sync --timeout 60"),
        sync,
        (
            arg(
                "--timeout",
                type=float,
                default=1800.0,
                metavar="S",
                help="wait at most this many seconds (default: 1800), then exit with 75; 3 if one is not in sync",
            ),
        ),
    ),
)
