"""Any log in Parquet, CSV or JSON-lines files, through a mapping of its columns.

[dataset]
kind = "files"
events = "logs/*.parquet"
[dataset.columns]
user_id = "uid"
item_id = "video"
timestamp = "time_ms"
"""

from pathlib import Path
from typing import Literal

import polars as pl

from features.errors import InputError
from features.events import OPTIONAL, REQUIRED, RawLog
from features.settings import Settings


class Config(Settings):
    """Where the files are and which column means what."""

    events: str
    """A file, or a glob of files that are read in the order of their names."""
    items: Path | None = None
    """A file that describes the items; None: they are known from the events alone."""
    users: Path | None = None
    """A file that describes the users; None: they are known from the events alone."""
    columns: dict[str, str] = {}
    """Canonical name → column of the events file, for those that are named otherwise."""
    context: tuple[str, ...] = ()
    """Further columns of the events file to keep, under their own names."""
    item_columns: dict[str, str] = {}
    """Canonical name → column of the items file (`item_id, title, categories, created_at`, …)."""
    user_columns: dict[str, str] = {}
    """Canonical name → column of the users file (`user_id`, …)."""
    category_separator: str = "|"
    """What stands between categories where they are one text column."""
    time_unit: Literal["s", "ms", "us", "position"] = "ms"
    """Unit of a numeric timestamp; `position`: only an order within each user. A datetime column needs none."""


def inputs(config: Config) -> list[Path]:
    """The files that `load` reads."""
    return [*_matches(config.events), *(path for path in (config.items, config.users) if path is not None)]


def load(config: Config) -> RawLog:
    """Read and rename; what is not mapped, canonical or listed as context is left out."""
    source = config.events
    raw = pl.concat([_read(path) for path in _matches(config.events)], how="vertical_relaxed")
    for name in config.columns:
        if name not in (*REQUIRED, *OPTIONAL):
            raise InputError(
                f"dataset.columns.{name}: not a canonical column; use one of {', '.join((*REQUIRED, *OPTIONAL))}"
            )
    for name in config.context:
        if name not in raw.columns:
            raise InputError(
                f"{source}: column '{name}' of dataset.context is missing (found: {', '.join(raw.columns)})"
            )
    events = _rename(raw, config.columns, source, "dataset.columns")
    events = events.select(name for name in events.columns if name in (*REQUIRED, *OPTIONAL, *config.context))
    if "timestamp" in events.columns:
        events = events.with_columns(_milliseconds(events, config.time_unit))
    return RawLog(
        events=events,
        items=_table(config.items, config.item_columns, "dataset.item_columns", config.category_separator),
        users=_table(config.users, config.user_columns, "dataset.user_columns", config.category_separator),
        source=source,
        has_clock=config.time_unit != "position",
    )


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if "*" not in pattern:
        return [path]
    at = next(i for i, part in enumerate(path.parts) if "*" in part)
    found = sorted(Path(*path.parts[:at]).glob(str(Path(*path.parts[at:]))))
    if not found:
        raise InputError(f"{pattern}: no file matches; set dataset.events to an existing file or glob")
    return found


def _read(path: Path) -> pl.DataFrame:
    if not path.exists():
        raise InputError(f"{path}: no such file; set dataset.events, items or users to an existing one")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return pl.read_parquet(path)
        if suffix in (".csv", ".tsv"):
            return pl.read_csv(path, separator="," if suffix == ".csv" else "\t", infer_schema_length=None)
        if suffix in (".jsonl", ".ndjson"):
            return pl.read_ndjson(path, infer_schema_length=None)
    except pl.exceptions.NoDataError:
        raise InputError(f"{path}: the file is empty; point the dataset at a log with events") from None
    except pl.exceptions.ComputeError as error:
        raise InputError(
            f"{path}: cannot be read as {suffix[1:]} ({str(error).splitlines()[0]}); mend or convert it"
        ) from error
    raise InputError(f"{path}: '{suffix}' files are not read; use .parquet, .csv, .tsv, .jsonl or .ndjson")


def _rename(table: pl.DataFrame, columns: dict[str, str], source: str, field: str) -> pl.DataFrame:
    for name, column in columns.items():
        if column not in table.columns:
            raise InputError(
                f"{source}: column '{column}' of {field}.{name} is missing (found: {', '.join(table.columns)})"
            )
    return table.select(
        *(pl.col(column).alias(name) for name, column in columns.items()),
        *(pl.col(name) for name in table.columns if name not in columns),
    )


def _milliseconds(events: pl.DataFrame, unit: str) -> pl.Expr:
    time = pl.col("timestamp")
    if events.schema["timestamp"].is_temporal():
        return time.dt.epoch("ms")
    match unit:
        case "s":
            return (time.cast(pl.Float64, strict=False) * 1000).round().cast(pl.Int64, strict=False)
        case "us":
            return time.cast(pl.Int64, strict=False) // 1000
        case _:
            return time


def _table(path: Path | None, columns: dict[str, str], field: str, separator: str) -> pl.DataFrame | None:
    if path is None:
        return None
    table = _rename(_read(path), columns, str(path), field)
    if table.schema.get("categories") == pl.String:
        table = table.with_columns(pl.col("categories").fill_null("").str.split(separator))
    return table
