"""The records of Parquet files, a few at a time and only of the columns that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daemon.batch_files import Budget, Limits, Member
from daemon.lines import Records, Table
from daemon.rows import BatchError

_PARQUET_ROWS = 1024  # unpacked at a time
_MAX_CHAR_BYTES = 4
_FAULTS = (OSError, ValueError, ArithmeticError, LookupError)
"""Beside Arrow's own: names that are not UTF-8, and times that Python has no value or no zone for."""


def parquet_table(member: Member, whole: bytes | None, limits: Limits, budget: Budget) -> Table:
    import pyarrow as pa  # half a second that only zstd and Parquet should cost
    import pyarrow.parquet as pq

    source = member.raw if whole is None else pa.BufferReader(whole)
    try:
        file = pq.ParquetFile(source)
        names = tuple(file.schema_arrow.names)
    except (pa.ArrowException, *_FAULTS) as err:
        raise _parquet_fault(err, member.name, None) from None

    def records(wanted: frozenset[str]) -> Records:
        _refuse_giants(
            source, file.metadata, member.name, _columns(file, wanted), _MAX_CHAR_BYTES * limits.max_cell_chars
        )
        yield from _parquet_records(file, wanted, member.name, budget)

    return Table("parquet", names, records)


def _refuse_giants(source: Any, metadata: Any, name: str, columns: list[str], most_bytes: int) -> None:
    """Refuse a dictionary with a value that no cell may have, whatever the file says about its sizes.

    Read as it is packed, a dictionary is there once; unpacked, once for each row that points at it. What the metadata of
    a column says is not asked: it may lie, and pyarrow ends the process on some that is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    leaves = [metadata.schema.column(place).path for place in range(len(metadata.schema))]
    try:
        file = pq.ParquetFile(source, metadata=metadata, read_dictionary=leaves)
        for group in range(metadata.num_row_groups):
            for column in next(file.iter_batches(1, row_groups=[group], columns=columns), pa.table({})).columns:
                for values in _dictionaries(column):
                    if (pc.max(pc.binary_length(values)).as_py() or 0) > most_bytes:
                        what = f"a Parquet column with a text of more than {most_bytes} bytes"
                        raise BatchError(name, None, what, hint="shorten it or leave the row out")
    except (pa.ArrowException, *_FAULTS) as err:
        raise _parquet_fault(err, name, None) from None


def _dictionaries(column: Any) -> Iterator[Any]:
    """The texts of every dictionary in a column, however deep it lies."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        if pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type):
            yield column.dictionary
    elif pa.types.is_struct(kind):
        for child in column.flatten():
            yield from _dictionaries(child)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _dictionaries(column.values)


def _columns(file: Any, wanted: frozenset[str]) -> list[str]:
    return [column for column in file.schema_arrow.names if column.strip().lower() in wanted]


def _parquet_records(file: Any, wanted: frozenset[str], name: str, budget: Budget) -> Records:
    import pyarrow as pa

    columns = _columns(file, wanted)
    names = [column.strip().lower() for column in columns]
    row = 0
    try:
        for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
            budget.spend(name, num_bytes=batch.nbytes)
            batch.validate(full=True)
            start = row + 1
            for row, cells in enumerate(zip(*map(_values, batch.columns), strict=True), start):
                yield row, dict(zip(names, cells, strict=True))
    except (pa.ArrowException, *_FAULTS) as err:
        raise _parquet_fault(err, name, row + 1) from None


def _values(column: Any) -> list[Any]:
    """The cells as Python values; text by way of numpy, which is several times faster."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    cells = column.to_numpy(zero_copy_only=False) if is_text else column
    return list(cells.tolist())


def _parquet_fault(err: Exception, name: str, row: int | None) -> Exception:
    if isinstance(err, OSError) and err.errno is not None:
        return err  # the disk, not the file: try again later
    what = "Parquet that cannot be read" if row is None else "Parquet that cannot be read from here on"
    return BatchError(name, row, f"{what} ({type(err).__name__})", hint="cut short, damaged, or text not in UTF-8")
