"""The command that tries the judge on labelled answers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from daemon import exitcodes, suggest
from daemon.command import Answer, Command, CommandError, Context, arg, service_file_of
from daemon.terminal import Style, percent, printable, table


def judge(context: Context, args: argparse.Namespace) -> Answer:
    """Tries the configured judge and the rules on labelled answers."""
    from daemon.config import load
    from daemon.judge_trial import open_judge, trial  # torch comes with it
    from daemon.labelled import read_labelled
    from daemon.rows import BatchError
    from patches.errors import PatchError

    try:
        rows = read_labelled(Path(args.file))
    except BatchError as err:
        raise CommandError(exitcodes.USAGE, str(err)) from err
    except OSError as err:
        raise CommandError(exitcodes.USAGE, f"{args.file} cannot be read: {err.strerror}") from err
    files = [context.service_file, *map(service_file_of, args.also)]
    try:
        judges = [open_judge(load(file), file.parent) for file in files]
        judges = list({found.identity: found for found in [*(found.rule for found in judges), *judges]}.values())
        view = trial(judges, rows)
    except PatchError as err:
        raise CommandError(exitcodes.CONFIG, f"the judge cannot be used: {err}") from err
    return Answer(view, tuple(trial_lines(view, context.style)))


def trial_lines(view: dict[str, Any], style: Style) -> Iterator[str]:
    """The trial as lines for people."""
    yield f"{view['num_answers']} answers, of which {view['num_harmful']} are labelled harmful"
    yield ""
    names = [found["identity"] for found in view["judges"]]
    yield from (f"{letter}  {printable(name)}" for letter, name in zip(_LETTERS, names, strict=False))
    yield ""
    rows = [
        [letter, *map(percent, _columns(found["harm"]))]
        for letter, found in zip(_LETTERS, view["judges"], strict=False)
    ]
    yield from table(["HARM", "RIGHT", "PRECISION", "RECALL", "FALSE ALARMS", "F1"], rows, style)
    refusals = [
        [letter, *map(percent, _columns(found["refusal"]))]
        for letter, found in zip(_LETTERS, view["judges"], strict=False)
        if found["refusal"]
    ]
    if refusals:
        yield ""
        yield from table(["REFUSALS", "RIGHT", "PRECISION", "RECALL", "FALSE ALARMS", "F1"], refusals, style)
    for letter, found in zip(_LETTERS, view["judges"], strict=False):
        yield from _score_lines(letter, found["scores"])
    letter_of = dict(zip(names, _LETTERS, strict=False))
    if view["agreement"]:
        yield ""
    for pair in view["agreement"]:
        first, second = letter_of[pair["first"]], letter_of[pair["second"]]
        kappa = "" if pair["kappa"] is None else f", kappa {pair['kappa']:.2f}"
        yield (
            f"{first} and {second} agree on {percent(pair['num_equal'] / pair['num'])} of the harm{kappa}; "
            f"only {first} sees it in {pair['only_first']}, only {second} in {pair['only_second']}"
        )


def _columns(found: dict[str, Any]) -> list[float | None]:
    return [found[key] for key in ("accuracy", "precision", "recall", "false_positive_rate", "f1")]


def _score_lines(letter: str, scores: dict[str, Any] | None) -> Iterator[str]:
    if scores is None:
        return
    yield ""
    yield f"{letter}  probabilities: Brier score {scores['brier']:.3f}, calibration error {scores['calibration_error']:.3f}"
    if scores["best_threshold"] is not None:
        best = scores["best"]
        yield (
            f"   the labels fit [judge] threshold = {scores['best_threshold']!r} best: F1 {percent(best['f1'])}, "
            f"false alarms {percent(best['false_positive_rate'])}"
        )


_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

COMMANDS: Final = (
    Command(
        "judge",
        "Try the judge on answers that people labelled",
        ("alignd judge labelled.jsonl", "alignd judge wildguardtest.parquet --also /srv/other/service.toml"),
        judge,
        (
            arg(
                "file",
                metavar="FILE",
                words=suggest.files,
                help='{"prompt", "response", "harmful", "refusal"?}, WildGuardMix or BeaverTails; JSON, CSV or Parquet',
            ),
            arg(
                "--also",
                metavar="SERVICE_TOML",
                words=suggest.files,
                action="append",
                default=[],
                help="the judge of these settings too; may be given several times",
            ),
        ),
    ),
)
