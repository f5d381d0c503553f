"""Tells the replicas of a version where no service runs: one pass, by the command that changed the version."""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from daemon.command import Context, service_pid, utc_now

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.replica_views import View
    from state.store import Store

_TICK_S: Final = 0.5


def tell_here(context: Context, store: Store, config: Config, *, timeout_s: float) -> bool:
    """Tells every replica, once; what fails is left to the service. False when the time was over first."""
    from daemon import log
    from daemon.job import Workshop
    from daemon.serving import Serving
    from daemon.wakeup import Wakeup

    log.configure(sys.stderr, form="console", env={}, level=logging.CRITICAL)  # the caller says what came of it
    wakeup = Wakeup()
    shop = Workshop(context.home, store, config, lambda: datetime.now(UTC), wakeup.set, _no_worker)
    serving = Serving(shop)
    end = time.monotonic() + timeout_s
    try:
        serving.tick()
        while serving.is_busy():
            if time.monotonic() >= end:
                return False
            wakeup.wait(_TICK_S)
            serving.tick()
    finally:
        serving.stop()
    return True


def ask_service(store: Store, config: Config, *, timeout_s: float) -> bool:
    """Has the running service tell every replica anew, and waits for it. False when the time was over first."""
    from daemon.replica_views import replica_views

    store.ask_for_sync(utc_now())
    end = time.monotonic() + timeout_s
    while store.sync_asked or any(
        view["state"] == "pending" or view["sending"] for view in replica_views(store, config)
    ):
        if time.monotonic() >= end:
            return False
        time.sleep(_TICK_S / 2)
    return True


def after_switch(context: Context, store: Store) -> tuple[list[View], tuple[str, ...]]:
    """Tells the replicas after a command changed the version, unless a service runs, which does; never fails for it.

    Returns:
        The replicas, and what is to be said on stderr.
    """
    is_named = any("serving" in line.partition("#")[0] for line in _lines(context))
    if not is_named and not store.replicas:
        return [], ()  # most homes: nothing heavy is imported for them
    from daemon.config import ConfigError
    from daemon.replica_views import degraded_problems, replica_views
    from state.errors import LockedError

    try:
        config = context.config()
    except ConfigError as err:
        return [], (f"no replica was told: {err}",)
    if service_pid(store) is not None:
        names = ", ".join(section.name for section in config.serving)
        return replica_views(store, config), (f"the service tells the replicas: {names}",) if names else ()
    try:
        is_done = tell_here(context, store, config, timeout_s=_limit_s(config))
    except (OSError, LockedError) as err:
        return [], (f"no replica was told: {err}; `alignd serving sync` tries again",)
    except KeyboardInterrupt:
        is_done = False
    views = replica_views(store, config)
    said = [f"replica {view['name']} serves {view['observed']}" for view in views if view["state"] == "in_sync"]
    said += degraded_problems(views)
    if not is_done:
        said.append("not every replica was told; the service goes on when it starts")
    return views, tuple(said)


def _lines(context: Context) -> list[str]:
    try:
        return context.service_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _limit_s(config: Config) -> float:
    """As long as all replicas may take one after the other, and the old version after each."""
    return sum(2 * (section.timeout_s + section.verify.timeout_s) for section in config.serving)


def _no_worker(kind: str, name: str) -> list[str]:
    raise AssertionError(f"a command starts no {kind} of {name}")
