"""Commands that look at a home's settings and at the machine it runs on."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes, suggest
from daemon.checks import checks_lines
from daemon.command import Answer, Command, CommandError, Context, arg, is_source, is_there

if TYPE_CHECKING:
    from daemon.config import Config


def config_check(context: Context, args: argparse.Namespace) -> Answer:
    """Says whether service.toml can be used."""
    _usable_config(context)
    return Answer({"ok": True, "path": str(context.service_file)}, (f"{context.service_file} can be used",))


def config_show(context: Context, args: argparse.Namespace) -> Answer:
    """Prints every setting in effect."""
    from daemon.config import to_dict

    values = to_dict(_usable_config(context))
    return Answer(values, tuple(_toml_lines("", values)))


def _usable_config(context: Context) -> Config:
    from daemon.config import ConfigError
    from policies.cron import parse_cron

    config = context.config()
    for key in ("training_window", "verify"):
        text = getattr(config.schedule, key)
        try:
            if text:
                parse_cron(text)
        except ValueError as err:
            raise ConfigError(f"{context.service_file}: schedule.{key}: {err}") from err
    return config


def _toml_lines(section: str, values: dict[str, Any]) -> list[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"[{section}]"] if section and plain else []
    # TOML has no null: a bound that is not set is not written
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain.items() if value is not None]
    lines += [""] if plain else []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _toml_lines(f"{section}.{key}" if section else key, value)
    return lines


def doctor(context: Context, args: argparse.Namespace) -> Answer:
    """Looks for what would fail later."""
    from daemon.doctor import examine

    checks = examine(context)
    is_bad = any(check.status == "bad" for check in checks)
    data = {"ok": not is_bad, "checks": [asdict(check) for check in checks]}
    return Answer(data, tuple(checks_lines(checks, context.style)), exitcodes.DEGRADED if is_bad else exitcodes.OK)


def unit(context: Context, args: argparse.Namespace) -> Answer:
    """Prints the systemd unit of this home's service."""
    from daemon.unit import DEFAULT_HOME, render_unit

    is_home = is_there(context.service_file) and not is_source(context.home)
    home = context.home if is_home else DEFAULT_HOME
    executable = Path(args.executable or shutil.which("alignd") or Path(sys.executable).with_name("alignd"))
    try:
        text = render_unit(home, executable.absolute(), gpu=args.gpu, network=args.network)
    except ValueError as err:
        raise CommandError(exitcodes.FAILED, str(err), "move the home or the program, or mend the address") from err
    notes = _network_notes(context) if is_home and not args.network else ()
    return Answer({"unit": text}, tuple(text.splitlines()), notes=notes)


def _network_notes(context: Context) -> tuple[str, ...]:
    """What in the settings cannot work in a unit without a network."""
    from daemon.config import ConfigError

    try:
        judge = context.config().judge
    except ConfigError:
        return ()  # the unit does not depend on the settings; the service says what is wrong with them
    told = f"the judge is asked at {judge.url}, and this unit has no network; add `--network` with its address"
    return (told,) if judge.kind == "http" else ()


COMMANDS: Final = (
    Command(
        "doctor",
        "Look for what would fail later, and say what to do",
        ("alignd doctor", "alignd --json doctor | jq '.checks[] | select(.status == \"bad\")'"),
        doctor,
    ),
    Command(
        "config check",
        "Say whether service.toml can be used",
        ("alignd config check", "alignd -c ./service.toml config check"),
        config_check,
        needs_home=False,
    ),
    Command(
        "config show",
        "Print every setting in effect, as TOML",
        ("alignd config show", "alignd --json config show | jq .gates"),
        config_show,
        needs_home=False,
    ),
    Command(
        "unit",
        "Print the systemd unit of the service",
        (
            "alignd unit > /etc/systemd/system/alignd.service",
            "alignd -c /srv/alignd unit --gpu --network localhost",
        ),
        unit,
        (
            arg("--gpu", action="store_true", help="let the service use the machine's GPUs"),
            arg("--executable", metavar="PATH", words=suggest.files, help="the alignd to run (default: this one)"),
            arg(
                "--network",
                metavar="ADDRESS",
                action="append",
                default=[],
                help="an address or network that the service may reach and be reached from, for replicas and metrics: "
                "localhost, 10.1.0.0/16; may be given again (default: no network at all)",
            ),
        ),
        needs_home=False,
    ),
)
