"""What Polars reaches only through PyArrow. PyArrow ships no types, so the strict checks of this package end here."""
# pyright: basic

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa


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
