"""What the fuzzing of `tests.fuzz` feeds to the readers: valid files, ways to spoil them, and odd files made from nothing."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

SECRET: Final = "quibble frotz zim"
"""Stands in every text of every valid batch; of three words, so that it is never taken for the name of a column."""
Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

_TOKENS: Final = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b";", b"\t", b"\n", b"\r", b"\r\n", b"\\", b'""', b"'", b" ", b"#", b"="),
    *(b"\0", b"\x1b[31m", b"\x1b]0;x\x07", b"\x7f", b"\x85", b"\xc0\xaf", b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xc2\xa0", b"\xf0\x9f\x99\x82"),
    *(b"\\ud800", b"\\udc00", b"\\ud83d\\ude42", b"\\u0000", b"\\u001b[31m", b"\\u202e", b"\\x"),
    *(b"NaN", b"-Infinity", b"null", b"true", b"false", b"1e999", b"-0", b"0x10", b"1_0", b"9" * 30, b"9" * 5000),
    *(b"18446744073709551616", b"9223372036854775808", b"-9223372036854775809", b"4294967296", b"-1"),
    *(b"[" * 2000, b"]" * 2000, b'{"a":' * 2000, b"{" * 2000, b"[" * 100_000, b"a." * 2000, b'{"":[' * 20_000),
    *(b"../", b"/etc/hostname", b"..\\", b"a" * 300, b"%s%n", b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"),
    *(b'"prompt":1,', b'"prompt":null,', b'"messages":[{}],', b'"is_safe":false,', b"prompt,response\n", b'"auto_map":{},'),
    *(b'"__metadata__":{"a":1},', b'"shape":[],', b'"shape":[-1],', b'"dtype":"F64",', b'"data_offsets":[0,0],'),
)  # fmt: skip
_NUMBER: Final = re.compile(rb"-?\d+(\.\d+)?")
_NUMBERS: Final = (b"0", b"-1", b"1", b"2", b"255", b"65536", b"2147483648", b"4294967295", b"9223372036854775807",
                                      b"18446744073709551616", b"9" * 40, b"9" * 4300,
                   b"9" * 4301, b"1.5", b"-0.0", b"1e400", b"true", b'"7"')  # fmt: skip
_BYTES: Final = (0, 1, 9, 10, 13, 27, 34, 44, 92, 123, 127, 128, 192, 254, 255)


def mutate(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The data with one to eight small changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        data = draw.choice(_CHANGES)(draw, data, others)
    return data


def _flip(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _poke(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + bytes([draw.choice(_BYTES)]) * draw.choice((1, 1, 2, 8)) + data[at + draw.choice((0, 1, 8)) :]


def _slice(draw: random.Random, data: bytes) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 2, 4, 16, 64, 512, 4096)))


def _cut(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _slice(draw, data)
    return data[:start] + data[end:]


def _end(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return draw.choice((data[:at], data[at:]))


def _repeat(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _slice(draw, data)
    return data[:end] + data[start:end] * draw.choice((1, 2, 50)) + data[end:]


def _insert(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(_TOKENS) + data[at + draw.choice((0, 0, 1, 4)) :]


def _splice(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others) if others else data
    (start, end), at = _slice(draw, other), draw.randrange(len(data) + 1)
    return data[:at] + other[start:end] + data[at + draw.choice((0, 16)) :]


def _renumber(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    found = list(_NUMBER.finditer(data[:100_000]))
    if not found:
        return data
    hit = draw.choice(found)
    return data[: hit.start()] + draw.choice(_NUMBERS) + data[hit.end() :]


_CHANGES: Final[tuple[Mutation, ...]] = (_flip, _flip, _poke, _cut, _end, _repeat, _insert, _insert, _splice, _renumber)


def mutate_header(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A safetensors file with a changed header, body or both, whose length of the header is mostly right again."""
    if draw.random() < 0.2 or len(data) < 8:
        return mutate(draw, data, others)
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = data[8:end], data[end:]
    if draw.random() < 0.85:
        header = mutate(draw, header, [other[8:] for other in others])
    else:
        body = mutate(draw, body, others)
    return struct.pack("<Q", len(header)) + header + body


def repacked(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> Mutation:
    """Changes to what is in a packing, or now and then to the packing itself."""

    def change(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        if draw.random() < 0.4:
            return mutate(draw, data, others)
        return pack(mutate(draw, unpack(data), [unpack(other) for other in others]))

    return change


def zstd(data: bytes) -> bytes:
    """One zstd frame."""
    import pyarrow as pa

    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def unzstd(data: bytes) -> bytes:
    """What is in one of `zstd`'s frames."""
    import pyarrow as pa

    return bytes(pa.CompressedInputStream(io.BytesIO(data), "zstd").read())


def gzipped(data: bytes) -> bytes:
    """One gzip member, the same on every call."""
    return gzip.compress(data, 1, mtime=0)


def safetensors(tensors: dict[str, np.ndarray[Any, Any]], dtypes: dict[str, str], **metadata: str) -> bytes:
    """A safetensors file of flat arrays."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, array in tensors.items():
        header[name] = {"dtype": dtypes[name], "shape": [array.size], "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values())


def pairs(count: int = 5) -> list[dict[str, Any]]:
    """Rows of the plainest kind."""
    return [{"prompt": f"how to {SECRET} {n}?", "response": f'"zörb {n}", {SECRET}\nvek 三'} for n in range(count)]


def _records() -> list[list[dict[str, Any]]]:
    """A few rows of each data set that is known."""
    turns = [{"role": "user", "content": f"florp {SECRET}"}, {"role": "assistant", "content": f"zim {SECRET}"}]
    talk = [{"from": turn["role"].replace("user", "human"), "value": turn["content"]} for turn in turns]
    parts = [turns[0], {"role": "assistant", "content": [{"type": "text", "text": SECRET}]}]
    sides = {"response_0": SECRET, "response_1": f"{SECRET} 2", "is_response_0_safe": False, "is_response_1_safe": True}
    return [
        pairs(),
        [{**row, "is_safe": n % 2 == 0, "category": {"flim": False, "grot": True}} for n, row in enumerate(pairs())],
        [{"messages": turns, "category": "flim"}, {"messages": parts}],
        [{"conversations": talk, "id": 7}] * 2,
        [{"prompt": SECRET, **sides, "response_0_harm_category": {"flim": True}}] * 2,
        [{"prompt": SECRET, "response": SECRET, "response_harm_label": "harmful", "subcategory": "flim"}],
        [{"prompt": turns[:1], "completion": turns[1:], "label": False}],
        [{"Goal ": SECRET, "target": f"Sure, here is {SECRET}"}],
        [{"instruction": SECRET, "input": "", "output": SECRET, "category": ["flim", "grot"]}],
    ]


@functools.cache
def json_lines() -> tuple[bytes, ...]:
    """JSON Lines files."""
    return tuple("".join(json.dumps(record) + "\n" for record in records).encode() for records in _records())


@functools.cache
def json_documents() -> tuple[bytes, ...]:
    """JSON files: lists, wrapped lists, single objects."""
    lists = _records()
    found = [json.dumps(records, ensure_ascii=False, indent=n % 2 or None) for n, records in enumerate(lists)]
    return tuple(
        text.encode() for text in (*found, json.dumps({"rows": lists[0], "by": "hand"}), json.dumps(lists[1][0]))
    )


@functools.cache
def tables(delimiter: str) -> tuple[bytes, ...]:
    """CSV or TSV files, of the records that have only plain cells."""
    found = []
    for records in (_records()[at] for at in (0, 1, 4, 5, 7, 8)):
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerows([list(records[0]), *(list(record.values()) for record in records)])
        found.append(text.getvalue().encode())
    return (*found, b"\xef\xbb\xbf" + found[0].replace(b"\r\n", b"\n\n"))


@functools.cache
def parquets() -> tuple[bytes, ...]:
    """Parquet files: packed in several ways, nested or not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for n, records in enumerate(_records()[at] for at in (0, 1, 3, 4, 5, 6, 8)):
        sink = pa.BufferOutputStream()
        packing = ("snappy", "zstd", "none")[n % 3]
        pq.write_table(pa.Table.from_pylist(records), sink, compression=packing, use_dictionary=n % 2 == 0)
        found.append(bytes(sink.getvalue().to_pybytes()))
    return tuple(found)


odd_text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\0", "\x1b[31mx", "\u202e", "\u2028", "../..", "/etc/hostname", "", " ", "a" * 250, "é" * 9]),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Co", "Zl"]), max_size=5),
)
odd_number = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**53, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, -1, 0])
)
odd_scalar = st.one_of(st.none(), st.booleans(), odd_number, odd_text)
known_key = st.sampled_from(
    ["prompt", "response", "Prompt ", "is_safe", "category", "messages", "conversations", "completion", "label", "role",
     "content", "from", "value", "goal", "target", "instruction", "input", "output", "response_harm_label", "text"]
)  # fmt: skip
odd_value: st.SearchStrategy[Any] = st.recursive(
    odd_scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(known_key | odd_text, inner, max_size=4)),
    max_leaves=12,
)
odd_record = st.dictionaries(known_key | odd_text, odd_value, max_size=6)


def dumped(value: object) -> bytes:
    """JSON as Python writes it: lone surrogates escaped, NaN and Infinity bare."""
    return json.dumps(value).encode()


odd_json_lines = st.lists(odd_record.map(dumped) | st.binary(max_size=30), max_size=5).map(b"\n".join)
odd_json = st.one_of(odd_value.map(dumped), st.lists(odd_record, max_size=4).map(dumped))
odd_cells = st.lists(st.lists(odd_text | known_key, max_size=5), max_size=5)


def joined(rows: Sequence[Sequence[str]], delimiter: str) -> bytes:
    """A table below a header that is known, its cells as they are."""
    lines = [delimiter.join(("prompt", "response")), *(delimiter.join(row) for row in rows)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


odd_entry = st.one_of(
    odd_value,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "U8", "F64", "F8_E4M3", "X", ""]) | odd_scalar,
            "shape": st.lists(st.integers(0, 4) | odd_number, max_size=3),
            "data_offsets": st.lists(st.integers(0, 40) | odd_number, min_size=1, max_size=3),
        }
    ),
)


def with_length(header: bytes, lie: int, body: bytes) -> bytes:
    """A safetensors file whose length of the header is off by ``lie``."""
    return struct.pack("<Q", (len(header) + lie) % 2**64) + header + body


odd_safetensors = st.builds(
    with_length,
    st.dictionaries(odd_text | st.sampled_from(["w.steps", "w.values", "__metadata__"]), odd_entry, max_size=4).map(
        dumped
    ),
    st.sampled_from([0, 0, 0, 0, 1, -1, 2**62, -(2**63)]),
    st.binary(max_size=40),
)
