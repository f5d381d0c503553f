"""The commands about probe files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from daemon import exitcodes, suggest
from daemon.command import Answer, Command, CommandError, Context, arg

PACK_NAMES: Final = (
    "xstest",
    "oktest",
    "or-bench",
    "or-bench-toxic",
    "harmbench",
    "strongreject",
    "jailbreakbench",
    "jailbreakbench-benign",
    "mt-bench",
    "alpacaeval",
)
"""Those of `daemon.probe_packs`, which is not imported for the words of the command line alone."""


def probes_import(context: Context, args: argparse.Namespace) -> Answer:
    """Takes a published set of prompts into the probe files."""
    from daemon.probe_import import add
    from daemon.probe_packs import PACKS, read_pack
    from daemon.rows import BatchError

    config = context.config()
    try:
        read = read_pack(args.pack, Path(args.file))
    except BatchError as err:
        raise CommandError(exitcodes.USAGE, str(err)) from err
    except OSError as err:
        raise CommandError(exitcodes.USAGE, f"{args.file} cannot be read: {err.strerror}") from err
    added = {} if args.dry_run else add(context.home, config, read.probes)
    view = {
        "pack": args.pack,
        "num_records": read.num_records,
        "num_left_out": read.num_left_out,
        "num_probes": {kind: len(rows) for kind, rows in read.probes.items()},
        "added": {kind: found.to_dict() for kind, found in added.items()},
    }
    return Answer(view, tuple(_lines(view, PACKS[args.pack].title, dry=args.dry_run)))


def _lines(view: dict[str, Any], title: str, *, dry: bool) -> list[str]:
    left_out = f", {view['num_left_out']} without a probe in them" if view["num_left_out"] else ""
    lines = [f"{title}: {view['num_records']} records{left_out}"]
    if dry:
        counts = [f"{num} for {kind}" for kind, num in view["num_probes"].items() if num]
        return [*lines, f"nothing is written; it has {', '.join(counts) or 'no probe'}"]
    for kind, found in view["added"].items():
        known = f", {found['num_known']} were there already" if found["num_known"] else ""
        lines.append(f"{kind}: {found['num_added']} added to {found['path']}{known}")
    return lines


COMMANDS: Final = (
    Command(
        "probes import",
        "Take a published set of prompts into the probe files",
        (
            "alignd probes import xstest xstest_prompts.csv",
            "alignd probes import or-bench or-bench-hard-1k.csv --dry-run",
            "alignd probes import jailbreakbench-benign benign-behaviors.csv",
        ),
        probes_import,
        (
            arg("pack", metavar="PACK", choices=PACK_NAMES, help=f"the set: {', '.join(PACK_NAMES)}"),
            arg(
                "file",
                metavar="FILE",
                words=suggest.files,
                help="one of its files as published: CSV, JSON, JSON Lines or Parquet",
            ),
            arg("--dry-run", action="store_true", help="only count what would be taken in"),
        ),
    ),
)
