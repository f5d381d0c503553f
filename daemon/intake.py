"""From a claimed batch to rows that a round may use: parse, screen, split."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from daemon.basemodel import context_tokens, read_tokenizer
from daemon.batch_files import Limits
from daemon.config import Config
from daemon.config_checks import ANSWER_ROOM
from daemon.formats import ParsedBatch, read_batch
from daemon.probes import ProbeFiles, load, thin
from daemon.progress import Outcome, Reporter
from daemon.rows import BatchError, Row
from patches.judge import RuleJudge
from policies.consolidation import fair_shares
from policies.intake import IntakeConfig, Screened, Split, keep_first_sides, screen, split_rows
from state import signed
from state.batches import identity
from state.errors import StoreCorruptError
from state.layout import Layout
from state.remedy import BATCH

SPLIT_SEED = "alignd batch split 1"
_MAX_SHOWN = 3
_CHUNK_TEXTS = 64
"""Texts that are tokenised in one call: more are slower, since all their tokens are held at once."""
_ONE_GROUP = (
    "nearly all of its {num} rows share one prompt or one response, so none can be held out to judge by (the first: "
    "{places}); drop it again together with rows of other prompts and responses"
)

_ALL_HELD_OUT = (
    "none of its {num} rows can be learnt from: earlier batches hold the same prompts or responses out to judge by; "
    "drop it again together with rows of other prompts and responses"
)


@dataclass(frozen=True)
class TakenIn:
    """A usable batch."""

    rows: list[Row]
    split: Split
    stats: dict[str, Any]
    """Counts and warnings, for the ledger; no text."""

    def train(self) -> list[Row]:
        """Rows that may be learnt from."""
        return [self.rows[i] for i in self.split.train]

    def development(self) -> list[Row]:
        """Rows that the search measures on."""
        return [self.rows[i] for i in self.split.dev]

    def gate(self) -> list[Row]:
        """Rows that only judge."""
        return [self.rows[i] for i in self.split.gate]


class UnusableBatchError(Exception):
    """The batch cannot be used; the reasons are for its owner."""

    def __init__(self, reasons: tuple[str, ...], stats: dict[str, Any]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons, self.stats = reasons, stats


def run(store: Layout, config: Config, sha256: str, reporter: Reporter) -> Outcome:
    """Check a claimed batch: accepted with its counts, or quarantined with the reasons."""
    reporter.progress("parse", 0.0)
    try:
        taken = take_in(store, config, sha256, load(store.home, config))
    except UnusableBatchError as err:
        return Outcome("quarantined", err.reasons, err.stats)
    return Outcome("accepted", (), taken.stats)


def take_in(store: Layout, config: Config, sha256: str, probes: ProbeFiles, *, is_learnt: bool = False) -> TakenIn:
    """The usable rows of a stored batch, split for training, search and judgement; the same on every call.

    Args:
        is_learnt: a version was made with it. Then rows are left out as ever, but the batch is not refused for having
            few of them: probes and settings may have changed since.
    Raises:
        StoreCorruptError: the stored batch is not what was received.
        UnusableBatchError: nobody who is trusted has signed it where somebody must have, it cannot be read, holds no
            training data, or too little of it is usable.
    """
    _check_whole(store, sha256)
    vouched = {} if is_learnt else _vouched(store, config, sha256)
    base = store.model_path(0)
    limits = Limits(max_rows=config.inbox.max_rows, max_bytes=config.inbox.max_bytes)
    try:
        parsed = read_batch(store.batch_content(sha256), limits)
    except BatchError as err:
        raise UnusableBatchError((str(err),), {}) from err
    counter = _TokenCounter(base)
    judge = RuleJudge(extra_refusals=config.judge.refusals)
    screened = screen(
        parsed.rows,
        judge.is_refusal,
        IntakeConfig(min_rows=config.inbox.min_rows, max_prompt_tokens=sequence_limit(base, config) - ANSWER_ROOM),
        num_tokens=counter.num_tokens,
        most_tokens=counter.most(),
        probe_prompts=probes.prompts(),
        dropped_before=parsed.dropped,
    )
    stats = _stats(parsed, screened) | vouched
    if not screened.decision.accepted and not is_learnt:
        first, *more = screened.decision.reasons
        raise UnusableBatchError((f"{_files(parsed)}: {first}", *more, *_first_rows(stats, screened.kept)), stats)
    split = split_rows(screened.kept, SPLIT_SEED)
    if not split.gate and not is_learnt:
        why = _ONE_GROUP.format(num=len(screened.kept), places=_places(screened.kept[:_MAX_SHOWN]))
        raise UnusableBatchError((f"{_files(parsed)}: {why}",), stats)
    return TakenIn(screened.kept, split, stats | split.counts())


def _check_whole(store: Layout, sha256: str) -> None:
    """Nothing is learnt from a batch that is not what was received; that it is missing is told where it is read."""
    path = store.batch_content(sha256)
    if path.exists() and identity(path) != sha256:
        raise StoreCorruptError(
            f"batch {sha256[:12]} is not what was received: {path}",
            BATCH,
        )


def _vouched(store: Layout, config: Config, sha256: str) -> dict[str, Any]:
    """Who signed the batch, for its stats."""
    if not config.inbox.require_signature and not signed.signatures_of(store, sha256):
        return {}
    from daemon import signing  # brings cryptography, which few need

    try:
        found = signing.check(store, config, sha256)
    except signing.UnsignedError as err:
        raise UnusableBatchError((str(err),), {}) from err
    return {"signature": found} if found else {}


def apart(batches: Mapping[str, TakenIn]) -> dict[str, TakenIn]:
    """Batches, oldest first, without the rows that an earlier batch of them has on another side of its split."""
    splits = keep_first_sides([(taken.rows, taken.split) for taken in batches.values()])
    return {sha256: replace(taken, split=split) for (sha256, taken), split in zip(batches.items(), splits, strict=True)}


def join(earlier: Mapping[str, TakenIn], sha256: str, taken: TakenIn) -> dict[str, TakenIn]:
    """The batches of a round, its own last.

    Raises:
        UnusableBatchError: all its training rows are held out to judge earlier batches by.
    """
    batches = apart({**earlier, sha256: taken})
    if not batches[sha256].split.train:
        raise UnusableBatchError((_ALL_HELD_OUT.format(num=len(taken.rows)),), taken.stats)
    return batches


def together(batches: Mapping[str, TakenIn], max_rows: int) -> TakenIn:
    """The rows of several batches as one, each on the side that it had.

    Args:
        max_rows: rows to learn from at most; where there are more, the largest batches give up some, evenly spread.
    """
    shares = fair_shares([len(taken.split.train) for taken in batches.values()], max_rows)
    rows: list[Row] = []
    sides: dict[str, list[int]] = {"train": [], "dev": [], "gate": []}
    for taken, share in zip(batches.values(), shares, strict=True):
        kept = {"train": thin(taken.split.train, share), "dev": taken.split.dev, "gate": taken.split.gate}
        for side, indices in kept.items():
            sides[side] += [len(rows) + i for i in indices]
        rows += taken.rows
    split = Split(**{side: tuple(indices) for side, indices in sides.items()})
    return TakenIn(rows, split, {"num_batches": len(batches), "num_rows": len(rows)} | split.counts())


def sequence_limit(model: Path, config: Config) -> int:
    """Tokens of prompt and response together: [derive] max_length, or the model's context where that is shorter."""
    context = context_tokens(model)
    return config.derive.max_length if context is None else min(config.derive.max_length, context)


class _TokenCounter:
    """Lengths of chat turns in a model's tokens, without its template."""

    def __init__(self, base: Path) -> None:
        self._tokenizer = _tokenizer(base)

    def most(self) -> Callable[[Sequence[Any]], int] | None:
        """A cheap upper bound of one row's length; None where there is none.

        A token stands for one byte of UTF-8 at least, whatever the kind of vocabulary. A splitter may put a space before
        each piece of a text, and a piece has one byte at least; what else makes a text longer leaves no bound.
        """
        parts = json.loads(self._tokenizer.to_str())
        splitter = json.dumps(parts["pre_tokenizer"])
        if parts["normalizer"] is not None or "Metaspace" in splitter:
            return None
        num_spaces = splitter.count('"add_prefix_space": true')

        def most(turns: Sequence[Any]) -> int:
            num_bytes = sum(len(turn.content.encode("utf-8", "surrogatepass")) for turn in turns)
            return num_bytes * (1 + num_spaces) + num_spaces * len(turns)

        return most

    def num_tokens(self, rows: Sequence[Sequence[Any]]) -> list[int]:
        """The exact length of each row: all its turns together."""
        texts = [turn.content for turns in rows for turn in turns]
        lengths = iter(
            len(encoding)
            for start in range(0, len(texts), _CHUNK_TEXTS)
            for encoding in self._tokenizer.encode_batch_fast(
                texts[start : start + _CHUNK_TEXTS], add_special_tokens=False
            )
        )
        return [sum(itertools.islice(lengths, len(turns))) for turns in rows]


def _tokenizer(base: Path) -> Tokenizer:
    file = base / "tokenizer.json"
    if file.is_file():
        return read_tokenizer(file)
    from patches.model import load_tokenizer  # torch comes with it, so only where the tokenizer has to be converted

    return cast(Tokenizer, load_tokenizer(base).backend_tokenizer)


def _places(rows: Sequence[Row]) -> str:
    """Files and row numbers: "a.jsonl, row 3; b.csv, row 7"."""
    return "; ".join(f"{row.source}, row {row.row}" for row in rows)


def _files(parsed: ParsedBatch) -> str:
    """The files of a batch by name, the first few of many."""
    names = [file.name for file in parsed.files]
    return ", ".join(names[:_MAX_SHOWN]) + (", …" if len(names) > _MAX_SHOWN else "")


def _first_rows(stats: dict[str, Any], kept: Sequence[Row]) -> tuple[str, ...]:
    """One sentence that says where to look first: at rows that were dropped, else at those that are too few."""
    found = [f"{why.replace('_', ' ')} ({places})" for why, places in stats["dropped_at"].items()]
    if found:
        return (f"dropped first: {', '.join(found)}",)
    return (f"usable first: {_places(kept[:_MAX_SHOWN])}",) if kept else ()


def _stats(parsed: ParsedBatch, screened: Screened[Row]) -> dict[str, Any]:
    return {
        "num_records": parsed.num_records,
        "num_rows": len(screened.kept),
        "dropped": dict(screened.dropped),
        "dropped_at": {why: _places(rows) for why, rows in screened.examples.items()},
        "warnings": list(parsed.warnings),
        "files": [
            {
                "name": f.name,
                "format": f.format,
                "compression": f.compression,
                "signature": f.signature,
                "rows": f.num_rows,
            }
            for f in parsed.files
        ],
    }
