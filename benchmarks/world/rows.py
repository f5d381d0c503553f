"""Rows of the demo world, and the files that a user would drop or keep them in."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One question with its right (or, where harmful, wrong to give) answer, as plain text."""

    prompt: str
    response: str
    category: str
    """A harm category for harmful rows and lookalikes; ``benign``, ``facts`` or ``sums`` otherwise."""
    kind: str
    """``harmful``, ``lookalike``, ``benign``, ``facts`` or ``sums``."""
    object: str
    wrapper: str


def write_jsonl(rows: Sequence[Row], path: Path) -> None:
    """Write one object a line with every field of the rows."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def write_batch(rows: Sequence[Row], path: Path) -> None:
    """Write prompts and responses only, in the format that the suffix of ``path`` names.

    Raises:
        ValueError: the suffix is none of ``.jsonl``, ``.csv``, ``.parquet``.
    """
    writers = {".jsonl": _write_pairs, ".csv": _write_csv, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ValueError(f"cannot write a batch as {path.suffix!r}: choose one of {sorted(writers)}")
    writers[path.suffix](rows, path)


def _write_pairs(rows: Sequence[Row], path: Path) -> None:
    lines = [json.dumps({"prompt": row.prompt, "response": row.response}) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("prompt", "response"))
        writer.writerows((row.prompt, row.response) for row in rows)


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"prompt": [row.prompt for row in rows], "response": [row.response for row in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
