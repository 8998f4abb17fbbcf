"""The canonical tables (events, items, users) and what a row must be to enter them.

A dataset yields a `RawLog`, in parts that follow each other in time; a `Validator` casts each to the canonical types,
sorts it into the stable time order, and refuses every row that cannot be used, with its reason.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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

PART_ROWS = 2_000_000
"""About how many events of a log are held at a time."""

MAX_TIMESTAMP_MS = 4_102_444_800_000
"""2100-01-01, the latest time an event may carry."""

MIN_CLOCK_MS = 100_000_000_000
"""1973-03-03. A whole log below this is in seconds, not milliseconds."""


DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of the log. What it holds comes after what the parts before it hold."""

    name: str
    """A file or a stretch of it, for messages."""
    read: Callable[[], pl.DataFrame]
    """Its events: `user_id, item_id, timestamp`, any of `OPTIONAL`, context columns; ties in time in order of
    happening."""
    paths: tuple[Path, ...] = ()
    """The files that it is read from, by any process; (): `read` works in this process alone."""


@dataclass(frozen=True, kw_only=True)
class RawLog:
    """What a dataset yields: canonical column names, types and rows not yet checked."""

    parts: Iterable[Part]
    """In the order of time; read one after the other, each once, and only one of them is held."""
    source: str
    """The file or generator, for messages."""
    items: pl.DataFrame | None = None
    """`item_id`, and any of `title, categories, created_at, text` and numbers; None: known from the events alone."""
    users: pl.DataFrame | None = None
    """`user_id` and attributes; None: known from the events alone."""
    has_clock: bool = True
    """False where `timestamp` is only a position in the user's own order."""


def in_one_part(events: pl.DataFrame, name: str) -> tuple[Part]:
    """A log that is held in memory whole."""
    return (Part(name=name, read=lambda: events),)


@dataclass
class Validator:
    """Casts, checks and orders the parts of a log, one after the other.

    A row is quarantined when an id or the time is missing (an empty text is), when a value has the wrong type, when
    the time is negative, past 2100, earlier than the part before or so far from all others of its part that the clock
    must have jumped, when a value is not finite, when a propensity is outside (0, 1], when it repeats an earlier row of
    its part whole, or, where that is asked for, when the item or user table does not know its id.
    Rows in = rows valid + rows quarantined.
    """

    log: RawLog
    known: dict[str, pl.Series] = field(default_factory=dict)
    """`item_id`, `user_id`: the only ids that are let through; absent: all are."""
    reserved: frozenset[str] = frozenset()
    """Further columns that the log may not have, beside `row`."""
    types: dict[str, pl.DataType] = field(default_factory=dict)
    """Of every column of the log, as the first part has them."""
    rows: int = 0
    """Valid rows so far."""
    last_ms: int | None = None
    """Time of the last of them."""

    def part(self, part: Part) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(valid, refused) rows of the next part.

        The valid ones are in stable time order with their place in the log in the column `row`; the refused ones are
        text, with the column `reason`.

        Raises:
            InputError: a required column is missing or a reserved one is there, no value of a column has its type, the
                times are of another unit, or the columns are not those of the parts before.
        """
        raw = part.read()
        if raw.is_empty() and not self.types:
            return raw, raw.select(pl.lit("", dtype=pl.String).alias("reason")).clear()
        raw = self._complete(part, raw)
        types = {name: self.types[name] for name in raw.columns}
        checked = [name for name in raw.columns if name in REQUIRED or name in OPTIONAL]
        cast = raw.with_columns(pl.col(name).cast(types[name], strict=False) for name in checked)
        for name in checked:
            given, kept = raw[name].len() - raw[name].null_count(), cast[name].len() - cast[name].null_count()
            if given and not kept and self.last_ms is None:
                raise InputError(
                    f"{part.name}: no value of column '{name}' is {types[name]} (first: "
                    f"{raw[name].drop_nulls()[0]!r}); map the right column under [dataset.columns] or convert it"
                )
        if self.log.has_clock and self.last_ms is None:
            _check_unit(cast["timestamp"], part.name)
        rules = self._rules(raw, cast, checked)
        both = cast.with_columns(raw[name].is_not_null().alias(f"_given_{name}") for name in checked)
        bad = both.select(pl.any_horizontal(rule.fill_null(False) for rule, _ in rules).alias("bad"))["bad"]
        repeated = _repeated(cast.filter(~bad) if bad.any() else cast)
        good = cast if not bad.any() else cast.filter(~bad)
        refused = raw.filter(bad).with_columns(
            both.filter(bad).select(
                pl.coalesce([pl.when(condition).then(pl.lit(text)) for condition, text in rules]).alias("reason")
            )["reason"]
        )
        if repeated.any():
            again = raw.filter(~bad).filter(repeated).with_columns(reason=pl.lit("row: repeats an earlier one"))
            good, refused = good.filter(~repeated), pl.concat([refused, again], how="diagonal")
        if not good["timestamp"].is_sorted():
            good = good.sort("timestamp", maintain_order=True)
        late = int((refused["reason"] == _LATE).sum()) if refused.height else 0
        if late > good.height:
            if self.log.has_clock:
                _check_unit(cast["timestamp"], part.name)
            raise InputError(
                f"{part.name}: {late} of its {raw.height} rows are earlier than {self.last_ms}, the last time "
                "of the parts before it; give the parts in the order of time, or set dataset.partitioned = false"
            )
        good = good.with_row_index("row", offset=self.rows).with_columns(pl.col("row").cast(pl.Int64))
        self.rows += good.height
        self.last_ms = good["timestamp"][-1] if good.height else self.last_ms
        return good, refused.select(_as_text(name, dtype) for name, dtype in refused.schema.items())

    def _complete(self, part: Part, raw: pl.DataFrame) -> pl.DataFrame:
        """The part with the columns of the first one that has rows, whose types it decides."""
        if self.types:
            if set(raw.columns) != set(self.types):
                raise InputError(
                    f"{part.name}: has the columns {', '.join(sorted(raw.columns))}, but the parts before it have "
                    f"{', '.join(sorted(self.types))}; give all parts of the log the same"
                )
            raw = raw.select(list(self.types))
            for name in raw.columns:
                own = raw.schema[name]
                if name in ("user_id", "item_id"):
                    own = _id_type(raw, name, part.name)
                if own != self.types[name] and name not in OPTIONAL and name != "timestamp":
                    cast = raw[name].cast(self.types[name], strict=False)
                    if not cast.cast(own, strict=False).equals(raw[name], null_equal=True):
                        raise InputError(
                            f"{part.name}: column '{name}' is {own}, and {self.types[name]} in the parts before it; "
                            "convert it, or begin with a part that has values of its kind"
                        )
                    raw = raw.with_columns(cast)
            return raw
        for name in REQUIRED:
            if name not in raw.columns:
                raise InputError(
                    f"{part.name}: column '{name}' is missing (found: {', '.join(raw.columns)}); "
                    "map it under [dataset.columns]"
                )
        if taken := sorted({"row", *self.reserved}.intersection(raw.columns)):
            raise InputError(
                f"{self.log.source}: the log has a column '{taken[0]}', a name that the pipeline gives to a column of "
                "its own; rename it"
            )
        self.types = dict(raw.schema) | {name: _id_type(raw, name, part.name) for name in ("user_id", "item_id")}
        self.types |= {"timestamp": pl.Int64()}
        self.types |= {name: dtype for name, dtype in OPTIONAL.items() if name in raw.columns}
        return raw

    def _rules(self, raw: pl.DataFrame, cast: pl.DataFrame, checked: list[str]) -> list[tuple[pl.Expr, str]]:
        """What is wrong with a row, the first reason first."""
        rules: list[tuple[pl.Expr, str]] = []
        for name in checked:
            dtype = cast.schema[name]
            if name in REQUIRED:
                blank = pl.col(name) == "" if dtype == pl.String else pl.lit(False)
                rules.append((~pl.col(f"_given_{name}") | blank, f"{name}: missing"))
            if raw.schema[name] != dtype:
                rules.append((pl.col(f"_given_{name}") & pl.col(name).is_null(), f"{name}: not {dtype}"))
        time = pl.col("timestamp")
        rules.append((time < 0, "timestamp: negative"))
        rules.append((time > MAX_TIMESTAMP_MS, "timestamp: after the year 2100"))
        if self.last_ms is not None:
            rules.append((time < self.last_ms, _LATE))
        if self.log.has_clock and (bounds := _plausible(cast["timestamp"])) is not None:
            rules.append((~time.is_between(*bounds), "timestamp: the clock jumped"))
        if "value" in checked:
            rules.append((~pl.col("value").is_finite(), "value: not finite"))
        if "propensity" in checked:
            rules.append((~pl.col("propensity").is_between(0, 1, closed="right"), "propensity: outside (0, 1]"))
        for name, ids in self.known.items():
            table = name.removesuffix("_id")
            given = ids.cast(cast.schema[name], strict=False).drop_nulls()
            rules.append((~pl.col(name).is_in(given.implode()), f"{name}: not in the {table} table"))
        return rules


@dataclass(frozen=True, kw_only=True)
class ValidLog:
    """Checked tables of a log that is held in memory whole."""

    events: pl.DataFrame
    """In stable time order, with its place in the column `row` (0, 1, …)."""
    items: pl.DataFrame
    """One row an id: in the order of their first event, then those that only the source's table names."""
    users: pl.DataFrame
    quarantine: pl.DataFrame
    """The refused rows as strings, with the column `reason`."""


def validate(log: RawLog) -> ValidLog:
    """Check a whole log.

    Raises:
        InputError: as `Validator.part` does, or no row is left.
    """
    validator = Validator(log)
    good, refused = zip(*(validator.part(part) for part in log.parts), strict=True)
    events = pl.concat(good)
    if events.is_empty():
        raise nothing_valid(log, sum(table.height for table in refused), refused)
    tables = {
        key: described(table, key, events.schema[key], log.source)
        for key, table in (("item_id", log.items), ("user_id", log.users))
    }
    met = {key: events.select(pl.col(key).unique(maintain_order=True)) for key in tables}
    whole = {
        key: pl.concat(
            [
                met[key].join(table, on=key, how="left", maintain_order="left"),
                table.join(met[key], on=key, how="anti", maintain_order="left"),
            ],
            how="diagonal",
        )
        for key, table in tables.items()
    }
    return ValidLog(
        events=events, items=whole["item_id"], users=whole["user_id"], quarantine=pl.concat(refused, how="diagonal")
    )


def nothing_valid(log: RawLog, rows: int, refused: Sequence[pl.DataFrame]) -> InputError:
    """What to say of a log that is empty, or of which no row can be used."""
    if not rows:
        return InputError(f"{log.source}: the log has no rows; point [dataset] at a log with events")
    first = next(table["reason"][0] for table in refused if table.height)
    return InputError(f"{log.source}: none of {rows} rows is valid (first: {first}); check [dataset.columns]")


_LATE = "timestamp: earlier than the part before"


def _plausible(time: pl.Series) -> tuple[int, int] | None:
    """The times that a part may have, seen from its middle 99.8 %.

    Ten times their span back, and 30 days at least; once their span ahead, and a day at least.
    """
    known = time.drop_nulls().to_numpy()
    if len(known) < 1_000:
        return None
    at = len(known) // 1_000
    middle = np.partition(known, (at, len(known) - 1 - at))
    low, high = int(middle[at]), int(middle[-1 - at])
    # What is dated ahead is worse than what is dated back: all that follows would be earlier.
    return low - max(10 * (high - low), 30 * DAY_MS), high + max(high - low, DAY_MS)


def _repeated(events: pl.DataFrame) -> pl.Series:
    """Whether each row repeats an earlier one whole. Only rows of one person, item and time are compared whole."""
    quick = events.select(pl.struct(*REQUIRED).hash().alias("hash"))["hash"]
    ordered = np.sort(quick.to_numpy())
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    suspect = quick.is_in(pl.Series(twice).unique().implode())
    found = np.zeros(events.height, dtype=bool)
    some = events.filter(suspect)
    found[suspect.to_numpy()] = ~some.select(pl.struct(some.columns).is_first_distinct().alias("x"))["x"].to_numpy()
    return pl.Series(found)


def described(given: pl.DataFrame | None, key: str, dtype: pl.DataType, source: str) -> pl.DataFrame:
    """The item or user table with ids as the log has them, the first row of each id; empty where there is none.

    Raises:
        InputError: it has no column of ids, or an id that is none of the log's type.
    """
    if given is None:
        return pl.DataFrame(schema={key: dtype})
    entity = key.removesuffix("_id")
    if key not in given.columns:
        raise InputError(f"{source}: the {entity} table has no column '{key}'; map it under [dataset.{entity}_columns]")
    known = given.with_columns(pl.col(key).cast(dtype, strict=False))
    again = known[key].cast(given.schema[key], strict=False)
    unlike = known[key].is_null() | (again != given[key]).fill_null(True)
    if unlike.any():
        unusable = given[key].filter(unlike)
        raise InputError(
            f"{source}: the {entity} table has {key} = {unusable[0]!r}, and ids of this log are {dtype}; "
            "mend or drop that row"
        )
    return known.unique(key, keep="first", maintain_order=True)


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


def _id_type(raw: pl.DataFrame, name: str, source: str) -> pl.DataType:
    """Ids are int64 or strings; a text column that holds only whole numbers stays text, so that '007' is not 7."""
    dtype = raw.schema[name]
    if dtype.is_integer():
        return pl.Int64()
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    raise InputError(f"{source}: column '{name}' is {dtype}; ids are integers or text, so cast or map another column")


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column for people to read; lists and structs as JSON."""
    column = pl.col(name)
    return (pl.struct(column).struct.json_encode() if dtype.is_nested() else column.cast(pl.String)).alias(name)
