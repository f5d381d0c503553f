"""The supervisor at rest, the time from a drop to its claim, and rows read from batches."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from benchmarks.speed.rows import Row, interleaved
from daemon.formats import Limits, read_batch
from tests import tiny_model
from tests.kills import tiny_drops, tiny_home
from tests.product import environment

ROOT: Final = Path(__file__).resolve().parent.parent.parent
REST_S: Final = 60.0
NUM_ROWS: Final = 200_000
NUM_MANY_ROWS: Final = 10_000_000


@contextmanager
def _service(folder: Path) -> Iterator[tuple[Path, int]]:
    home = tiny_home(folder / "home", tiny_model.save(folder / "base"))
    text = (home.path / "service.toml").read_text()
    (home.path / "service.toml").write_text(
        text + '\n[schedule]\ntraining_window = "0 0 29 2 *"\n' if "[schedule]" not in text else text
    )
    command = [sys.executable, "-m", "daemon", "-c", str(home.path), "run"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log) as service,
    ):
        try:
            _until(lambda: b"service_started" in (folder / "log").read_bytes())
            yield home.path, service.pid
        finally:
            service.terminate()
            service.wait(60)


def _until(condition: Callable[[], bool], wait_s: float = 60.0) -> float:
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > wait_s:
            raise TimeoutError
        time.sleep(0.005)
    return time.perf_counter() - began


def at_rest(folder: Path) -> list[Row]:
    """Memory and processor time of an idle supervisor over a minute."""
    with _service(folder) as (_, pid):
        time.sleep(5)
        before = _cpu_s(pid)
        time.sleep(REST_S)
        used = (_cpu_s(pid) - before) / REST_S
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return [
        Row("supervisor at rest, memory", resident, "MiB", "", None, 80, "at most"),
        Row("supervisor at rest, of a core", 100 * used, "%", "", None, 0.1, "at most", f"over {REST_S:.0f} s"),
    ]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def claim(folder: Path) -> list[Row]:
    """Seconds from the moment at which a drop counts as settled until it has left the inbox."""
    from tests.product import Home

    with _service(folder) as (home, _):
        settle_s = 0.2
        drop, took = tiny_drops(Home(home)), []
        for number in range(2, 12, 2):  # without a marker
            name = f"batch{number}.jsonl"
            drop(name, number)
            took.append(_until(partial(_is_gone, home / "inbox" / name)) - settle_s)
    note = f"median of {len(took)}, the longest {max(took):.2f} s; inbox.settle_s = {settle_s}"
    return [Row("a settled drop to its claim", statistics.median(took), "s", "", None, 1.0, "at most", note)]


def _is_gone(path: Path) -> bool:
    return not path.exists()


def intake(folder: Path) -> list[Row]:
    """Rows a second read, checked and typed, beside the bare readers."""
    rows = _pairs(NUM_ROWS)
    lines, parquet = folder / "rows.jsonl", folder / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    limits = Limits()

    def by_json() -> list[object]:
        with lines.open() as file:
            return [json.loads(line) for line in file]

    found = []
    mine, peer = interleaved(lambda: read_batch(lines, limits), by_json)
    found += _intake_rows("JSON Lines", mine, peer, "json.loads a line")
    mine, peer = interleaved(lambda: read_batch(lines, limits), lambda: pa_json.read_json(lines).to_pylist())
    found += _intake_rows("JSON Lines", mine, peer, "pyarrow, to_pylist")[1:]
    mine, peer = interleaved(lambda: read_batch(parquet, limits), lambda: pq.read_table(parquet).to_pylist())
    found += _intake_rows("Parquet", mine, peer, "pyarrow, to_pylist")
    return found


def intake_memory(folder: Path) -> list[Row]:
    """The most memory of a process that reads a drop of ten million rows, and does nothing else."""
    rows = pa.Table.from_pylist(_pairs(NUM_ROWS))
    lines, parquet = folder / "rows.jsonl", folder / "rows.parquet"
    block = "".join(json.dumps(row) + "\n" for row in rows.to_pylist())
    with lines.open("w") as out, pq.ParquetWriter(parquet, rows.schema) as table:
        for _ in range(NUM_MANY_ROWS // NUM_ROWS):
            out.write(block)
            table.write_table(rows)
    note = f"{NUM_MANY_ROWS:,} rows: refused behind row {Limits().max_rows:,}, the most that a batch may have"
    return [
        Row(f"memory of intake, {kind}", _peak_of_reading(path), "MiB", "", None, 1536, "at most", note)
        for kind, path in (("JSON Lines", lines), ("Parquet", parquet))
    ]


def _pairs(num: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"zorp number {i} of the brindle", "response": f"take {i} wuzzles and a grolt, then wait"}
        for i in range(num)
    ]


_READ: Final = """
import sys
from pathlib import Path
from benchmarks.speed.rows import peak_mib
from daemon.formats import BatchError, Limits, read_batch
try:
    read_batch(Path(sys.argv[1]), Limits())
except BatchError:
    pass
print(peak_mib())
"""


def _peak_of_reading(path: Path) -> float:
    """Of a process that imports nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _intake_rows(kind: str, mine: float, peer: float, against: str) -> list[Row]:
    return [
        Row(f"intake of {kind}", NUM_ROWS / mine, "rows/s", "", None, 200_000, "at least"),
        Row(f"intake of {kind}", NUM_ROWS / mine, "rows/s", against, NUM_ROWS / peer, None, "at least"),
    ]
