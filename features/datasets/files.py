"""Any log in Parquet, CSV or JSON-lines files, through a mapping of its columns.

[dataset]
kind = "files"
events = "logs/*.parquet"
[dataset.columns]
user_id = "uid"
item_id = "video"
timestamp = "time_ms"
"""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from polars import selectors as cs
from pydantic import Field, model_validator

from features.datasets._inputs import require_files
from features.errors import InputError
from features.events import OPTIONAL, PART_ROWS, REQUIRED, Part, RawLog
from features.settings import Settings


class Config(Settings):
    """Where the files are and which column means what."""

    events: str
    """A file, or a pattern with `*` of files that are read in the order of their names."""
    items: Path | None = None
    """A file that describes the items; None: they are known from the events alone."""
    users: Path | None = None
    """A file that describes the users; None: they are known from the events alone."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Canonical name → column of the events file, for those that are named otherwise."""
    context: tuple[str, ...] = ()
    """Further columns of the events file to keep, under their own names."""
    item_columns: dict[str, str] = Field(default_factory=dict)
    """Canonical name → column of the items file (`item_id, title, categories, created_at`, …)."""
    item_context: tuple[str, ...] | None = None
    """Further columns of the items file to keep, under their own names; None: all. An items file that is the log itself
    has columns of what somebody did, which say nothing of the item."""
    user_columns: dict[str, str] = Field(default_factory=dict)
    """Canonical name → column of the users file (`user_id`, …)."""
    category_separator: str = "|"
    """What stands between categories where they are one text column."""
    partitioned: bool = False
    """Each file holds a stretch of time, in the order of the files' names: a log that grows by files, of any size. A
    row earlier than the file before it goes to the quarantine. Without, files may hold anything in any order."""
    time_unit: Literal["s", "ms", "us", "position"] = "ms"
    """Unit of a numeric timestamp; `position`: only an order within each user. A datetime column needs none."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for name in self.columns:
            if name not in (*REQUIRED, *OPTIONAL):
                raise ValueError(f"columns.{name} is no canonical column; use {', '.join((*REQUIRED, *OPTIONAL))}")
        return self


def inputs(config: Config) -> list[Path]:
    """The files that `load` reads.

    Raises:
        InputError: one does not exist.
    """
    return [
        *_matches(config.events),
        *require_files({"dataset.items": config.items, "dataset.users": config.users}),
    ]


def load(config: Config) -> RawLog:
    """Read and rename; what is not mapped, canonical or listed as context is left out.

    Raises:
        InputError: a file cannot be read, a column that the config names is missing, or files do not fit together.
    """
    inputs(config)
    paths = _matches(config.events)
    groups = [(path,) for path in paths] if config.partitioned else [tuple(paths)]
    return RawLog(
        parts=tuple(part for group in groups for part in _parts(group, config)),
        items=_table(config.items, config.item_columns, "item_id", config),
        users=_table(config.users, config.user_columns, "user_id", config),
        source=config.events,
        has_clock=config.time_unit != "position",
    )


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if "*" not in pattern:
        return require_files({"dataset.events": path})
    at = next(i for i, part in enumerate(path.parts) if "*" in part)
    found = sorted(Path(*path.parts[:at]).glob(str(Path(*path.parts[at:]))))
    if not found:
        raise InputError(f"{pattern}: no file matches; set dataset.events to an existing file or pattern")
    return found


def _parts(paths: tuple[Path, ...], config: Config) -> list[Part]:
    """What the files hold, cut into stretches of time where it is Parquet and too much to be held at once."""
    name = str(paths[0]) if len(paths) == 1 else config.events
    whole = Part(name=name, read=partial(_read_events, paths, config), paths=paths)
    if any(path.suffix.lower() != ".parquet" for path in paths):
        return [whole]
    try:
        rows = sum(pl.scan_parquet(path).select(pl.len()).collect().item() for path in paths)
    except pl.exceptions.PolarsError:
        return [whole]  # It cannot be read, which reading it says in better words.
    if rows <= 2 * PART_ROWS:
        return [whole]
    column = config.columns.get("timestamp", "timestamp")
    try:
        scans = [pl.scan_parquet(path).select(column) for path in paths]
        times = pl.concat(scans, how="vertical_relaxed").collect()[column]
    except pl.exceptions.ColumnNotFoundError:
        return [whole]  # The same.
    time = pl.col(column)
    if times.dtype == pl.String:
        # As text, 9 comes after 10.
        time, times = time.cast(pl.Float64, strict=False), times.cast(pl.Float64, strict=False)
    ordered = times.drop_nulls().sort()
    cuts = ordered.gather(np.arange(PART_ROWS, len(ordered) - PART_ROWS // 2, PART_ROWS)).unique().sort().to_list()
    if not cuts:
        return [whole]
    return [
        Part(
            name=f"{name}, part {number}",
            read=partial(_read_events, paths, config, _between(time, low, high)),
            paths=paths,
        )
        for number, (low, high) in enumerate(pairwise([None, *cuts, None]))
    ]


def _between(time: pl.Expr, low: Any, high: Any) -> pl.Expr:
    """Rows of low ≤ time < high, of which one may be None; those without a time are in the first stretch."""
    if low is None:
        return (time < high) | time.is_null()
    return time >= low if high is None else (time >= low) & (time < high)


def _read_events(paths: tuple[Path, ...], config: Config, only: pl.Expr | None = None) -> pl.DataFrame:
    return _concat([(path, _events(path, config, only)) for path in paths])


def _events(path: Path, config: Config, only: pl.Expr | None = None) -> pl.DataFrame:
    """One file's events under canonical names."""
    raw = _read(path, [config.columns.get(name, name) for name in ("user_id", "item_id")], only)
    events = _rename(raw, config.columns, path, "dataset.columns")
    for name in config.context:
        if name not in events.columns:
            raise InputError(
                f"{path}: column '{name}' of dataset.context is missing (found: {', '.join(raw.columns)}); "
                "take it out or name an existing one"
            )
    events = events.select(name for name in events.columns if name in (*REQUIRED, *OPTIONAL, *config.context))
    return _milliseconds(events, "timestamp", config.time_unit) if "timestamp" in events.columns else events


def _concat(files: list[tuple[Path, pl.DataFrame]]) -> pl.DataFrame:
    first, whole = files[0]
    for path, table in files[1:]:
        if set(table.columns) != set(whole.columns):
            raise InputError(
                f"{path}: has the columns {', '.join(sorted(table.columns))}, but {first} has "
                f"{', '.join(sorted(whole.columns))}; give all files of dataset.events the same"
            )
    try:
        return pl.concat([table.select(whole.columns) for _, table in files], how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{first} and the other files of dataset.events have columns of different types "
            f"({str(error).splitlines()[0]}); convert them to the same"
        ) from None


def _read(path: Path, ids: list[str], only: pl.Expr | None = None) -> pl.DataFrame:
    """A file as it is, but for `ids` in text files, which become integers only where nothing is lost by it.

    Of a Parquet file only the rows `only` are read.
    """
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson"):
        raise InputError(f"{path}: '{suffix}' files are not read; use .parquet, .csv, .tsv, .jsonl or .ndjson")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; point the dataset at one with rows")
    try:
        if suffix in (".csv", ".tsv"):
            separator = "," if suffix == ".csv" else "\t"
            table = pl.read_csv(
                path,
                separator=separator,
                infer_schema_length=None,
                schema_overrides=dict.fromkeys(ids, pl.String),
            )
            return table.with_columns(_numbered(table[name]) for name in ids if name in table.columns)
        if suffix == ".parquet":
            scan = pl.scan_parquet(path)
            table = (scan if only is None else scan.filter(only)).collect()
        else:
            table = pl.read_ndjson(path, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{path}: cannot be read as {suffix[1:]} ({str(error).splitlines()[0]}); mend or convert it"
        ) from None
    return table.with_columns((cs.categorical() | cs.enum()).cast(pl.String))


def _numbered(ids: pl.Series) -> pl.Series:
    """Text ids as Int64 if each of them is written as that number is; '007' is not."""
    numbers = ids.cast(pl.Int64, strict=False)
    return numbers if ids.equals(numbers.cast(pl.String), null_equal=True) else ids


def _rename(table: pl.DataFrame, columns: dict[str, str], path: Path, field: str) -> pl.DataFrame:
    for name, column in columns.items():
        if column not in table.columns:
            raise InputError(
                f"{path}: column '{column}' of {field}.{name} is missing (found: {', '.join(table.columns)}); "
                "name an existing one"
            )
    return table.select(
        *(pl.col(column).alias(name) for name, column in columns.items()),
        *(pl.col(name) for name in table.columns if name not in columns),
    )


def _milliseconds(table: pl.DataFrame, name: str, unit: str) -> pl.DataFrame:
    """A time column in milliseconds; text that is no number stays as it is, for the quarantine."""
    time, dtype = pl.col(name), table.schema[name]
    if isinstance(dtype, pl.Date | pl.Datetime):
        return table.with_columns(time.dt.epoch("ms"))
    if unit == "s":
        number = (time.cast(pl.Float64, strict=False) * 1000).round().cast(pl.Int64, strict=False)
    elif unit == "us":
        number = time.cast(pl.Int64, strict=False) // 1000
    else:
        return table
    return table.with_columns(pl.coalesce(number.cast(pl.String), time) if dtype == pl.String else number)


def _table(path: Path | None, columns: dict[str, str], key: str, config: Config) -> pl.DataFrame | None:
    """The items or the users, with `categories` as lists and `created_at` in milliseconds."""
    if path is None:
        return None
    field = f"dataset.{key.removesuffix('_id')}_columns"
    table = _rename(_read(path, [columns.get(key, key)]), columns, path, field)
    if key == "item_id" and config.item_context is not None:
        for name in config.item_context:
            if name not in table.columns:
                raise InputError(f"{path}: dataset.item_context names '{name}', which is no column of it")
        table = table.select(name for name in table.columns if name in {key, *columns, *config.item_context})
    if "created_at" in table.columns:
        table = _milliseconds(table, "created_at", "ms")
    if table.schema.get("categories") == pl.String:
        words = pl.col("categories").str.split(config.category_separator).list.eval(pl.element().str.strip_chars())
        table = table.with_columns(words.list.eval(pl.element().filter(pl.element() != "")))
    return table
