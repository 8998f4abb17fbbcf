"""What Polars reaches only through PyArrow. PyArrow ships no types, so the strict checks of this package end here."""
# pyright: basic

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq


def mapped_frame(path: Path) -> pl.DataFrame:
    """An Arrow file as a frame over its memory map, shared by all processes of a host."""
    with pa.memory_map(str(path)) as file:
        table = pl.from_arrow(pa.ipc.open_file(file).read_all())
    assert isinstance(table, pl.DataFrame)
    return table


def list_series(flat: np.ndarray, offsets: np.ndarray) -> pl.Series:
    """The slices `flat[offsets[i]:offsets[i + 1]]` as a List series, without a copy."""
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat)))
    assert isinstance(series, pl.Series)
    return series


class Writer:
    """A Parquet file that is written in row groups, one table after the other."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Writer":
        return self

    def write(self, table: pl.DataFrame) -> None:
        """Append a table; the first decides the columns."""
        arrow = table.to_arrow()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, arrow.schema, compression="zstd")
        self._writer.write_table(arrow.cast(self._writer.schema))
        self.rows += table.height

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()
