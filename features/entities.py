"""People and items as the log brings them: each id gets the next code when it first appears, and keeps it for ever.

E entities.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import polars as pl

from features._hash import hash64
from features.counters import Axis, KeyIndex
from features.errors import InputError
from features.slices import gather_slices


def attribute_hashes(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the distinct values of each row of a column of values or lists, end to end, and where rows begin.

    uint64 [N], int64 [rows + 1]; a null has no values.
    """
    lists = column if column.dtype == pl.List else column.reshape((-1, 1)).arr.to_list()
    lists = lists.fill_null([]).list.drop_nulls().list.unique(maintain_order=True)
    edge = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy(), dtype=np.int64)])
    flat = lists.explode(empty_as_null=False)
    if flat.is_empty():
        return np.empty(0, dtype=np.uint64), edge
    distinct = flat.unique(maintain_order=True)
    place = flat.replace_strict(distinct, pl.Series(np.arange(len(distinct))), return_dtype=pl.Int64).to_numpy()
    return hash64(distinct)[place], edge


@dataclass
class Attribute:
    """A column of the entities' table that something is counted by: a value or a list of values each."""

    described: pl.Series
    """The column, row after row of the table."""
    values: KeyIndex = field(default_factory=KeyIndex)
    """Hashes of the distinct values, numbered."""
    single: bool = True
    """Whether each entity so far has exactly one value."""
    hash_C: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    code_N: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Codes of the values of each entity, entity after entity."""
    edge_E: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """int64 [E + 1]"""

    def extend(self, rows: np.ndarray) -> None:
        """Add the entities at these rows of the table; −1 for one that it does not describe."""
        given = self.described.to_frame("x").with_row_index("row").filter(pl.col("row").is_in(rows[rows >= 0]))
        hashes, edge = attribute_hashes(given["x"])
        distinct, place = np.unique(hashes, return_inverse=True)
        code = self.values.add(distinct)
        self.hash_C = np.empty(len(self.values), dtype=np.uint64)
        self.hash_C[self.values.numbers] = self.values.keys
        at = np.searchsorted(given["row"].to_numpy(), np.maximum(rows, 0))
        at = np.minimum(at, max(len(edge) - 2, 0))
        start = np.where(rows >= 0, edge[at], 0)
        end = np.where(rows >= 0, edge[np.minimum(at + 1, len(edge) - 1)], 0)
        chosen, offsets = gather_slices(code[place], start, end)
        self.single = self.single and bool((end - start == 1).all())
        self.code_N = np.concatenate([self.code_N, chosen])
        self.edge_E = np.concatenate([self.edge_E, self.edge_E[-1] + offsets[1:]])

    def axis(self, code_R: np.ndarray) -> Axis:
        """What rows of these entities are counted by."""
        if self.single:
            return Axis(self.code_N[code_R], None, self.hash_C)
        start, end = self.edge_E[code_R], self.edge_E[code_R + 1]
        chosen, _ = gather_slices(self.code_N, start, end)
        return Axis(chosen, end - start, self.hash_C)


@dataclass
class Entities:
    """The people or the items met so far, and what their table says of them."""

    name: str
    """`user` or `item`."""
    table: pl.DataFrame
    """One row for each id that the source describes; at least the column of ids."""
    attributes: dict[str, Attribute]
    ids: pl.Series
    """The id of each code."""
    index: KeyIndex = field(default_factory=KeyIndex)
    """Hashes of ids → codes."""
    hash_E: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    @classmethod
    def of(cls, name: str, table: pl.DataFrame, counted: set[str]) -> Self:
        """Nobody yet; `counted` are the columns of the table that counters are by.

        Raises:
            InputError: the table has no such column, or one whose values cannot be counted by.
        """
        key = f"{name}_id"
        for column in sorted(counted):
            if column not in table.columns:
                raise InputError(
                    f"prepare.counters: the {name} table has no column '{column}' "
                    f"(found: {', '.join(table.columns)}); change by"
                )
            dtype = table.schema[column]
            inner = dtype.inner if isinstance(dtype, pl.List) else dtype
            if not (inner == pl.String or inner.is_integer()):
                raise InputError(
                    f"prepare.counters: {name}.{column} is {dtype}; count by text, whole numbers, or lists of them"
                )
        attributes = {column: Attribute(table[column]) for column in counted}
        return cls(name, table, attributes, table[key].clear())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> str:
        """Name of the column of ids."""
        return f"{self.name}_id"

    def add(self, ids: pl.Series) -> np.ndarray:
        """The code of each of distinct ids; new ones get the next codes, in the given order; int64."""
        hashes = hash64(ids)
        before = len(self.index)
        code = self.index.add(hashes)
        new = np.flatnonzero(code >= before)
        if len(new):
            fresh = ids.gather(new)
            self.ids = pl.concat([self.ids, fresh]).rechunk()
            self.hash_E = np.concatenate([self.hash_E, hashes[new]])
            if self.attributes:
                rows = self._rows_of(fresh)
                for attribute in self.attributes.values():
                    attribute.extend(rows)
        return code

    def axis(self, column: str | None, code_R: np.ndarray) -> Axis:
        """What rows of entities are counted by: the entities themselves, or a column of their table."""
        return Axis(code_R, None, self.hash_E) if column is None else self.attributes[column].axis(code_R)

    def described(self) -> pl.DataFrame:
        """The canonical table: row i is code i, then what the table describes and no event has named yet."""
        met = pl.DataFrame({self.key: self.ids}).with_columns(known=pl.lit(True))
        unmet = self.table.join(met, on=self.key, how="anti", maintain_order="left")
        rows = met.drop("known").join(self.table, on=self.key, how="left", maintain_order="left")
        return pl.concat([rows, unmet.select(rows.columns)])

    def met(self) -> pl.DataFrame:
        """The id of each code, and what it is counted by."""
        counted = self.table.select(self.key, *sorted(self.attributes))
        return pl.DataFrame({self.key: self.ids}).join(counted, on=self.key, how="left", maintain_order="left")

    def is_described(self) -> pl.Series:
        """Whether the table describes each code's id."""
        return self.ids.is_in(self.table[self.key].implode())

    def _rows_of(self, ids: pl.Series) -> np.ndarray:
        place = self.table.select(self.key).with_row_index("row")
        joined = pl.DataFrame({self.key: ids}).join(place, on=self.key, how="left", maintain_order="left")
        return joined["row"].cast(pl.Int64).fill_null(-1).to_numpy()
