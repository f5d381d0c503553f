"""Hostile files for every reader: what is taken in is sound, what is refused is refused with the product's own words.

`python -m tests.fuzz --minutes 10` spoils valid files and makes odd ones, tells what each reader made of them, keeps every input
that broke a promise under var/fuzz, and ends with 1 when there was one. `--reader NAME --input FILE` reads one again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

import hypothesis
from hypothesis import HealthCheck, Phase

from tests.fuzz_inputs import SECRET
from tests.fuzz_readers import CANARY, READERS, BrokenPromiseError, Reader, spoiled

ROOT: Final = Path(__file__).resolve().parent.parent
KEPT: Final = ROOT / "var" / "fuzz"
MEMORY: Final = next((path for path in ("/dev/shm",) if os.access(path, os.W_OK)), None)
"""A folder whose files cost no writing to a disk."""
CPU_S: Final = 10.0
"""Of one input, which is small."""
PEAK_BYTES: Final = 512 << 20
"""More than one small input may add to the memory of the process."""
MESSAGE_CHARS: Final = 2500
MEMORY_BYTES: Final = 8 << 30
_MAY_OPEN: Final = tuple(
    os.path.realpath(path) for path in (ROOT, sys.prefix, sys.base_prefix, "/usr", "/proc", "/sys", "/dev")
)


class _StuckError(BaseException):
    """The reader did not come to an end."""


@dataclass(frozen=True)
class Verdict:
    """What a reader made of one input."""

    outcome: str
    """`accepted`, or the name of the error."""
    broken: str = ""
    """The promise that was broken, and where."""


@dataclass
class Tally:
    """What one reader was given and what it did."""

    outcomes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    """What was broken, each kind once -> the file that breaks it."""

    @property
    def num_inputs(self) -> int:
        return self.outcomes.total()


_opened: list[str] | None = None


def _on_audit(event: str, args: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(args[0], str | bytes):
        _opened.append(os.fsdecode(args[0]))


@contextmanager
def _watched() -> Iterator[list[str]]:
    """The names of the files that are opened meanwhile."""
    global _opened
    if not getattr(_watched, "is_on", False):
        tempfile.gettempdir()  # tries out folders when it is asked first
        sys.addaudithook(_on_audit)
        _watched.is_on = True  # type: ignore[attr-defined]
    found: list[str] = []
    _opened = found
    try:
        yield found
    finally:
        _opened = None


def trial(reader: Reader, folder: Path, data: bytes) -> Verdict:
    """Let a reader read an input in a folder that is emptied afterwards."""
    folder.mkdir()
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        with _watched() as opened:
            verdict = _verdict(reader, folder, data)
    finally:
        shutil.rmtree(folder)
    outside = [path for path in opened if not _may_open(path, folder)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    took = time.process_time() - began
    if verdict.broken:
        return verdict
    if outside:
        return Verdict(verdict.outcome, f"opened a file outside of its folder: {outside[0]!r}")
    if grown > PEAK_BYTES:
        return Verdict(verdict.outcome, f"{len(data)} bytes took {grown >> 20} MiB of memory")
    return Verdict(verdict.outcome, f"took {took:.0f} s" if took > CPU_S else "")


def _verdict(reader: Reader, folder: Path, data: bytes) -> Verdict:
    def stop(*_: object) -> None:
        raise _StuckError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 4 * CPU_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(folder, data)
    except BrokenPromiseError as err:
        return Verdict("accepted", str(err))
    except reader.errors as err:
        return Verdict(type(err).__name__, _broken_by(err, reader.place.format(folder=folder)))
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as err:  # noqa: BLE001 - a panic of a library is none of the others
        at = traceback.extract_tb(err.__traceback__)
        ours = [frame for frame in at if "/tests/" not in frame.filename and str(ROOT) in frame.filename] or list(at)
        return Verdict(type(err).__name__, f"{type(err).__name__} at {Path(ours[-1].filename).name} in {ours[-1].name}")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return Verdict("accepted")


def _broken_by(err: Exception, place: str) -> str:
    """What is wrong with the words of a refusal."""
    text = f"{err} {getattr(err, 'hint', '')}"
    if not text.isprintable():
        return f"a message with control characters ({_raised_in(err)})"
    if SECRET in text or CANARY in text:
        return f"a message with text of a row ({_raised_in(err)})"
    if place not in text:
        return f"a message that names no place ({_raised_in(err)})"
    return f"a message of {len(text)} characters ({_raised_in(err)})" if len(text) > MESSAGE_CHARS else ""


def _raised_in(err: Exception) -> str:
    return traceback.extract_tb(err.__traceback__)[-1].name


def _may_open(path: str, folder: Path) -> bool:
    if not path.startswith("/"):  # relative to a descriptor, or to the folder of the process, where nothing lies
        return "/" not in path and path != ".."
    real = os.path.realpath(path)
    world = next(
        (root for root in Path(tempfile.gettempdir()).glob("fuzz-store-*") if real.startswith(str(root))), None
    )
    return world is not None or real.startswith((f"{folder.resolve()}", *_MAY_OPEN))


def keep(reader: Reader, data: bytes) -> str:
    """Save an input that broke a promise; gives the command that reads it again."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{reader.name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return f"python -m tests.fuzz --reader '{reader.name}' --input {path.relative_to(ROOT)}"


@dataclass
class Told:
    """Where a child writes what it does, line by line, so that nothing is lost with it."""

    lines: TextIO
    last: Path
    """The input that is read now."""
    broken: set[str] = field(default_factory=set)


def take(reader: Reader, told: Told, folder: Path, data: bytes) -> None:
    """Let a reader read an input, and tell the outcome; what breaks a promise in a new way is kept."""
    told.last.write_bytes(data)
    verdict = trial(reader, folder, data)
    is_new = bool(verdict.broken) and verdict.broken not in told.broken
    told.broken.add(verdict.broken)
    command = keep(reader, data) if is_new else ""
    told.lines.write(json.dumps([verdict.outcome, verdict.broken if is_new else "", command]) + "\n")


def spoil(reader: Reader, told: Told, folder: Path, *, seconds: float, seed: int) -> None:
    """Valid files with changes, for so long."""
    draw, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        take(reader, told, folder, spoiled(reader, draw.getrandbits(64)))


def invent(reader: Reader, told: Told, folder: Path, *, seconds: float, seed: int) -> None:
    """Odd files made from nothing, for so long."""
    end = time.monotonic() + seconds

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=1_000_000,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(reader.scratch)
    def body(data: bytes) -> None:
        if time.monotonic() > end:
            raise TimeoutError
        take(reader, told, folder, data)

    with suppress(TimeoutError):
        body()


def campaign(seconds: float, seed: int, names: list[str]) -> dict[str, Tally]:
    """Every reader for an equal share of the time, most of it with spoilt files."""
    found = {name: Tally() for name in names}
    for name, tally in found.items():
        end = time.monotonic() + seconds / len(names)
        while (left := end - time.monotonic()) > 0.1:
            _in_a_child(READERS[name], tally, seconds=left, seed=seed)
            seed += 1
        print(f"{name:30} {tally.num_inputs} inputs, {len(tally.broken)} broken", file=sys.stderr, flush=True)
    return found


def _in_a_child(reader: Reader, tally: Tally, *, seconds: float, seed: int) -> None:
    """Fuzz in a process of its own: a library in C++ may end the process that it is in."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY) as root:
        pid = os.fork()
        if pid == 0:
            _fuzz_and_exit(reader, Path(root), seconds=seconds, seed=seed)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for line in Path(root, "tally").read_text().splitlines():
            outcome, broken, command = json.loads(line)
            tally.outcomes[outcome] += 1
            if broken:
                tally.broken.setdefault(broken, command)
        if code:
            what = f"ended its process with {signal.Signals(-code).name if code < 0 else code}"
            tally.outcomes[what] += 1
            tally.broken.setdefault(what, keep(reader, Path(root, "last").read_bytes()))


def _fuzz_and_exit(reader: Reader, root: Path, *, seconds: float, seed: int) -> NoReturn:
    code = 1
    try:
        with (root / "tally").open("w", buffering=1) as told:
            writer = Told(told, root / "last")
            for data in reader.seeds():
                take(reader, writer, root / "d", data)
            spoil(reader, writer, root / "d", seconds=0.7 * seconds, seed=seed)
            invent(reader, writer, root / "d", seconds=0.3 * seconds, seed=seed)
        code = 0
    except Exception:  # noqa: BLE001 - the child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(code)


def _show(found: dict[str, Tally]) -> None:
    print(f"{'reader':30} {'inputs':>8} {'accepted':>8}  refused")
    for name, tally in found.items():
        refused = ", ".join(f"{n} {kind}" for kind, n in tally.outcomes.most_common() if kind != "accepted")
        print(f"{name:30} {tally.num_inputs:8} {tally.outcomes['accepted']:8}  {refused}")
    print(f"inputs            {sum(tally.num_inputs for tally in found.values())}")
    print(f"broken promises   {sum(len(tally.broken) for tally in found.values())}")
    for name, tally in found.items():
        for what, command in tally.broken.items():
            print(f"  {name}: {what}\n    {command}")


def main(argv: list[str] | None = None) -> int:
    """Fuzz every reader, or read one input again; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=list(READERS), help="this one only; may be repeated")
    parser.add_argument("--input", type=Path, help="a file to read once")
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    names = options.reader or list(READERS)
    if options.input is None:
        found = campaign(options.minutes * 60, options.seed, names)
        _show(found)
        return 1 if any(tally.broken for tally in found.values()) else 0
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY) as root:
        verdict = trial(READERS[names[0]], Path(root, "d"), options.input.read_bytes())
    print(f"{verdict.outcome}: {verdict.broken or 'every promise is kept'}")
    return 1 if verdict.broken else 0


if __name__ == "__main__":
    sys.exit(main())
