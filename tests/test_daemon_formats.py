"""Every format is read by content, and every bad file is refused with its name and row and without its text."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from daemon import formats
from daemon.formats import MOST_TOLD, BatchError, Limits, Message, Row, read_batch
from daemon.lines import Records

PAIRS = [("zorb one ?", "vek lum"), ('zorb, "two"\nand on ?', "flim\tgrot"), ("zörb ≠ 三 ?", "plax ünd vek")]
RECORDS = [{"prompt": prompt, "response": response} for prompt, response in PAIRS]


def as_csv(delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([("prompt", "response"), *PAIRS])
    return text.getvalue().encode()


def as_parquet(records: list[dict[str, Any]] | None = None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records or RECORDS), sink)
    return bytes(sink.getvalue().to_pybytes())


def as_json_lines(records: list[dict[str, Any]] | None = None) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records or RECORDS).encode()


def zstd(data: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def packed(data: bytes, packing: str) -> bytes:
    return {"gzip": gzip.compress, "zstd": zstd}[packing](data) if packing else data


BOM = b"\xef\xbb\xbf"
FORMATS = {
    "json lines": (as_json_lines(), "json lines", (1, 2, 3)),
    "json lines, blank lines and bom": (BOM + b"\n" + as_json_lines().replace(b"\n", b"\r\n\r\n"), "json lines", (2, 4, 6)),
    "json lines, no last newline": (as_json_lines()[:-1], "json lines", (1, 2, 3)),
    "json": (json.dumps(RECORDS, ensure_ascii=False).encode(), "json", (1, 2, 3)),
    "json, pretty": (BOM + json.dumps(RECORDS, indent=2).encode(), "json", (1, 2, 3)),
    "json, wrapped": (json.dumps({"made": "by hand", "rows": RECORDS}).encode(), "json", (1, 2, 3)),
    "json, wrapped and pretty": (json.dumps({"rows": RECORDS}, indent=1).encode(), "json", (1, 2, 3)),
    "json, wrapped, one object a line": (
        b'{"rows": [\n' + as_json_lines()[:-1].replace(b"\n", b",\n") + b"]}", "json", (1, 2, 3)),
    "csv": (as_csv(), "csv", (2, 3, 4)),
    "csv with bom and blank lines": (BOM + as_csv().replace(b"\r\n", b"\r\n\r\n"), "csv", (3, 5, 7)),
    "csv, semicolons": (as_csv(";"), "csv", (2, 3, 4)),
    "tsv": (as_csv("\t"), "tsv", (2, 3, 4)),
    "parquet": (as_parquet(), "parquet", (1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("packing", ["", "gzip", "zstd"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_and_packing_gives_the_same_rows_whatever_the_name(
    tmp_path: Path, form: str, packing: str
) -> None:
    data, name, places = FORMATS[form]
    path = tmp_path / "drop.odd"
    path.write_bytes(packed(data, packing))
    batch = read_batch(path)
    assert [(row.messages, row.response) for row in batch.rows] == [((Message("user", p),), r) for p, r in PAIRS]
    assert tuple(row.row for row in batch.rows) == places
    report = batch.files[0]
    assert (report.name, report.format, report.compression) == ("drop.odd", name, packing)
    assert (report.signature, report.num_records, report.num_rows) == ("plain", 3, 3)


def test_a_single_chat_object_is_one_row_and_not_a_list_of_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "zorb"}, {"role": "assistant", "content": "vek"}]
    (tmp_path / "one").write_text(json.dumps({"messages": turns}))
    assert read_batch(tmp_path / "one").rows == [Row((Message("user", "zorb"),), "vek", None, "one", 1)]


def test_nested_parquet_columns_are_read(tmp_path: Path) -> None:
    marked = {"prompt": "zorb", "response": "vek", "category": {"flim": False, "grot": True}}
    (tmp_path / "b").write_bytes(as_parquet([marked | {"is_safe": False}, marked | {"is_safe": True}]))
    batch = read_batch(tmp_path / "b")
    assert [row.category for row in batch.rows] == ["grot"]
    assert batch.dropped == {"marked_safe": 1}
    assert batch.num_records == 2


def test_a_dictionary_packed_parquet_column_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    responses = pa.array(["vek", "vek", "lum"]).dictionary_encode()
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "response": responses}), tmp_path / "d")
    assert [row.response for row in read_batch(tmp_path / "d").rows] == ["vek", "vek", "lum"]


def test_the_rest_of_the_columns_is_named_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("prompt,response,note,what a zorb does to a vek\nzorb,vek,,\n")
    ignored = read_batch(tmp_path / "a").files[0].ignored_columns
    assert ignored == "note and 1 not shown because they do not look like names"


def test_a_folder_is_one_batch_in_the_order_of_names_and_skips_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.csv").write_bytes(as_csv())
    (tmp_path / "a.parquet").write_bytes(as_parquet())
    (tmp_path / "b.jsonl").write_bytes(as_json_lines([{"goal": "zorb", "target": "vek"}]))
    skipped = ["README.md", "LICENSE", ".hidden", "x.part", "manifest.json", "reason.json", "a.done", "b.ready"]
    for name in skipped:
        (tmp_path / name).write_text("no data")
    batch = read_batch(tmp_path)
    assert [file.name for file in batch.files] == ["a.parquet", "b.jsonl", "sub/c.csv"]
    assert [row.source for row in batch.rows] == ["a.parquet"] * 3 + ["b.jsonl"] + ["sub/c.csv"] * 3
    assert len(batch.warnings) == 1
    assert batch.warnings[0].startswith("b.jsonl: ")


def test_a_data_file_that_is_dropped_alone_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(as_json_lines())
    assert len(read_batch(tmp_path / "README.md").rows) == 3


GOOD = as_json_lines()
SURROGATE = b'{"prompt": "zorb", "response": "vek \\ud800 lum"}\n'
BAD = {
    "empty file": (b"", None, "empty"),
    "blank file": (b" \n\n ", None, "empty"),
    "header only": (b"prompt,response\n", None, "no rows"),
    "empty list": (b"[]", None, "no rows"),
    "empty object": (b"{}", None, "no rows"),
    "latin-1 json lines": (GOOD + b'{"prompt": "z\xf6rb", "response": "vek"}\n', 4, f"not UTF-8 at byte {len(GOOD) + 13} "),
    "latin-1 csv": (b"prompt,response\nzorb,vek\nz\xf6rb,vek\n", 3, "not UTF-8 at byte 26 "),
    "latin-1 json": (b'[{"prompt": "z\xf6rb", "response": "vek"}]', None, "not UTF-8 at byte 14 "),
    "latin-1 csv behind a line break": (b'prompt,response\nzorb,"vek\n\n"\nz\xf6rb,vek\n', 3, "not UTF-8 at byte 30 "),
    "latin-1 header": (b"prompt,r\xf6sponse\nzorb,vek\n", 1, "not UTF-8 at byte 8 "),
    "nul in csv": (b"prompt,response\nzorb,vek\n" + b"zorb " * 20 + b",vek\0\n", 3, "NUL"),
    "one endless line of text": (b"zorb " * 40_000, 1, "field larger"),
    "utf-16 without a mark": ("prompt,response\n".encode("utf-16-le"), None, "binary"),
    "utf-16": ("prompt,response\n".encode("utf-16"), None, "UTF-16"),
    "truncated json": (json.dumps(RECORDS, indent=1).encode()[:-20], None, "ends too early at line 12"),
    "truncated json on one line": (json.dumps(RECORDS).encode()[:-20], None, "ends too early at line 1"),
    "truncated json lines": (GOOD[:-12], 3, "ends too early"),
    "truncated first of many lines": (b'{"prompt": "zorb", "resp\n' + GOOD, 1, "ends too early"),
    "truncated last line with its end": (GOOD + b'{"prompt": "zorb", "response":\n', 4, "ends too early"),
    "truncated line in the middle": (GOOD + b'{"prompt": "zorb", "response":\n' + GOOD, 4, "not valid JSON|ends too early"),
    "truncated only line": (b'{"prompt": "zorb", "resp', None, "ends too early at line 1"),
    "two objects in a line": (GOOD + GOOD.replace(b"\n", b" "), 4, "not valid JSON"),
    "a line that is no object": (GOOD + b'["zorb", "vek"]\n', 4, "not an object"),
    "an element that is no object": (b'[{"prompt": "zorb", "response": "vek"}, "lum"]', 2, "not an object"),
    "nan": (GOOD + b'{"prompt": "zorb", "response": NaN}\n', 4, "NaN"),
    "endless number": (GOOD + b'{"prompt": "zorb", "response": ' + b"9" * 5000 + b"}\n", 4, "out of every range"),
    "number out of range": (GOOD + b'{"prompt": "zorb", "response": 1e999}\n', 4, "out of every range"),
    "tsv with a quote inside a cell": (b'prompt\tresponse\n"zorb" vek\tlum\n', 2, "'\\t' expected after"),
    "parquet with a name that is no text": (as_parquet().replace(b"prompt", b"pr\xffmpt"), None, "Parquet that cannot be read"),
    "too many values": (b"[" + b"[]," * 8_100_000 + b"[]]", None, "more than 16000000 values"),
    "too deep": (b"[" * 200_000, None, "nested too deeply"),
    "lone surrogate": (GOOD + SURROGATE, 4, "lone surrogate"),
    "lone surrogate in json": (b"[\n" + SURROGATE + b"]", None, "lone surrogate at line 2"),
    "nul in text": (GOOD + b'{"prompt": "zorb", "response": "vek \\u0000 lum"}\n', 4, "NUL"),
    "nul in the prompt": (GOOD + b'{"prompt": "zorb \\u0000", "response": "vek"}\n', 4, "NUL"),
    "missing key": (GOOD + b'{"prompt": "zorb"}\n', 4, "`response` is missing"),
    "null cell": (GOOD + b'{"prompt": null, "response": "vek"}\n', 4, "`prompt` is missing or null"),
    "number for text": (GOOD + b'{"prompt": "zorb", "response": 3}\n', 4, "not text"),
    "null in parquet": (as_parquet([*RECORDS, {"prompt": "zorb", "response": None}]), 4, "missing or null"),
    "csv without known columns": (b"flim,grot\nzorb,vek\n", None, "no known data set has these columns: flim, grot"),
    "csv without a header": (b"how to zorb a vek,first lum it\nzorb,vek\n", None, "does not look like a line of column names"),
    "csv with one odd column": (b"flim,how to grot it\nzorb,vek\n", None, "these columns: flim and 1 not shown"),
    "csv with a short row": (b"prompt,response\nzorb,vek\nzorb\n", 3, "1 cells where the header has 2"),
    "csv with a long row": (b"prompt,response\nzorb,vek,lum\n", 2, "3 cells where the header has 2"),
    "csv that ends in a quote": (b'prompt,response\nzorb,vek\nzorb,"vek\nlum\n', 3, "not valid CSV"),
    "csv with a column twice": (b"prompt,response,Prompt\nzorb,vek,lum\n", None, "twice"),
    "notes": (b"zorb the vek and then lum it\n", None, "neither JSON nor a table: line 1"),
    "notes with a title": (b"\n# zorb, and more\n\nlum\n", None, "neither JSON nor a table: line 2"),
    "json lines cut at the start": (GOOD[5:], None, "not valid JSON: line 1 begins with neither"),
    "json below a comment": (b"// zorb\n" + GOOD, None, "not valid JSON: line 1 begins with neither"),
    "json without braces": (b'"prompt": "zorb", "response": "vek"\n', None, "not valid JSON: line 1"),
    "json texts": (b'"zorb"\n"vek"\n', None, "not valid JSON: line 1"),
    "json null": (b"null\n", None, "not valid JSON: line 1"),
    "zip": (b"PK\x03\x04\x00\x00zorb", None, "binary"),
    "damaged parquet": (as_parquet()[:-30], None, "Parquet that cannot be read"),
    "cut gzip": (gzip.compress(GOOD * 9)[:-20], None, "cannot be read to its end"),
    "cut zstd": (zstd(GOOD * 9)[:-20], None, "cannot be read to its end"),
    "gzip in gzip": (gzip.compress(gzip.compress(GOOD)), None, "compressed twice"),
    "prompt-only set": (b"prompt,category\nzorb,vek\n", None, "OR-Bench"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_refused_with_its_name_and_row_and_without_its_text(tmp_path: Path, fault: str) -> None:
    data, row, what = BAD[fault]
    (tmp_path / "bad.file").write_bytes(data)
    with pytest.raises(BatchError) as refused:
        read_batch(tmp_path / "bad.file")
    assert (refused.value.file, refused.value.row) == ("bad.file", row)
    assert any(part in refused.value.what for part in what.split("|"))
    assert not re.search(r"\b(zorb|vek|lum)\b", str(refused.value))
    assert refused.value.__cause__ is None


BAD_ROW = {"prompt": "zorb", "response": None}
GOOD_ROW = {"prompt": "zorb", "response": "vek"}
NO_RESPONSE = "`response` is missing or null"
NUL_ROW = {"prompt": "a\0b", "response": "vek"}
LATER: dict[str, tuple[list[dict[str, Any]], str]] = {
    "none": ([BAD_ROW, GOOD_ROW], NO_RESPONSE),
    "one": ([BAD_ROW, GOOD_ROW, BAD_ROW], f"{NO_RESPONSE} (in row 3 too)"),
    "some": ([BAD_ROW, BAD_ROW, GOOD_ROW, BAD_ROW], f"{NO_RESPONSE} (in rows 2, 4 too)"),
    "another fault": ([BAD_ROW, NUL_ROW, NUL_ROW], f"{NO_RESPONSE}; rows 2, 3: text with a NUL character"),
    "as many as are told": (
        [BAD_ROW] * (MOST_TOLD + 1),
        f"{NO_RESPONSE} (in rows {', '.join(map(str, range(2, MOST_TOLD + 2)))} too)",
    ),
    "more than are told": (
        [BAD_ROW] * (MOST_TOLD + 2),
        f"{NO_RESPONSE} (in rows {', '.join(map(str, range(2, MOST_TOLD + 2)))} too); and more",
    ),
}


@pytest.mark.parametrize("case", LATER)
@pytest.mark.parametrize("write", [as_json_lines, as_parquet])
def test_of_all_rows_that_cannot_be_used_the_places_are_told_at_once(
    tmp_path: Path, case: str, write: Callable[[list[dict[str, Any]]], bytes]
) -> None:
    rows, what = LATER[case]
    (tmp_path / "bad").write_bytes(write(rows))
    with pytest.raises(BatchError) as refused:
        read_batch(tmp_path / "bad")
    assert (refused.value.row, refused.value.what) == (1, what)


def test_what_ends_the_reading_after_a_bad_row_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(as_json_lines([BAD_ROW, BAD_ROW, GOOD_ROW, BAD_ROW]).replace(b"vek", b"v\xff"))
    with pytest.raises(BatchError) as refused:
        read_batch(tmp_path / "bad.jsonl")
    assert refused.value.row == 1
    assert re.fullmatch(
        rf"{NO_RESPONSE} \(in row 2 too\); row 3: not UTF-8 at byte \d+ of the file", refused.value.what
    )


def test_no_row_beyond_the_limit_is_looked_at_for_faults(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(as_json_lines([BAD_ROW, GOOD_ROW, BAD_ROW, BAD_ROW]))
    with pytest.raises(BatchError, match=r"\(in row 3 too\); give every row"):
        read_batch(tmp_path / "bad.jsonl", Limits(max_rows=3))


def test_a_disk_that_fails_after_a_bad_row_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(records: Records, *rest: object) -> Records:
        yield from islice(records, 1)
        raise OSError(errno.EIO, "the disk fails")

    (tmp_path / "bad.jsonl").write_bytes(as_json_lines([BAD_ROW, BAD_ROW, BAD_ROW]))
    monkeypatch.setattr(formats, "islice", failing)
    with pytest.raises(BatchError, match=r"row 1: `response` is missing or null \(in row 2 too\); give"):
        read_batch(tmp_path / "bad.jsonl")


def test_one_bad_file_refuses_the_whole_folder_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(GOOD[:-12])
    with pytest.raises(BatchError, match=r"^b\.jsonl, row 3: "):
        read_batch(tmp_path)


@pytest.mark.parametrize("inside", [True, False])
def test_a_symbolic_link_is_refused_and_not_followed(tmp_path: Path, inside: bool) -> None:
    (tmp_path / "real").write_bytes(GOOD)
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "link.jsonl").symlink_to(tmp_path / "real")
    with pytest.raises(BatchError, match=r"^link\.jsonl: a symbolic link"):
        read_batch(folder if inside else folder / "link.jsonl")


@pytest.mark.parametrize("place", ["", "sub"])
def test_a_linked_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(GOOD)
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "sub").symlink_to(tmp_path / "real")
    with pytest.raises(BatchError, match="sub: a symbolic link"):
        read_batch(tmp_path / "drop" / "sub" if place else tmp_path / "drop")


def test_a_pipe_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BatchError, match="not a regular file"):
        read_batch(tmp_path)


@pytest.mark.parametrize("name", ["rows.json", "rows.JSONL", "rows.ndjson.gz"])
def test_text_in_a_file_that_is_json_by_its_name_is_said_to_be_bad_json(tmp_path: Path, name: str) -> None:
    text = b"flim,grot\nzorb,vek\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    with pytest.raises(BatchError, match="not valid JSON: line 1 begins with neither"):
        read_batch(tmp_path)


def test_a_folder_without_data_is_refused_with_the_names_that_are_passed_over(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="the folder holds no data file"):
        read_batch(tmp_path)
    (tmp_path / "README.md").write_text("nothing else")
    with pytest.raises(BatchError, match=r"^README\.md: no data file: a name like this is a note's"):
        read_batch(tmp_path)
    for name in ("LICENSE", "notice.txt", "x.done"):
        (tmp_path / name).write_text("nothing else")
    with pytest.raises(BatchError, match=r"^LICENSE, README\.md, notice\.txt, …: no data file"):
        read_batch(tmp_path)


def test_a_path_that_is_gone_is_an_error_of_the_system_and_not_of_the_batch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_batch(tmp_path / "gone")


def test_a_file_name_that_would_break_a_log_line_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\n\x1b[31m").write_bytes(b"")
    with pytest.raises(BatchError) as refused:
        read_batch(tmp_path)
    assert refused.value.file == "a\\n\\x1b[31m"


MANY = as_json_lines(RECORDS * 40)
LONG = as_json_lines([{"prompt": "zorb", "response": "v" * 500}])


@pytest.mark.parametrize(
    ("data", "limits", "what"),
    [
        (MANY, Limits(max_rows=119), "more than 119 rows"),
        (as_parquet(RECORDS * 40), Limits(max_rows=119), "more than 119 rows"),
        (MANY, Limits(max_bytes=1000), "more than 1000 bytes once unpacked"),
        (gzip.compress(MANY), Limits(max_bytes=1000), "more than 1000 bytes once unpacked"),
        (zstd(MANY), Limits(max_bytes=1000), "more than 1000 bytes once unpacked"),
        (as_parquet(RECORDS * 999), Limits(max_bytes=20_000), "more than 20000 bytes once unpacked"),
        (json.dumps(RECORDS).encode(), Limits(max_document_bytes=60), "a document of more than 60 bytes"),
        (LONG, Limits(max_cell_chars=499), "a text of 500 characters"),
        (b"prompt,response\nzorb," + b"v" * 500, Limits(max_cell_chars=499), "field larger than field limit"),
    ],
)
def test_a_batch_beyond_a_limit_is_refused(tmp_path: Path, data: bytes, limits: Limits, what: str) -> None:
    (tmp_path / "big").write_bytes(data)
    with pytest.raises(BatchError, match=what):
        read_batch(tmp_path / "big", limits)


def test_rows_are_counted_over_all_files_of_a_folder(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(MANY)
    assert len(read_batch(tmp_path, Limits(max_rows=240)).rows) == 240
    with pytest.raises(BatchError, match=r"^b: .*more than 239 rows"):
        read_batch(tmp_path, Limits(max_rows=239))
    with pytest.raises(BatchError, match="more than 1 files"):
        read_batch(tmp_path, Limits(max_files=1))


def test_a_bomb_is_stopped_while_it_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(gzip.compress(b" " * (64 << 20)))
    with pytest.raises(BatchError, match="once unpacked"):
        read_batch(tmp_path / "bomb", Limits(max_bytes=3 << 20))


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_parquet_bomb_in_a_dictionary_is_refused_before_it_is_unpacked(tmp_path: Path, is_nested: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    giants = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["v" * (4 << 20)]))
    table = pa.table({"prompt": giants, "response": ["vek lum"] * 2000})
    if is_nested:
        turns = pa.StructArray.from_arrays([pa.array(["user"] * 2000), giants], ["role", "content"])
        table = pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, 1000, 2000], pa.int32()), turns)})
    pq.write_table(table, tmp_path / "bomb", compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30)
    before = pa.total_allocated_bytes()
    with pytest.raises(BatchError, match="a text of more than 800000 bytes"):
        read_batch(tmp_path / "bomb")
    assert pa.default_memory_pool().max_memory() - before < 256 << 20


def test_a_hundred_thousand_rows_are_read(tmp_path: Path) -> None:
    rows = "".join(f'{{"prompt": "zorb {i} ?", "response": "vek {i}"}}\n' for i in range(100_000))
    (tmp_path / "many").write_text(rows)
    batch = read_batch(tmp_path / "many")
    assert (len(batch.rows), batch.rows[-1].row) == (100_000, 100_000)


def test_the_limit_of_the_csv_module_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "a").write_bytes(as_csv())
    read_batch(tmp_path / "a", Limits(max_cell_chars=50))
    assert csv.field_size_limit() == before


def test_reading_json_lines_imports_neither_pyarrow_nor_torch(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(GOOD))
    code = (
        "import sys; from pathlib import Path; from daemon.formats import read_batch; "
        "read_batch(Path(sys.argv[1])); print(sorted({'pyarrow', 'torch', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["timestamp", "time zone", "decimal"])
def test_a_parquet_column_of_values_that_python_lacks_is_refused(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    odd = {
        "timestamp": pa.array([2**62], pa.timestamp("us")),
        "time zone": pa.array([0], pa.timestamp("us", tz="Zorb/Vek")),
        "decimal": pa.array([1], pa.decimal128(38, 0)),
    }[kind]
    pq.write_table(pa.table({"prompt": odd, "response": ["vek"]}), tmp_path / "odd")
    with pytest.raises(BatchError, match="odd, row 1: "):
        read_batch(tmp_path / "odd")
