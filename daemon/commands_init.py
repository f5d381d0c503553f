"""The command that makes a home: it asks what it needs, checks every answer, and then makes all of it or nothing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from daemon import exitcodes, suggest
from daemon.checks import Check, checks_lines
from daemon.command import Answer, Command, CommandError, Context, arg, is_source, utc_now
from daemon.newhome import ROWS, Wishes, make_home, nearest_folder
from daemon.terminal import Style, fields, size

if TYPE_CHECKING:
    from daemon.probes import ProbeRow

T = TypeVar("T")

_NEEDED: Final = "alignd init DIR --model PATH"
_QUESTIONS: Final = {
    "folder": "Folder of the home, where settings, versions and models will lie",
    "model": "Folder of the model, in Hugging Face layout",
    "over_safety": 'File of harmless questions that look harmful, {"prompt"} a line (Enter: later)',
    "utility": 'File of ordinary work, {"prompt", "response"} a line (Enter: later)',
    "retain": 'File of answers that must not drift, {"prompt", "response"} a line (Enter: later)',
    "harm": 'File of harmful prompts of all categories, {"prompt", "response"} a line (Enter: later)',
    "approval": "Shall a version that passed its gates wait for `alignd approve`, y or n (Enter: n)",
    "page": "Port of a page for browsers on this machine, such as 8420 (Enter: none)",
}
_MISSING: Final = {
    "over_safety": '{"prompt"}: harmless questions that look harmful',
    "utility": '{"prompt", "response"}: ordinary work that must stay right',
    "retain": '{"prompt", "response"}: answers that must not drift (wanted)',
    "harm": '{"prompt", "response"}: standing harmful prompts (wanted)',
}


def init(context: Context, args: argparse.Namespace) -> Answer:
    """Makes a home: settings, folders, and a store whose v0 is the model."""
    wishes, checks = _wishes(context, args)
    num_bytes = _check_room(wishes)
    make_home(wishes, actor=context.actor, now=utc_now())
    checks += _checks_of(wishes.home)
    home = wishes.home
    data = {
        "home": str(home),
        "service_file": str(home / "service.toml"),
        "base": str(wishes.base),
        "version": "v0",
        "checks": [asdict(check) for check in checks],
    }
    ready = f"{home} is ready: v0 is {wishes.base} ({size(num_bytes)})."
    return Answer(data, (ready, *checks_lines(checks, context.style), "", *_next_steps(home, context.style)))


def _wishes(context: Context, args: argparse.Namespace) -> tuple[Wishes, list[Check]]:
    """What was given, and the answers to what was not: each is checked before the next question is asked."""
    from daemon.asking import can_ask, tell

    asks = not args.yes and can_ask(context)
    checks: list[Check] = []

    def base(text: str) -> Path:
        if not args.no_trial:
            tell(context, "  loading it to see whether it answers; --no-trial leaves that out")
        path, found = _usable_base(text, with_trial=not args.no_trial)
        checks[:] = found
        return path

    home = _taken(asks, args.folder, "folder", _free_place)
    chosen = _taken(asks, args.model, "model", base)
    rows = {name: _optional(asks, getattr(args, name), name, _usable_rows(context, home, name), None) for name in ROWS}
    approval = args.approval if args.approval is not None else _optional(asks, None, "approval", _yes_or_no, False)
    listen = _optional(asks, args.page, "page", _usable_listen, "")
    return Wishes(home, chosen, {name: path for name, path in rows.items() if path}, approval, listen), checks


def _taken(asks: bool, given: str | None, name: str, accept: Callable[[str], T]) -> T:
    """An answer that must be there."""
    from daemon.asking import ask

    if given is not None:
        return accept(given)
    what = "--model" if name == "model" else "DIR"
    missing = CommandError(exitcodes.USAGE, f"{what} is missing", _NEEDED)
    if not asks:
        raise missing

    def answer(text: str) -> T:
        if not text:
            raise missing
        return accept(text)

    return ask(_QUESTIONS[name], answer)


def _optional(asks: bool, given: str | None, name: str, accept: Callable[[str], T], default: T) -> T:
    """An answer that may be left out."""
    from daemon.asking import ask

    if given is not None:
        return accept(given)
    return ask(_QUESTIONS[name], lambda text: accept(text) if text else default) if asks else default


def _place(text: str) -> Path:
    """Where that is; without `..`, which would lead elsewhere once a folder on the way is renamed."""
    return Path(os.path.normpath(Path(text).expanduser().absolute()))


def _free_place(text: str) -> Path:
    home = _place(text)
    if is_source(home):
        raise CommandError(
            exitcodes.FAILED, f"{home} holds the source of alignd; nothing was changed", "name a new folder"
        )
    if (home / "service.toml").exists() or (home / "store").exists():
        hint = "`alignd status` shows it" if (home / "store").exists() else "`alignd run` makes its store"
        raise CommandError(exitcodes.FAILED, f"{home} is a home of alignd already; nothing was changed", hint)
    return home


def _usable_base(text: str, *, with_trial: bool) -> tuple[Path, list[Check]]:
    """The model's folder, with what was looked at in it."""
    from daemon.basemodel import check_base

    path = _place(text)
    num_entries = sum(tensor.num_entries for tensor in check_base(path).tensors.values())
    checks = [Check("model", "ok", f"{num_entries:,} finite entries in safetensors, tokenizer and chat template")]
    if with_trial:
        from daemon import basetrial

        trial = basetrial.try_out(path)
        if trial.status == "bad":
            raise CommandError(exitcodes.CONFIG, f"{path}: {trial.detail}", trial.advice)
        checks.append(trial)
    return path, checks


def _usable_rows(context: Context, home: Path, name: str) -> Callable[[str], Path | None]:
    def accept(text: str) -> Path | None:
        from daemon.asking import tell
        from daemon.probes import read

        path, target = _place(text), home / ROWS[name]
        rows, _ = read(path)
        if not rows:
            raise CommandError(exitcodes.CONFIG, f"{path} holds no rows", "one JSON object a line is expected")
        for sentence in _too_few(name, rows):
            tell(context, f"  {sentence}")  # more may be put there before the first round
        if not target.exists():
            return path
        if not target.samefile(path):
            raise CommandError(exitcodes.FAILED, f"{target} is there already", f"move it away, or leave {name} out")
        return None  # it lies where it belongs

    return accept


def _too_few(name: str, rows: tuple[ProbeRow, ...]) -> list[str]:
    """What a gate that must pass is short of with these rows."""
    from daemon.config import Config
    from daemon.probes import ProbeFiles, missing_required

    config = Config()
    told = {kind: rows if kind == name else () for kind in ROWS}
    found = missing_required(ProbeFiles(**told, digests={}), config)
    return [sentence for sentence in found if sentence.startswith(f"{ROWS[name]}:")]


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("y", "yes", "n", "no"):
        raise CommandError(exitcodes.USAGE, f"{text!r} is no answer", "y or n is expected")
    return text.lower().startswith("y")


def _usable_listen(text: str) -> str:
    from daemon.listening import parse_listen

    try:
        parse_listen(text)
    except ValueError as err:
        raise CommandError(exitcodes.USAGE, f"no page can be served at {text!r}", str(err)) from err
    return text


def _check_room(wishes: Wishes) -> int:
    """How large the model is; raises `CommandError` where its copy would not fit."""
    from state import durable
    from state.tensors import ModelFolder

    folder = nearest_folder(wishes.home)
    num_bytes = sum(tensor.num_bytes for tensor in ModelFolder.open(wishes.base, follow_links=True).tensors.values())
    free = durable.free_bytes(folder)
    if free < num_bytes:
        what = f"{folder} has {size(free)} of free disk, and the copy of the model takes {size(num_bytes)}"
        raise CommandError(exitcodes.FAILED, what, "make room, or name a folder on a larger disk")
    return num_bytes


def _checks_of(home: Path) -> list[Check]:
    """What `doctor` says of the parts that `init` was told of."""
    from daemon.config import load
    from daemon.doctor import disk_check, probe_checks
    from state.store import Store

    config = load(home / "service.toml")
    has_rows = any((home / place).exists() for place in ROWS.values())
    with Store.open(home) as store:
        return [*(probe_checks(home, config) if has_rows else ()), disk_check(config, store)]


def _next_steps(home: Path, style: Style) -> Sequence[str]:
    missing = [(place, _MISSING[name]) for name, place in ROWS.items() if not (home / place).exists()]
    put = ["Put there, as JSON Lines:", *fields(missing, style, indent=2), "then"]
    return [
        *(put if missing else ["Now"]),
        f"  alignd -c {home} doctor         says what is still missing",
        f"  alignd -c {home} run            starts the service",
        f"  alignd -c {home} submit FILE    gives it a batch",
    ]


def _rows_option(flag: str, what: str) -> Any:
    return arg(flag, metavar="FILE", words=suggest.files, help=f"{what}; copied into the home")


COMMANDS: Final = (
    Command(
        "init",
        "Make a home: settings, folders, and a store whose v0 is a model",
        (
            "alignd init",
            "alignd init /var/lib/alignd --model /srv/models/llama-8b",
            "alignd init ./home --model ./base --over-safety a.jsonl --utility b.jsonl",
        ),
        init,
        (
            arg(
                "folder",
                nargs="?",
                metavar="DIR",
                words=suggest.files,
                help="the home; created when it is missing. On a terminal you are asked for what is not given",
            ),
            arg(
                "--model",
                metavar="PATH",
                words=suggest.files,
                help="the model: Hugging Face layout, safetensors, chat template",
            ),
            _rows_option("--over-safety", 'harmless questions that look harmful, JSON Lines of {"prompt"}'),
            _rows_option("--utility", 'ordinary work, {"prompt", "response"}'),
            _rows_option("--retain", 'answers that must not drift, {"prompt", "response"}'),
            _rows_option("--harm", 'standing harmful prompts, {"prompt", "response"}'),
            arg(
                "--approval",
                action="store_const",
                const=True,
                help="a version that passed its gates waits for `alignd approve`",
            ),
            arg("--page", metavar="PORT", help="serve a page for browsers on this port of 127.0.0.1"),
            arg("--no-trial", action="store_true", help="do not load the model to see whether it answers"),
            arg(
                "-y",
                "--yes",
                action="store_true",
                help="ask nothing, also on a terminal: what is not given is left out",
            ),
        ),
        needs_home=False,
    ),
)
