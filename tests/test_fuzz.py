"""Hostile files for every reader, the same ones on every run; `tests.fuzz` does it for as long as is asked."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from daemon import exitcodes
from daemon.formats import BatchError
from state.errors import ModelFormatError
from tests.fuzz import Verdict, trial
from tests.fuzz_guided import guided
from tests.fuzz_inputs import SECRET, zstd
from tests.fuzz_readers import READERS, spoiled
from tests.test_bad_input import Desk, lines, rows

NUM_SPOILED = 40
NUM_INVENTED = 20
ABORTS_PYARROW = (5635, 6307)
"""Spoilt Parquet files at whose column metadata pyarrow 26 ends its process."""


@pytest.mark.parametrize("name", READERS)
def test_a_spoilt_file_is_read_soundly_or_refused_in_the_products_own_words(tmp_path: Path, name: str) -> None:
    inputs = [*READERS[name].seeds(), *(spoiled(READERS[name], number) for number in range(NUM_SPOILED))]
    broken = {verdict.broken: data for data in inputs if (verdict := trial(READERS[name], tmp_path / "d", data)).broken}
    assert broken == {}


@pytest.mark.parametrize("name", READERS)
def test_an_invented_file_is_read_soundly_or_refused_in_the_products_own_words(tmp_path: Path, name: str) -> None:
    @settings(
        max_examples=NUM_INVENTED,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(READERS[name].scratch)
    def body(data: bytes) -> None:
        assert trial(READERS[name], tmp_path / "d", data).broken == ""

    body()


def _raises(error: Exception) -> Verdict:
    def read(folder: Path, data: bytes) -> None:
        raise error

    return trial(replace(READERS["json"], read=read), Path("/tmp/never-there"), b"")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BatchError("drop", 1, f"found {SECRET}"), "text of a row"),
        (BatchError("other", 1, "bad"), "names no place"),
        (BatchError("drop\n", 1, "bad"), "control characters"),
        (ModelFormatError("drop"), "ModelFormatError at "),
        (RecursionError(), "RecursionError at "),
    ],
)
def test_a_broken_promise_is_seen(error: Exception, said: str) -> None:
    assert said in _raises(error).broken


def test_a_file_outside_of_the_folder_is_seen(tmp_path: Path) -> None:
    def read(folder: Path, data: bytes) -> None:
        (folder.parent / "other").read_bytes()

    (tmp_path / "other").touch()
    assert "outside of its folder" in trial(replace(READERS["json"], read=read), tmp_path / "d", b"").broken


def test_the_long_form_tells_what_it_tried() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.02", "--reader", "gap stream"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "broken promises   0" in done.stdout


def lying_parquet() -> bytes:
    """One text of 8 MiB in a dictionary, a hundred thousand rows that point at it, and a footer that says it is small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    giants = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["v" * (8 << 20)]))
    sink = pa.BufferOutputStream()
    table = pa.table({"prompt": giants, "response": ["vek lum"] * 100_000})
    pq.write_table(table, sink, compression="zstd", write_statistics=False, store_schema=False)
    data = bytes(sink.getvalue().to_pybytes())
    size = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).total_uncompressed_size
    told = _varint(size)
    return data.replace(told, _varint(1000)[:-1] + bytes([_varint(1000)[-1] | 128]) + b"\x80" * (len(told) - 3) + b"\0")


def _varint(number: int) -> bytes:
    """A positive number as Thrift's compact protocol writes it."""
    number, found = number << 1, b""
    while number > 127:
        number, found = number >> 7, found + bytes([number & 127 | 128])
    return found + bytes([number])


_PEAK = """
import sys
from pathlib import Path
from daemon.formats import BatchError, Limits, read_batch
try:
    read_batch(Path(sys.argv[1]), Limits(max_bytes=256 << 20, max_document_bytes=64 << 20))
except BatchError as err:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), err)
"""
_BLOCK = gzip.compress(b"[]," * (1 << 22), 9, mtime=0)
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "blanks": (lambda: gzip.compress(b" " * (32 << 20), mtime=0) * 100, "more than 268435456 bytes once unpacked"),
    "a line": (lambda: gzip.compress(b'{"prompt": "' + b"a" * (32 << 20), mtime=0) * 9, "a document of more than"),
    "values": (lambda: gzip.compress(b"[", mtime=0) + _BLOCK * 5 + gzip.compress(b"[]]"), "16000000 values"),
    "zstd": (lambda: zstd(b"prompt,response\n" + b'"' + b"a" * (200 << 20)), "a line of 33554432 bytes|field larger"),
    "parquet": (lying_parquet, "a text of more than 800000 bytes"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_much_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    make, said = BOMBS[name]
    (tmp_path / "bomb").write_bytes(make())
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "bomb")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=100)
    peak, message = done.stdout.split(" ", 1)
    assert any(part in message for part in said.split("|")), message
    assert int(peak) < 320 << 10


_READ_SPOILED = """
import sys
from tests.fuzz_readers import *
read_rows(Path(sys.argv[1]), spoiled(READERS["parquet"], int(sys.argv[2])))
"""


@pytest.mark.parametrize("number", ABORTS_PYARROW)
def test_metadata_that_ends_the_process_of_pyarrow_is_not_asked_for(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-c", _READ_SPOILED, str(tmp_path), str(number)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=100)
    assert done.returncode >= 0 and "terminate called" not in done.stderr


def test_hostile_drops_are_quarantined_by_the_real_workers_and_the_service_goes_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    inbox = desk.home / "inbox"
    (inbox / "good.jsonl").write_bytes(lines(rows()))
    hostile = {
        b"nested.json": b"[" * 1_000_000,
        b"lying.parquet": lying_parquet(),
        b"a\x1b[31m\n\xff.jsonl": json.dumps({"prompt": "zorb"}).encode(),
        b"values.gz": BOMBS["values"][0](),
    }
    for name, data in hostile.items():
        Path(bytes(inbox).decode(), name.decode("utf-8", "surrogateescape")).write_bytes(data)
    assert desk.service().run() == exitcodes.DEGRADED
    states = sorted(row.state for row in desk.batches().values())
    assert states == ["published", *["quarantined"] * len(hostile)]
    audit = (desk.home / "store" / "audit.jsonl").read_text()
    assert all(char.isprintable() or char == "\n" for char in audit) and "worker" not in audit


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not there for this platform")
def test_by_coverage_it_reaches_code_that_no_valid_file_does() -> None:
    tally = guided("csv", 6)
    first, last = tally.num_edges
    assert tally.broken == {} and tally.outcomes.total() > 100
    assert 0 < first < last
