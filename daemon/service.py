"""The supervisor: one loop that watches, queues, starts workers and keeps the store; it never imports torch."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from daemon import config as settings
from daemon import exitcodes
from daemon.child import worker_argv
from daemon.config import HOME_HINT, Config, ConfigError
from daemon.job import ACTOR, Workshop
from daemon.log import (
    CONFIG_REFUSED,
    CONFIG_RELOADED,
    SERVICE_FAILED,
    STORE_UPGRADED,
)
from daemon.loop import TICK_S, Loop
from daemon.notify import Notifier
from daemon.wakeup import Wakeup
from state.errors import LockedError, ModelFormatError, SchemaError, StoreCorruptError, StoreError, StoreMissingError
from state.layout import Layout
from state.lock import hold
from state.store import Store

_COALESCE_S: Final = 0.02
_START_S: Final = 3600.0
# a child that a killed service had just forked holds its lock until it runs its own program
_LOCK_WAIT_S: Final = 2.0
_CODES: Final[dict[type[Exception], int]] = {
    LockedError: exitcodes.LOCKED,
    StoreMissingError: exitcodes.NO_STORE,
    ModelFormatError: exitcodes.CONFIG,
    StoreCorruptError: exitcodes.INTEGRITY,
    SchemaError: exitcodes.OTHER_SCHEMA,
    StoreError: exitcodes.FAILED,
}
"""What ends a service, and the code it ends with."""

_log = structlog.get_logger()


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class Service:
    """One home's supervisor, from lock to exit code.

    Args:
        once: drain the inbox, finish all rounds, and return.
        now: aware UTC clock.
        argv: (kind, name) -> command of a worker; `worker_argv` when left out.
        config_path: what a reload reads; ``home/service.toml`` when left out.
        tick_s: how long a command of somebody else may go unnoticed.
    """

    def __init__(
        self,
        home: Path,
        config: Config,
        *,
        once: bool,
        now: Callable[[], datetime] = utc_now,
        argv: Callable[[str, str], list[str]] | None = None,
        env: Mapping[str, str] = os.environ,
        config_path: Path | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        self._home = home.resolve()
        self._config = config
        self._once = once
        self._now = now
        self._config_path = (config_path or self._home / settings.SERVICE_FILE).absolute()
        self._argv = argv or (lambda kind, name: worker_argv(self._home, kind, name, config_path=self._config_path))
        self._notify = Notifier(env)
        self._tick_s = tick_s
        self._wakeup = Wakeup()
        self._stop_signal: int | None = None
        self._is_reload_due = False
        self.held_back: tuple[str, ...] = ()
        """Why nothing that was still queued at the end went on."""
        self.waits: dict[str, str] = {}
        """Why one batch (its sha256) or one round (its id) did not, where that was its own matter."""

    def run(self) -> int:
        """Serves until it is told to stop, or the inbox is drained; an exit code of `daemon.exitcodes`.

        Raises:
            ConfigError: a cron expression cannot be used.
        """
        handlers = self._install_handlers()
        try:
            return self._open_and_serve()
        except tuple(_CODES) as err:
            return self._failed(err, _CODES.get(type(err), exitcodes.FAILED))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Asks the loop to end, as the signal ``number`` does; may be called from any thread or handler."""
        self._stop_signal = number
        self._wakeup.set()

    def reload(self) -> None:
        """Asks for service.toml to be read again; rounds that run keep their settings."""
        self._is_reload_due = True
        self._wakeup.set()

    def _install_handlers(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        stops = {number: lambda got, _: self.stop(got) for number in (signal.SIGTERM, signal.SIGINT)}
        wanted = {**stops, signal.SIGHUP: lambda *_: self.reload()}
        return {number: signal.signal(number, handler) for number, handler in wanted.items()}

    def _open_and_serve(self) -> int:
        self._notify.extend(_START_S)
        if not Layout(self._home).ledger_path.exists():
            self._create()
        lock = Layout(self._home).service_lock
        with hold(lock, "alignd run", _LOCK_WAIT_S):
            self._upgrade()
            with Store.open(self._home) as store:
                return self._serve(store)

    def _create(self) -> None:
        base = self._home / self._config.model.base
        if not base.exists():
            raise StoreMissingError(
                f"{self._home} has no store, and there is no base model at {base}",
                f"set model.base in {self._config_path}; {HOME_HINT}",
            )
        self._notify.status("importing the base model")
        Store.create(self._home, base, actor=ACTOR, now=self._now().isoformat()).close()

    def _upgrade(self) -> None:
        done = Store.upgrade(self._home, actor=ACTOR, now=self._now().isoformat())
        if done is not None:
            _log.info(STORE_UPGRADED, before=done.before, after=done.after, copy=str(done.copy), changes=done.steps)

    def _serve(self, store: Store) -> int:
        shop = Workshop(self._home, store, self._config, self._now, self._wakeup.set, self._argv)
        loop = Loop(shop, self._notify)
        try:
            loop.start()
            self._run_loop(loop)
            self.held_back, self.waits = loop.held_back, dict(shop.waits)
            return self._exit_code(loop)
        finally:
            loop.stop()

    def _run_loop(self, loop: Loop) -> None:
        woken = True
        while self._stop_signal is None:
            if self._is_reload_due:
                self._is_reload_due = False
                self._reload(loop)
            loop.tick(woken=woken or self._once)
            if self._once and loop.is_drained():
                return
            woken = self._wakeup.wait(min(self._tick_s, loop.patience_s()))
            if woken:
                time.sleep(_COALESCE_S)  # what comes in bursts is looked at once

    def _reload(self, loop: Loop) -> None:
        self._notify.reloading(time.monotonic())
        try:
            loop.apply(settings.load(self._config_path))
        except (ConfigError, OSError) as err:
            _log.error(CONFIG_REFUSED, reason=str(err))
            loop.shop.note("config", f"service.toml was not read again: {err}")
        else:
            _log.info(CONFIG_RELOADED)
            loop.shop.note("config", "")
        self._notify.ready()

    def _exit_code(self, loop: Loop) -> int:
        number = self._stop_signal
        if number is not None:
            is_wanted = number == signal.SIGTERM and not self._once
            return exitcodes.OK if is_wanted else 128 + number
        return exitcodes.DEGRADED if loop.is_troubled() else exitcodes.OK

    def _failed(self, err: Exception, code: int) -> int:
        hint = getattr(err, "hint", "")
        self._notify.status(str(err))
        _log.error(SERVICE_FAILED, reason=str(err), hint=hint, exit_code=code)
        return code
