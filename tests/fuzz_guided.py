"""The readers of `tests.fuzz` under a fuzzer that goes by coverage: an input that reaches new code is kept and spoilt further.

`python -m tests.fuzz_guided --minutes 30` shares the time among the readers, tells how much code each input set reached,
keeps what broke a promise as `tests.fuzz` does, and ends with 1 when there was one. Needs atheris.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
INSTRUMENTED: Final = ["daemon", "state", "policies"]
MAX_INPUT_BYTES: Final = 65536
_COVERAGE: Final = re.compile(r"cov: (\d+)")


@dataclass
class Tally:
    """What one reader was given."""

    outcomes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    """What was broken, each kind once -> the command that reads the input again."""
    num_edges: tuple[int, int] = (0, 0)
    """Of the code that is watched: reached by the valid files, and at the end."""


def guided(name: str, seconds: float) -> Tally:
    """One reader for so long, in a process of its own, from its valid files on."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz_guided",
            "--child",
            root,
            "--reader",
            name,
            "--seconds",
            str(seconds),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
        told = Path(root, "tally")
        for line in told.read_text().splitlines() if told.exists() else ():
            outcome, broken, again = json.loads(line)
            tally.outcomes[outcome] += 1
            if broken:
                tally.broken.setdefault(broken, again)
    edges = [int(found) for found in _COVERAGE.findall(done.stderr)]
    if edges:
        tally.num_edges = edges[0], edges[-1]
    if done.returncode or not edges:
        tally.broken.setdefault(f"the fuzzer ended with {done.returncode}: {done.stderr[-500:]}", "")
    return tally


def _child(name: str, root: Path, seconds: float) -> None:
    """Fuzz, and do not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests import fuzz
        from tests.fuzz_readers import READERS
    resource.setrlimit(resource.RLIMIT_AS, (fuzz.MEMORY_BYTES, fuzz.MEMORY_BYTES))
    reader, corpus = READERS[name], root / "corpus"
    corpus.mkdir()
    for number, data in enumerate(reader.seeds()):
        (corpus / f"seed{number}").write_bytes(data)
    told = fuzz.Told((root / "tally").open("w", buffering=1), root / "last")

    def read_one(data: bytes) -> None:
        fuzz.take(reader, told, root / "d", data)

    flags = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={MAX_INPUT_BYTES}",
        "-rss_limit_mb=0",
        "-timeout=120",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], read_one)
    atheris.Fuzz()


def main(argv: list[str] | None = None) -> int:
    """Fuzz every reader by coverage; 1 when a promise was broken, 2 where atheris is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_guided", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="for all readers together")
    parser.add_argument("--reader", action="append", help="this one only; may be repeated")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed; it is there on Linux, for CPython", file=sys.stderr)
        return 2
    if options.child:
        _child(options.reader[0], options.child, options.seconds)
    from tests.fuzz_readers import READERS

    names = options.reader or list(READERS)
    began, found = time.monotonic(), {}
    for name in names:
        found[name] = guided(name, 60 * options.minutes / len(names))
        print(_line(name, found[name]), flush=True)
    print(f"inputs            {sum(tally.outcomes.total() for tally in found.values())}")
    print(f"minutes           {(time.monotonic() - began) / 60:.1f}")
    print(f"broken promises   {sum(len(tally.broken) for tally in found.values())}")
    return 1 if any(tally.broken for tally in found.values()) else 0


def _line(name: str, tally: Tally) -> str:
    first, last = tally.num_edges
    line = f"{name:30} {tally.outcomes.total():8} inputs, {first:5} -> {last:5} edges, {len(tally.broken)} broken"
    return line + "".join(f"\n    {what}\n    {again}" for what, again in tally.broken.items())


if __name__ == "__main__":
    sys.exit(main())
