"""A parquet that nobody has looked at yet, read a few rows at a time: what its columns unpack to is
bounded before they are read."""

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

SLACK, RATIO = 2**26, 20  # bytes that a column may unpack to, and how many more for each of its own
VALUES = 1000  # that a row may have in a column that lists; more are nulls that cost no bytes
MOST = 2**29  # bytes that a batch may repeat out of a column's dictionary


class Oversized(OSError):
    """A column holds more than its bytes can honestly."""


def read_batches(file: pq.ParquetFile, names: Sequence[str], rows: int) -> Iterator[list[dict]]:
    """The rows of columns `names` as dicts, at most `rows` at a time, fewer where a value may be
    repeated at no cost. Oversized, before any is read, if they unpack to too much."""
    largest = max((_check(group, names) for group in _groups(file)), default=0)
    fewer = max(1, min(rows, MOST // max(largest, 1)))
    for batch in file.iter_batches(fewer, columns=list(names), use_threads=False):
        yield batch.to_pylist()


def _groups(file: pq.ParquetFile) -> Iterator[pq.RowGroupMetaData]:
    return (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))


def _check(group: pq.RowGroupMetaData, names: Sequence[str]) -> int:
    """Bytes of the group's largest column that has a dictionary."""
    largest = 0
    for column in map(group.column, range(group.num_columns)):
        name = column.path_in_schema.partition(".")[0]
        if name not in names:
            continue
        packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
        if not 0 <= unpacked <= SLACK + RATIO * packed:
            raise Oversized(0, f"column {name!r}: {packed} bytes unpack to {unpacked}")
        if column.num_values > SLACK // VALUES + VALUES * group.num_rows:
            raise Oversized(0, f"column {name!r}: {column.num_values} values in {group.num_rows} rows")
        if column.has_dictionary_page:
            largest = max(largest, unpacked)
    return largest
