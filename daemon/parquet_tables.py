"""The records of Parquet files, a few at a time and only of the columns that are asked for."""

from __future__ import annotations

from typing import Any

from daemon.batch_files import Budget, Member
from daemon.lines import Records, Table
from daemon.rows import BatchError

_PARQUET_ROWS = 1024  # unpacked at a time
_MAX_PACKING = 200  # times; text in a dictionary, where no value repeats, packs 3 to 10 times
_UNSUSPICIOUS_BYTES = 1 << 20


def parquet_table(member: Member, whole: bytes | None, budget: Budget) -> Table:
    import pyarrow as pa  # half a second that only zstd and Parquet should cost
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(member.raw if whole is None else pa.BufferReader(whole))
    except (pa.ArrowException, OSError) as err:
        raise _parquet_fault(err, member.name, None) from None
    _refuse_bomb(file.metadata, member.name)
    names = tuple(file.schema_arrow.names)
    return Table("parquet", names, lambda wanted: _parquet_records(file, wanted, member.name, budget))


def _refuse_bomb(metadata: Any, name: str) -> None:
    """Refuse a huge packed dictionary value: each row that points at it would unpack it once more."""
    groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
    for chunk in (group.column(place) for group in groups for place in range(group.num_columns)):
        most = max(_UNSUSPICIOUS_BYTES, _MAX_PACKING * chunk.total_compressed_size)
        if chunk.has_dictionary_page and chunk.total_uncompressed_size > most:
            what = f"a Parquet column that is packed more than {_MAX_PACKING} times"
            raise BatchError(name, None, what, hint="write it without a dictionary, or as JSON Lines")


def _parquet_records(file: Any, wanted: frozenset[str], name: str, budget: Budget) -> Records:
    import pyarrow as pa

    columns = [column for column in file.schema_arrow.names if column.strip().lower() in wanted]
    names = [column.strip().lower() for column in columns]
    row = 0
    try:
        for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
            budget.spend(name, num_bytes=batch.nbytes)
            batch.validate(full=True)
            start = row + 1
            for row, cells in enumerate(zip(*map(_values, batch.columns), strict=True), start):
                yield row, dict(zip(names, cells, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
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
