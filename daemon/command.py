"""What a command of `alignd` is made of: its words, its options, the surroundings it runs in, its answer."""

from __future__ import annotations

import argparse
import math
import os
import pwd
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes
from daemon.terminal import Style

if TYPE_CHECKING:
    from daemon.config import Config
    from state.store import Store

SYSTEM_SERVICE_FILE: Final = Path("/var/lib/alignd/service.toml")
SELECTORS: Final = "current, previous, candidate, base, @TAG, vN or N; each may be followed by ~K, K parents back"


class CommandError(Exception):
    """A command that cannot be done; `code` is the exit code, `hint` what the user can do next."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Answer:
    """What a command prints: `data` with `--json`, else `lines`; notes always go to stderr."""

    data: Any = None
    lines: tuple[str, ...] = ()
    code: int = exitcodes.OK
    notes: tuple[str, ...] = ()
    silent: bool = False
    """The command has printed everything itself."""


@dataclass(frozen=True)
class Context:
    """Where a command runs: which service, which output."""

    service_file: Path
    json: bool = False
    style: Style = field(default_factory=Style)

    @property
    def home(self) -> Path:
        """The folder of service.toml; the store, the models and the inbox are in it."""
        return self.service_file.parent

    def store(self) -> Store:
        """The store of this home; the caller closes it.

        Raises:
            StoreMissingError: there is none.
        """
        from state.store import Store

        return Store.open(self.home)

    def config(self) -> Config:
        """The settings. Only commands that need one read them: a rollback works with a broken service.toml.

        Raises:
            ConfigError: the file cannot be used.
        """
        from daemon.config import load

        return load(self.service_file)

    @property
    def actor(self) -> str:
        """Who is at the keyboard, for the audit."""
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return f"uid {os.getuid()}"


@dataclass(frozen=True)
class Argument:
    """One option or operand, as `argparse` takes it."""

    flags: tuple[str, ...]
    options: dict[str, Any]
    words: Callable[[Context], Mapping[str, str]] | None = None
    """What completes it, from `daemon.suggest`; None where nothing does."""


def arg(*flags: str, words: Callable[[Context], Mapping[str, str]] | None = None, **options: Any) -> Argument:
    """An option or operand; the keywords but `words` are those of `ArgumentParser.add_argument`."""
    return Argument(flags, options, words)


@dataclass(frozen=True)
class Command:
    """One command; a name of two words is a command in a group of commands."""

    name: str
    purpose: str
    """One line, imperative, without a full stop."""
    examples: tuple[str, ...]
    run: Callable[[Context, argparse.Namespace], Answer]
    arguments: tuple[Argument, ...] = ()
    aliases: tuple[str, ...] = ()
    needs_home: bool = True
    """It is about a home, which the folder of alignd's own source is not."""

    def defaults(self) -> dict[str, Any]:
        """Its operands and options with their defaults as they are declared; those that must be given have None."""
        parser = argparse.ArgumentParser(add_help=False)
        found = [parser.add_argument(*argument.flags, **argument.options) for argument in self.arguments]
        return {each.dest: each.default for each in found}


def check_free(paths: Iterable[Path], *, force: bool) -> None:
    """Whether files may be written there: all of them are looked at before the first is written.

    Raises:
        CommandError: one is a folder, or is there and may not be overwritten.
    """
    taken = [path for path in paths if os.path.lexists(path)]
    folders = [path for path in taken if path.is_dir()]
    if folders:
        raise CommandError(exitcodes.FAILED, f"{folders[0]} is a folder", "name another place with --out")
    if taken and not force:
        hint = "--force overwrites, --out names another place"
        raise CommandError(exitcodes.FAILED, f"{', '.join(map(str, taken))}: there already", hint)


def count(text: str) -> int:
    """An option's value as a whole number of things, 0 or more."""
    return _whole(text, at_least=0)


def positive_count(text: str) -> int:
    """An option's value as a whole number of things, 1 or more."""
    return _whole(text, at_least=1)


def _whole(text: str, *, at_least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise argparse.ArgumentTypeError(f"{text!r}; a whole number from {at_least} on is expected")
    return number


def seconds(text: str) -> float:
    """An option's value as a time to wait, in seconds."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text!r}; seconds from 0 on are expected")
    return number


def instant(text: str) -> datetime:
    """An option's value as a time; a year or a month is its first day, and it is UTC where it names no zone."""
    for start in (text, f"{text}-01", f"{text}-01-01"):
        try:
            found = datetime.fromisoformat(start)
        except ValueError:
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    expected = "a UTC date like 2026-01-31, or a time like 2026-01-31T12:05, is expected"
    raise argparse.ArgumentTypeError(f"{text!r}; {expected}")


def utc_now() -> str:
    """The time now as UTC ISO-8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def default_service_file() -> Path:
    """./service.toml where there is one, else that of the system's service."""
    here = Path("service.toml").absolute()
    is_here = here.is_file() and not is_source(here.parent)
    return here if is_here or not is_there(SYSTEM_SERVICE_FILE) else SYSTEM_SERVICE_FILE


def is_there(path: Path) -> bool:
    """Whether there is such a file; what may not be looked at is taken to be there, and tells so when it is opened."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def is_source(folder: Path) -> bool:
    """Whether a folder is a checkout of alignd: its service.toml lists the defaults, and makes no home of it."""
    is_checkout = all((folder / name).is_file() for name in ("pyproject.toml", "daemon/cli.py"))
    return is_checkout and not (folder / "store").exists()


def check_home(folder: Path) -> None:
    """Raise `CommandError` where the folder cannot be a home because alignd's source lies in it."""
    if is_source(folder):
        hint = "`alignd -c HOME` names a home, by its folder or its service.toml; `alignd init HOME` makes one"
        raise CommandError(exitcodes.NO_STORE, f"{folder} holds the source of alignd and is no home", hint)


def service_file_of(given: str | None) -> Path:
    """The service.toml that `-c` names; a folder stands for the service.toml in it.

    The file itself may be missing: what needs no settings, such as a rollback, works without. Anything else that is not
    there is a slip of the keyboard, and the folder around it may be another home.

    Raises:
        CommandError: there is no such folder, and it is no file that could be meant.
    """
    if given is None:
        return default_service_file()
    path = Path(given).absolute()
    if path.is_dir():
        return path / "service.toml"
    if not path.exists() and path.suffix != ".toml":
        hint = "`-c` names a home, by its folder or its service.toml; `alignd init HOME` makes one"
        raise CommandError(exitcodes.NO_STORE, f"{path} does not exist", hint)
    return path


def service_pid(store: Store) -> int | None:
    """Process id of the service of this home; None when none runs."""
    from state.lock import holder

    held_by = holder(store.service_lock)
    return held_by[0] if held_by else None
