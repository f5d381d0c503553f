"""Commands that take a version out of its home, and into another one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from daemon import exitcodes, suggest
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg, utc_now
from daemon.terminal import printable, size

if TYPE_CHECKING:
    from daemon.forms import Job
    from state.rows import VersionRow
    from state.store import Store

FORMS: Final = ("hf", "peft", "overlay", "gguf", "mergekit")
DEFAULT_RANK, DEFAULT_MAX_ERROR, DEFAULT_OUTTYPE = 16, 0.2, "auto"
_OF_FORM: Final = {"rank": "peft", "max_error": "peft", "force": "peft", "converter": "gguf", "outtype": "gguf"}
"""Options that only one form has."""


def export(context: Context, args: argparse.Namespace) -> Answer:
    """Takes a version out in one of several forms, checked against its record."""
    from daemon import exporting, forms

    _check_options(args)
    target = Path(args.folder).absolute()
    if target.exists() or target.is_symlink():
        raise CommandError(exitcodes.FAILED, f"{target} exists; nothing is overwritten", "name a new folder")
    _refuse_inbox(context, target)
    with context.store() as store:
        row = store.resolve(args.ref)
        if not target.parent.is_dir():
            raise CommandError(exitcodes.FAILED, f"{target.parent} is no folder", "create it first")
        job = _job(context, args, store, row)
        with exporting.staged(target) as staging:
            written = forms.WRITERS[args.to](job, staging)
            forms.write_papers(job, staging, written)
    num_bytes, pushed = exporting.folder_bytes(target), _push(args, target, row.name)
    data = {"id": row.name, "path": str(target), "form": args.to, "num_bytes": num_bytes, "pushed": pushed}
    lines = [f"{row.name} is in {target} ({size(num_bytes)})", *written.lines]
    lines += [f"pushed: {pushed}"] if pushed else []
    is_left = row.state in ("rejected", "rolled_back")
    notes = (f"{row.name} is {row.state}",) if is_left else ()
    return Answer(data | written.data, tuple(lines), notes=notes)


def _refuse_inbox(context: Context, target: Path) -> None:
    from daemon.config import Config, ConfigError

    try:
        settings = context.config()
    except ConfigError:
        settings = Config()  # the usual one, then; a version can be taken out whatever the settings
    inbox = context.home / settings.inbox.path
    if target.resolve().is_relative_to(inbox.resolve()):
        raise CommandError(
            exitcodes.FAILED,
            f"{target} is in the inbox, where it would be taken for a batch",
            "name a folder elsewhere",
        )


def _check_options(args: argparse.Namespace) -> None:
    """Refuse an option that would do nothing."""
    for name, form in _OF_FORM.items():
        if getattr(args, name) not in (None, False) and args.to != form:
            raise CommandError(
                exitcodes.USAGE,
                f"--{name.replace('_', '-')} is for --to {form} only",
                f"leave it out, or say --to {form}",
            )


def _push(args: argparse.Namespace, folder: Path, version: str) -> str | None:
    """Where the folder went to; None where it should go nowhere. What was exported stays, whatever a hub says."""
    if args.push is None:
        return None
    from daemon.pushing import PushError, push

    try:
        return push(folder, args.push, version)
    except PushError as err:
        hint = f"{version} is whole in {folder}; `hf upload {args.push} {folder}` tries again"
        raise CommandError(exitcodes.FAILED, f"not pushed: {err}", hint) from err


def _job(context: Context, args: argparse.Namespace, store: Store, row: VersionRow) -> Job:
    from daemon import provenance
    from daemon.commands_explain import version_view
    from daemon.forms import Job

    name = args.base_model or _base_name(context)
    return Job(context, args, store, row, provenance.gather(store, row, version_view(store, row), base_name=name))


def _base_name(context: Context) -> str:
    """What the settings call the base, without where it lies."""
    from daemon.config import ConfigError

    try:
        return Path(context.config().model.base).name or "base"
    except ConfigError:
        return "base"


def bring_in(context: Context, args: argparse.Namespace) -> Answer:
    """Takes a version from another home, or from an exported overlay."""
    from daemon import importing

    with context.store() as store:
        found = importing.bring_in(store, Path(args.path), args.ref, actor=context.actor, now=utc_now())
    row, source = found.row, found.source
    data = {"id": row.name, "state": row.state, "new": found.is_new, "source": source}
    told = printable(f"{source['id']} from {source['path']}")
    if not found.is_new:
        return Answer(data, (f"{told} is here already, as {row.name}: {row.state}",))
    lines = (
        f"{row.name} is {told}; its bytes are what was exported there",
        "no gate of this home has measured it, and until you decide no round starts:",
        f"`alignd approve {row.name}` puts it in service, `alignd reject {row.name}` does not",
    )
    return Answer(data, lines)


COMMANDS: Final = (
    Command(
        "export",
        "Take a version out: model folder, adapter, overlay, GGUF or recipe",
        (
            "alignd export current /srv/models/aligned",
            "alignd export v3 ./v3 --to overlay",
            "alignd export v3 ./adapter --to peft --rank 64 --max-error 0.1",
            "alignd export v3 ./gguf --to gguf --converter ./convert_hf_to_gguf.py",
        ),
        export,
        (
            arg("ref", metavar="REF", words=suggest.versions, help=f"a version: {SELECTORS}"),
            arg("folder", metavar="DIR", words=suggest.files, help="a new folder; nothing is overwritten"),
            arg(
                "--to",
                choices=FORMS,
                default="hf",
                help="hf: a complete model folder (default); peft: a LoRA adapter of the base, with the error it makes; "
                "overlay: the entries that differ from the base, and a script that rebuilds the model without alignd; "
                "gguf: for llama.cpp; mergekit: a recipe",
            ),
            arg(
                "--base-model",
                metavar="NAME",
                help="what others call the base, such as its hub name, for card, adapter and recipe (default: the name "
                "of its folder; adapter and recipe: where v0 lies)",
            ),
            arg("--rank", type=int, metavar="N", help=f"peft: rank (default: {DEFAULT_RANK})"),
            arg(
                "--max-error",
                type=float,
                metavar="SHARE",
                help=f"peft: share of the change that may be lost, as relative Frobenius error (default: {DEFAULT_MAX_ERROR})",
            ),
            arg("--force", action="store_true", help="peft: write it whatever it loses"),
            arg(
                "--push",
                metavar="REPO",
                help="then send the folder to this repository of a model hub, private where it is new; HF_ENDPOINT names "
                "another hub than huggingface.co, and `hf auth login` or HF_TOKEN let you in",
            ),
            arg(
                "--converter",
                metavar="FILE",
                words=suggest.files,
                help="gguf: llama.cpp's convert_hf_to_gguf.py (default: the one on the PATH)",
            ),
            arg(
                "--outtype",
                metavar="TYPE",
                help="gguf: type of the weights (default: auto, as they are)",
            ),
        ),
    ),
    Command(
        "import",
        "Take a version from another home or from an exported overlay",
        ("alignd import ./v3", "alignd import /srv/other-home --ref v3"),
        bring_in,
        (
            arg(
                "path",
                metavar="PATH",
                words=suggest.files,
                help="a folder that `export --to overlay` wrote, or another home of the same base",
            ),
            arg("--ref", default="current", metavar="REF", help="which version of another home (default: current)"),
        ),
    ),
)
