"""Commands that make a home, and look at its settings and at the machine it runs on."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes, suggest
from daemon.command import Answer, Command, CommandError, Context, arg, is_source, utc_now
from daemon.terminal import Colour, size, wrapped

if TYPE_CHECKING:
    from daemon.config import Config

_SERVICE_TOML: Final = """\
# Settings of alignd. What is not here has a default: `alignd config show` prints all of them.
# Paths are relative to this file.

[model]
base = {base}    # imported once, as v0; for another base make another home

[inbox]
settle_s = 5    # a drop is taken once nothing about it has changed for this many seconds

[publish]
approval = false    # true: a version that passed its gates waits for `alignd approve`

[web]
listen = ""    # "8420": a page for browsers at http://127.0.0.1:8420/; changing something there needs HOME/web-token
"""
_FOLDERS: Final = {"inbox": 0o770, "probes": 0o755, "quarantine": 0o700}


def init(context: Context, args: argparse.Namespace) -> Answer:
    """Makes a home: settings, folders, and a store whose v0 is the model."""
    from daemon.basemodel import check_base

    home = Path(args.folder).absolute()
    service_file = home / "service.toml"
    if is_source(home):
        raise CommandError(
            exitcodes.FAILED, f"{home} holds the source of alignd; nothing was changed", "name a new folder"
        )
    if service_file.exists() or (home / "store").exists():
        hint = "`alignd status` shows it" if (home / "store").exists() else "`alignd run` makes its store"
        raise CommandError(exitcodes.FAILED, f"{home} is a home of alignd already; nothing was changed", hint)
    base = Path(args.model or _ask_for_model()).expanduser().absolute()
    num_bytes = sum(tensor.num_bytes for tensor in check_base(base).tensors.values())
    _make_home(home, base, context.actor)
    data = {"home": str(home), "service_file": str(service_file), "base": str(base), "version": "v0"}
    return Answer(data, tuple(_next_steps(home, base, num_bytes)))


def _ask_for_model() -> str:
    if not sys.stdin.isatty():
        raise CommandError(exitcodes.USAGE, "--model is missing", "alignd init DIR --model PATH")
    print("Folder of the model, in Hugging Face layout: ", end="", file=sys.stderr, flush=True)
    try:
        return input().strip() or _ask_for_model()
    except EOFError:
        raise CommandError(exitcodes.USAGE, "--model is missing", "alignd init DIR --model PATH") from None


def _make_home(home: Path, base: Path, actor: str) -> None:
    """Everything, or nothing when it fails."""
    from state import durable
    from state.store import Store

    first_new = _first_missing(home)
    new = [name for name in (*_FOLDERS, "store", "models", "service.toml") if not (home / name).exists()]
    try:
        durable.make_folder(home, 0o755)
        for name, mode in _FOLDERS.items():
            durable.make_folder(home / name, mode)
        # settings first: when the power fails before the store is there, `alignd run` makes it from them
        durable.write_file(home / "service.toml", _service_toml(home, base).encode(), 0o644)
        Store.create(home, base, actor=actor, now=utc_now()).close()
    except BaseException:
        for path in [first_new] if first_new else [home / name for name in new]:
            durable.remove_tree(path)
        raise


def _first_missing(path: Path) -> Path | None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    return missing[-1] if missing else None


def _service_toml(home: Path, base: Path) -> str:
    shown = base.relative_to(home) if base.is_relative_to(home) else base
    return _SERVICE_TOML.format(base=json.dumps(str(shown), ensure_ascii=False))


def _next_steps(home: Path, base: Path, num_bytes: int) -> list[str]:
    return [
        f"{home} is ready: v0 is {base} ({size(num_bytes)}).",
        "",
        "Put there, as JSON Lines:",
        '  probes/over_safety.jsonl  {"prompt"}: harmless questions that look harmful',
        '  probes/utility.jsonl      {"prompt", "response"}: ordinary work that must stay right',
        '  retain.jsonl              {"prompt", "response"}: answers that must not drift (wanted)',
        '  probes/harm.jsonl         {"prompt", "response"}: standing harmful prompts (wanted)',
        "then",
        f"  alignd -c {home} doctor         says what is still missing",
        f"  alignd -c {home} run            starts the service",
        f"  alignd -c {home} submit FILE    gives it a batch",
    ]


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
    colours: dict[str, Colour] = {"ok": "good", "warn": "warn", "bad": "bad"}
    lines = []
    for check in checks:
        first, *rest = wrapped(f"{check.status:4}  {check.name}: {check.detail}", context.style, indent=6)
        lines += [context.style.paint(first[:4], colours[check.status]) + first[4:], *rest]
        lines += wrapped(f"      -> {check.advice}", context.style, indent=9) if check.advice else []
    is_bad = any(check.status == "bad" for check in checks)
    data = {"ok": not is_bad, "checks": [asdict(check) for check in checks]}
    return Answer(data, tuple(lines), exitcodes.DEGRADED if is_bad else exitcodes.OK)


def unit(context: Context, args: argparse.Namespace) -> Answer:
    """Prints the systemd unit of this home's service."""
    from daemon.unit import DEFAULT_HOME, render_unit

    is_home = context.service_file.is_file() and not is_source(context.home)
    home = context.home if is_home else DEFAULT_HOME
    executable = Path(args.executable or shutil.which("alignd") or Path(sys.executable).with_name("alignd"))
    try:
        text = render_unit(home, executable.absolute(), gpu=args.gpu, network=args.network)
    except ValueError as err:
        raise CommandError(exitcodes.FAILED, str(err), "move the home or the program, or mend the address") from err
    return Answer({"unit": text}, tuple(text.splitlines()))


COMMANDS: Final = (
    Command(
        "init",
        "Make a home: settings, folders, and a store whose v0 is a model",
        ("alignd init /var/lib/alignd --model /srv/models/llama-8b", "alignd init ./home --model ./base"),
        init,
        (
            arg("folder", metavar="DIR", words=suggest.files, help="the home; created when it is missing"),
            arg(
                "--model",
                metavar="PATH",
                words=suggest.files,
                help="the model: Hugging Face layout, safetensors, chat template",
            ),
        ),
        needs_home=False,
    ),
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
