"""Commands that take a version out of its home, and into another one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg, utc_now
from daemon.terminal import number, percent, printable, size
from daemon.views import View

if TYPE_CHECKING:
    from state.rows import VersionRow
    from state.store import Store

FORMS: Final = ("hf", "peft", "overlay", "gguf", "mergekit")
DEFAULT_RANK, DEFAULT_MAX_ERROR = 16, 0.2


@dataclass(frozen=True)
class Job:
    """One export: which version, as the user asked for it."""

    context: Context
    args: argparse.Namespace
    store: Store
    row: VersionRow
    version: View
    """As `provenance.gather` gives it."""

    @property
    def base(self) -> str:
        """Where others find the base: the name that was given, or its folder here."""
        return self.args.base_model or str(self.store.model_path(0))


@dataclass(frozen=True)
class Written:
    """What a form has to tell beside its files."""

    data: View
    lines: tuple[str, ...] = ()
    error: View | None = None
    """What an adapter loses, for the card."""


def export(context: Context, args: argparse.Namespace) -> Answer:
    """Takes a version out in one of several forms, checked against its record."""
    from daemon import exporting

    target = Path(args.folder).absolute()
    if target.exists() or target.is_symlink():
        raise CommandError(exitcodes.FAILED, f"{target} exists; nothing is overwritten", "name a new folder")
    with context.store() as store:
        row = store.resolve(args.ref)
        if not target.parent.is_dir():
            raise CommandError(exitcodes.FAILED, f"{target.parent} is no folder", "create it first")
        job = _job(context, args, store, row)
        with exporting.staged(target) as staging:
            written = _WRITERS[args.to](job, staging)
            _write_papers(job, staging, written)
            num_bytes = exporting.folder_bytes(staging)
    pushed = _push(args, target, row.name)
    data = {
        "id": row.name,
        "path": str(target),
        "form": args.to,
        "num_bytes": num_bytes,
        "pushed": pushed,
        **written.data,
    }
    notes = (f"{row.name} is {row.state.replace('_', ' ')}",) if row.state in ("rejected", "rolled_back") else ()
    lines = (
        f"{row.name} is in {target} ({size(num_bytes)})",
        *written.lines,
        *([f"pushed: {pushed}"] if pushed else []),
    )
    return Answer(data, lines, notes=notes)


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

    name = args.base_model or _base_name(context)
    return Job(context, args, store, row, provenance.gather(store, row, version_view(store, row), base_name=name))


def _base_name(context: Context) -> str:
    """What the settings call the base, without where it lies."""
    from daemon.config import ConfigError

    try:
        return Path(context.config().model.base).name or "base"
    except ConfigError:
        return "base"


def _write_papers(job: Job, staging: Path, written: Written) -> None:
    """Card and bill of materials beside what was written."""
    from daemon import exporting, mlbom, modelcard
    from state import durable
    from state.batches import file_sha256

    card, bill = staging / exporting.CARD, staging / exporting.BILL
    for paper in (card, bill):
        exporting.set_aside(paper)
    durable.write_file(card, modelcard.card(job.version, job.args.to, error=written.error).encode(), 0o644)
    files = {path.relative_to(staging).as_posix(): path for path in sorted(staging.rglob("*")) if path.is_file()}
    digests = {name: file_sha256(path) for name, path in files.items()}
    durable.write_json(bill, mlbom.bill(job.version, job.args.to, digests), 0o644)


def _write_hf(job: Job, staging: Path) -> Written:
    from daemon import exporting

    exporting.write_model(job.store, job.row, staging)
    return Written({})


def _write_overlay(job: Job, staging: Path) -> Written:
    from daemon import exporting
    from state import apply_overlay, durable

    durable.make_folder(staging, 0o755)
    digest = exporting.write_overlay(job.store, job.row, staging / exporting.OVERLAY)
    durable.write_json(staging / exporting.MANIFEST, exporting.manifest(job.version, digest), 0o644)
    durable.write_file(staging / exporting.SCRIPT, Path(apply_overlay.__file__).read_bytes(), 0o644)
    line = f"rebuild it with `python {job.args.folder}/{exporting.SCRIPT} BASE OUT`, or `alignd import` it elsewhere"
    return Written({"sha256": digest}, (line,))


def _write_mergekit(job: Job, staging: Path) -> Written:
    from daemon import exporting, recipe
    from state import durable

    durable.make_folder(staging, 0o755)
    exporting.write_model(job.store, job.row, staging / job.row.name)
    text = recipe.recipe(job.row.name, job.base, job.version["dtypes"])
    durable.write_file(staging / recipe.MERGEKIT_FILE, text.encode(), 0o644)
    return Written(
        {"base": job.base}, (f"`mergekit-yaml {recipe.MERGEKIT_FILE} OUT`, run in it, merges {job.base} with it",)
    )


def _write_gguf(job: Job, staging: Path) -> Written:
    from daemon import exporting, gguf, modelcard
    from state import durable

    try:
        converter = gguf.find_converter(job.args.converter)
        durable.make_folder(staging, 0o755)
        name = f"{modelcard.release_name(job.version)}.gguf"
        with exporting.checked_model(job.store, job.row) as model:
            gguf.convert(converter, model, staging / name, outtype=job.args.outtype)
    except gguf.ConverterError as err:
        raise CommandError(exitcodes.FAILED, str(err), err.hint) from err
    return Written({"file": name, "converter": str(converter)}, (f"converted by {converter}",))


def _write_peft(job: Job, staging: Path) -> Written:
    from daemon import exporting

    if job.args.rank < 1 or not job.args.max_error >= 0:
        raise CommandError(exitcodes.USAGE, "--rank is 1 or more, and --max-error 0 or more")
    with (
        exporting.checked_model(job.store, job.store.version(0)) as base,
        exporting.checked_model(job.store, job.row) as version,
    ):
        return _write_adapter(job, base, version, staging)


def _write_adapter(job: Job, base: Path, version: Path, staging: Path) -> Written:
    from daemon import adapter, measured_texts
    from state import durable

    rank = job.args.rank
    folders = adapter.Folders(base, version, measured_texts.device(job.context))
    digests = [job.store.version_record(number)["tensors"] for number in (0, job.row.id)]
    try:
        change = adapter.find_change(folders, digests, rank)
    except adapter.NoAdapterError as err:
        raise CommandError(exitcodes.FAILED, f"{job.row.name}: {err}", "--to overlay carries any change") from err
    _check_error(job, change)
    durable.make_folder(staging, 0o755)
    adapter.write_adapter(change, folders, staging, rank=rank, base_name=job.base)
    (staging / "README.md").unlink(missing_ok=True)  # peft's own; ours follows
    texts, prompts = measured_texts.texts(job.context, base)
    error = adapter.error_view(change, rank, adapter.measure(folders, staging, texts), prompts)
    durable.write_json(staging / "adapter_error.json", error, 0o644)
    return Written({"error": error}, _error_lines(error, job.row.name), error)


def _check_error(job: Job, change: Any) -> None:
    """Refuse an adapter that loses more than was allowed; the message says which rank would do."""
    error, bound = change.relative_error, job.args.max_error
    if error <= bound or job.args.force:
        return
    enough = change.least_rank(bound)
    lost = f"rank {job.args.rank} loses {percent(error)} of the change (relative Frobenius error)"
    advice = f"--rank {enough} would do" if enough else "take a higher --rank"
    hint = f"{advice}; --to overlay loses nothing; --force writes it anyway"
    raise CommandError(exitcodes.REFUSED, f"{lost}; --max-error is {percent(bound)}", hint)


def _error_lines(error: View, version: str) -> tuple[str, ...]:
    logits = error["logits"]
    whole = f", {error['num_whole']} modules whole" if error["num_whole"] else ""
    return (
        f"rank {error['rank']} of {error['num_matrices']} matrices{whole}",
        f"lost of the change: {percent(error['relative_error'])}, at worst {percent(error['worst_error'])} "
        f"({error['worst_tensor']})",
        f"KL({version} || adapter) {number(logits['mean_kl'])} nats a token; KL({version} || base) "
        f"{number(logits['base_mean_kl'])}",
        f"same likeliest token: {percent(logits['same_top_rate'])} of {logits['num_positions']} positions of "
        f"{logits['num_prompts']} {logits['prompts']}",
    )


_WRITERS: Final[dict[str, Callable[[Job, Path], Written]]] = {
    "hf": _write_hf,
    "peft": _write_peft,
    "overlay": _write_overlay,
    "gguf": _write_gguf,
    "mergekit": _write_mergekit,
}


def bring_in(context: Context, args: argparse.Namespace) -> Answer:
    """Takes a version from another home, or from an exported overlay."""
    from daemon import importing

    with context.store() as store:
        found = importing.bring_in(store, Path(args.path), args.ref, actor=context.actor, now=utc_now())
    row, source = found.row, found.source
    data = {"id": row.name, "state": row.state, "new": found.is_new, "source": source}
    told = printable(f"{source['id']} from {source['path']}")
    if not found.is_new:
        return Answer(data, (f"{told} is here already, as {row.name}: {row.state.replace('_', ' ')}",))
    lines = (
        f"{row.name} is {told}; its bytes are what was exported there",
        f"nothing is published: `alignd approve {row.name}` puts it in service, `alignd reject {row.name}` does not",
        "until then no round starts; no gate of this home has measured it",
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
            "alignd export v3 ./gguf --to gguf --converter ~/llama.cpp/convert_hf_to_gguf.py",
        ),
        export,
        (
            arg("ref", metavar="REF", help=f"a version: {SELECTORS}"),
            arg("folder", metavar="DIR", help="a new folder; nothing is overwritten"),
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
            arg("--rank", type=int, default=DEFAULT_RANK, metavar="N", help=f"peft: rank (default: {DEFAULT_RANK})"),
            arg(
                "--max-error",
                type=float,
                default=DEFAULT_MAX_ERROR,
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
                help="gguf: llama.cpp's convert_hf_to_gguf.py (default: the one on the PATH)",
            ),
            arg(
                "--outtype",
                default="auto",
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
                help="a folder that `export --to overlay` wrote, or another home of the same base",
            ),
            arg("--ref", default="current", metavar="REF", help="which version of another home (default: current)"),
        ),
    ),
)
