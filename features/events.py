"""The canonical tables (events, items, users) and what a row must be to enter them.

A dataset yields a `RawLog`; `validate` casts it to the canonical types, sorts it into the stable time order, and
puts every row that cannot be used into a quarantine with its reason. Rows in = rows valid + rows quarantined.
"""

from dataclasses import dataclass

import polars as pl

from features.errors import InputError

REQUIRED = ("user_id", "item_id", "timestamp")
"""Columns that every event has; `timestamp` is Unix time in milliseconds, or a position where there is no clock."""

OPTIONAL: dict[str, pl.DataType] = {
    "action": pl.String(),
    "value": pl.Float64(),
    "request_id": pl.Int64(),
    "position": pl.Int32(),
    "propensity": pl.Float32(),
}
"""Columns of a known meaning: what happened, how much of it, and for logged feeds where it was shown and how likely."""

MAX_TIMESTAMP_MS = 4_102_444_800_000
"""2100-01-01, the latest time an event may carry."""

MIN_CLOCK_MS = 100_000_000_000
"""1973-03-03. A whole log below this is in seconds, not milliseconds."""


@dataclass(frozen=True, kw_only=True)
class RawLog:
    """What a dataset yields: canonical column names, types and rows not yet checked."""

    events: pl.DataFrame
    """`user_id, item_id, timestamp`, any of `OPTIONAL`, context columns; ties in time in their order of happening."""
    source: str
    """The file or generator, for messages."""
    items: pl.DataFrame | None = None
    """`item_id`, and any of `title, categories, created_at, text` and numbers; None: known from the events alone."""
    users: pl.DataFrame | None = None
    """`user_id` and attributes; None: known from the events alone."""
    has_clock: bool = True
    """False where `timestamp` is only a position in the user's own order."""


@dataclass(frozen=True, kw_only=True)
class ValidLog:
    """Checked tables. `events` is in stable time order with its place in the column `row` (0, 1, …)."""

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    quarantine: pl.DataFrame
    """The refused rows as strings, with the column `reason`."""
    has_clock: bool


def validate(log: RawLog) -> ValidLog:
    """Cast, check and order a raw log.

    A row is quarantined when an id or the time is missing (an empty text is), when a value has the wrong type, when
    the time is negative or past 2100, when a value is not finite, when a propensity is outside (0, 1], or when it
    repeats an earlier row whole.

    Raises:
        InputError: a required column is missing, no value of a column has its type, the times are of another unit,
            no row is left, or an item or user is described without a usable id.
    """
    raw = log.events
    for name in REQUIRED:
        if name not in raw.columns:
            raise InputError(
                f"{log.source}: column '{name}' is missing (found: {', '.join(raw.columns)}); "
                "map it under [dataset.columns]"
            )
    if raw.is_empty():
        raise InputError(f"{log.source}: the log has no rows; point [dataset] at a log with events")

    types = {name: _id_type(raw, name, log) for name in ("user_id", "item_id")} | {"timestamp": pl.Int64()}
    types |= {name: dtype for name, dtype in OPTIONAL.items() if name in raw.columns}
    cast = raw.with_columns(pl.col(name).cast(dtype, strict=False) for name, dtype in types.items())
    for name in types:
        given, kept = raw[name].drop_nulls().len(), cast[name].drop_nulls().len()
        if given and not kept:
            raise InputError(
                f"{log.source}: no value of column '{name}' is {types[name]} (first: {raw[name].drop_nulls()[0]!r}); "
                "map the right column under [dataset.columns] or convert it"
            )
    if log.has_clock:
        _check_unit(cast["timestamp"], log.source)

    reason = _reasons(raw, cast, types)
    checked = cast.with_columns(reason.alias("reason"))
    good = checked.filter(pl.col("reason").is_null()).drop("reason")
    if good.is_empty():
        first = checked["reason"][0]
        raise InputError(f"{log.source}: none of {raw.height} rows is valid (first: {first}); check [dataset.columns]")
    bad = raw.with_columns(checked["reason"]).filter(pl.col("reason").is_not_null())
    events = (
        good.sort("timestamp", maintain_order=True).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    )
    return ValidLog(
        events=events,
        items=_entities(log.items, events, "item_id", log.source),
        users=_entities(log.users, events, "user_id", log.source),
        quarantine=bad.select(_as_text(name, dtype) for name, dtype in bad.schema.items()),
        has_clock=log.has_clock,
    )


def _check_unit(time: pl.Series, source: str) -> None:
    """Refuse a log whose times are all too small or all too large for milliseconds."""
    earliest, latest = time.min(), time.max()
    if isinstance(latest, int) and 0 < latest < MIN_CLOCK_MS:
        raise InputError(
            f"{source}: column 'timestamp' ends at {latest}, which is seconds, not milliseconds; "
            'set dataset.time_unit = "s"'
        )
    if isinstance(earliest, int) and earliest > MAX_TIMESTAMP_MS:
        raise InputError(
            f"{source}: column 'timestamp' begins at {earliest}, which is finer than milliseconds; "
            'set dataset.time_unit = "us" if it is microseconds'
        )


def _id_type(raw: pl.DataFrame, name: str, log: RawLog) -> pl.DataType:
    """Ids are int64 or strings; a text column that holds only whole numbers stays text, so that '007' is not 7."""
    dtype = raw.schema[name]
    if dtype.is_integer():
        return pl.Int64()
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    raise InputError(
        f"{log.source}: column '{name}' is {dtype}; ids are integers or text, so cast or map another column"
    )


def _reasons(raw: pl.DataFrame, cast: pl.DataFrame, types: dict[str, pl.DataType]) -> pl.Series:
    """The first reason against each row, null where there is none."""
    rules: list[tuple[pl.Expr, str]] = []
    both = cast.with_columns(raw[name].is_not_null().alias(f"_given_{name}") for name in types)
    for name, dtype in types.items():
        if name in REQUIRED:
            blank = pl.col(name) == "" if dtype == pl.String else pl.lit(False)
            rules.append((~pl.col(f"_given_{name}") | blank, f"{name}: missing"))
        rules.append((pl.col(f"_given_{name}") & pl.col(name).is_null(), f"{name}: not {dtype}"))
    rules.append((pl.col("timestamp") < 0, "timestamp: negative"))
    rules.append((pl.col("timestamp") > MAX_TIMESTAMP_MS, "timestamp: after the year 2100"))
    if "value" in types:
        rules.append((~pl.col("value").is_finite(), "value: not finite"))
    if "propensity" in types:
        rules.append((~pl.col("propensity").is_between(0, 1, closed="right"), "propensity: outside (0, 1]"))
    rules.append((~pl.struct(list(cast.columns)).is_first_distinct(), "row: repeats an earlier one"))
    return both.select(
        pl.coalesce([pl.when(condition).then(pl.lit(text)) for condition, text in rules]).alias("reason")
    )["reason"]


def _entities(given: pl.DataFrame | None, events: pl.DataFrame, key: str, source: str) -> pl.DataFrame:
    """One row an id: those that the source describes (its first row counts), then those that only events name."""
    seen = events.select(pl.col(key).unique(maintain_order=True))
    if given is None:
        return seen
    entity, dtype = key.removesuffix("_id"), events.schema[key]
    if key not in given.columns:
        raise InputError(f"{source}: the {entity} table has no column '{key}'; map it under [dataset.{entity}_columns]")
    known = given.with_columns(pl.col(key).cast(dtype, strict=False))
    if known[key].null_count():
        unusable = given[key].filter(known[key].is_null())
        raise InputError(
            f"{source}: the {entity} table has {key} = {unusable[0]!r}, and ids of this log are {dtype}; "
            "mend or drop that row"
        )
    given = known.unique(key, keep="first", maintain_order=True)
    unseen = seen.join(given, on=key, how="anti", maintain_order="left")
    return pl.concat([given, unseen], how="diagonal")


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column for people to read; lists and structs as JSON."""
    column = pl.col(name)
    return (pl.struct(column).struct.json_encode() if dtype.is_nested() else column.cast(pl.String)).alias(name)
