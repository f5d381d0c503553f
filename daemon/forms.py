"""The forms that a version leaves its home in: what is written for each, and the papers beside it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from daemon import exitcodes, exporting, gguf, mlbom, modelcard, recipe
from daemon.command import CommandError, Context
from daemon.commands_export import DEFAULT_MAX_ERROR, DEFAULT_OUTTYPE, DEFAULT_RANK
from daemon.terminal import number, percent
from daemon.views import View
from state import apply_overlay, durable
from state.batches import file_sha256
from state.rows import VersionRow
from state.store import Store

if TYPE_CHECKING:
    from daemon.adapter import Change

ERRORS: Final = "adapter_error.json"


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

    @property
    def rank(self) -> int:
        """Of an adapter."""
        return DEFAULT_RANK if self.args.rank is None else int(self.args.rank)

    @property
    def max_error(self) -> float:
        """Share of the change that an adapter may lose."""
        return DEFAULT_MAX_ERROR if self.args.max_error is None else float(self.args.max_error)


@dataclass(frozen=True)
class Written:
    """What a form has to tell beside its files."""

    data: View
    lines: tuple[str, ...] = ()
    error: View | None = None
    """What an adapter loses, for the card."""


def write_papers(job: Job, staging: Path, written: Written) -> None:
    """Card and bill of materials beside what was written."""
    card, bill = staging / exporting.CARD, staging / exporting.BILL
    for paper in (card, bill):
        exporting.set_aside(paper)
    durable.write_file(card, modelcard.card(job.version, job.args.to, error=written.error).encode(), 0o644)
    files = {path.relative_to(staging).as_posix(): path for path in sorted(staging.rglob("*")) if path.is_file()}
    digests = {name: file_sha256(path) for name, path in files.items()}
    durable.write_json(bill, mlbom.bill(job.version, job.args.to, digests), 0o644)


def _write_hf(job: Job, staging: Path) -> Written:
    exporting.write_model(job.store, job.row, staging)
    return Written({})


def _write_overlay(job: Job, staging: Path) -> Written:
    durable.make_folder(staging, 0o755)
    digest, files = exporting.write_overlay(job.store, job.row, staging / exporting.OVERLAY)
    durable.write_json(staging / exporting.MANIFEST, exporting.manifest(job.version, digest, files), 0o644)
    durable.write_file(staging / exporting.SCRIPT, Path(apply_overlay.__file__).read_bytes(), 0o644)
    lines = (
        f"without alignd: `python {job.args.folder}/{exporting.SCRIPT} BASE OUT`",
        f"in another home of this base: `alignd import {job.args.folder}`",
    )
    return Written({"sha256": digest}, lines)


def _write_mergekit(job: Job, staging: Path) -> Written:
    durable.make_folder(staging, 0o755)
    exporting.write_model(job.store, job.row, staging / job.row.name)
    text = recipe.recipe(job.row.name, job.base, job.version["dtypes"])
    durable.write_file(staging / recipe.MERGEKIT_FILE, text.encode(), 0o644)
    lines = (f"base: {job.base}", f"merge, run in that folder: `mergekit-yaml {recipe.MERGEKIT_FILE} OUT`")
    return Written({"base": job.base}, lines)


def _write_gguf(job: Job, staging: Path) -> Written:
    try:
        converter = gguf.find_converter(job.args.converter)
        durable.make_folder(staging, 0o755)
        name = f"{modelcard.release_name(job.version)}.gguf"
        with exporting.checked_model(job.store, job.row) as model:
            gguf.convert(converter, model, staging / name, outtype=job.args.outtype or DEFAULT_OUTTYPE)
    except gguf.ConverterError as err:
        raise CommandError(exitcodes.FAILED, str(err), err.hint) from err
    return Written({"file": name, "converter": str(converter)}, (f"converted by {converter}",))


def _write_peft(job: Job, staging: Path) -> Written:
    if job.rank < 1 or not job.max_error >= 0:
        raise CommandError(exitcodes.USAGE, "--rank is 1 or more, and --max-error 0 or more")
    with (
        exporting.checked_model(job.store, job.store.version(0)) as base,
        exporting.checked_model(job.store, job.row) as version,
    ):
        return _write_adapter(job, base, version, staging)


def _write_adapter(job: Job, base: Path, version: Path, staging: Path) -> Written:
    from daemon import adapter, measured_texts  # bring torch

    rank = job.rank
    folders = adapter.Folders(base, version, measured_texts.device(job.context))
    digests = [job.store.version_record(number)["tensors"] for number in (0, job.row.id)]
    try:
        change = adapter.find_change(folders, digests, rank)
    except adapter.NoAdapterError as err:
        raise CommandError(exitcodes.FAILED, f"{job.row.name}: {err}", "--to overlay carries any change") from err
    _check_error(job, change)
    durable.make_folder(staging, 0o755)
    adapter.write_adapter(change, folders, staging, rank=rank, base_name=job.base)
    durable.remove_tree(staging / exporting.CARD)  # peft's own; ours follows
    texts, prompts = measured_texts.texts(job.context, base)
    error = adapter.error_view(change, rank, adapter.measure(folders, staging, texts), prompts)
    durable.write_json(staging / ERRORS, error, 0o644)
    return Written({"error": error}, _error_lines(error, job.row.name), error)


def _check_error(job: Job, change: Change) -> None:
    """Refuse an adapter that loses more than was allowed; the message says which rank would do."""
    error, bound = change.relative_error, job.max_error
    if error <= bound or job.args.force:
        return
    enough = change.least_rank(bound)
    lost = f"rank {job.rank} loses {percent(error)} of the change (relative Frobenius error)"
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


WRITERS: Final[dict[str, Callable[[Job, Path], Written]]] = {
    "hf": _write_hf,
    "peft": _write_peft,
    "overlay": _write_overlay,
    "gguf": _write_gguf,
    "mergekit": _write_mergekit,
}
