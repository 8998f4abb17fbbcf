"""The events that are replayed, in the order of time, with what was wrong with the log counted and put aside.

The log is the test part of a run's split, which `prepare` has checked, or files of their own. Rules for these: rows
that cannot be used and rows that repeat an earlier one whole go to the quarantine; rows out of order are counted and
sorted, ties staying in the order of the file, or the log is refused; items that no bundle knows stay, for they
happened, and no policy can have shown them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from features import manifest
from features.errors import InputError
from features.events import Part, RawLog, validate
from features.examples import Examples


@dataclass(frozen=True)
class Tail:
    """A log to replay."""

    events: pl.DataFrame
    """`user_id, item_id, timestamp`, any of `action, value`, context columns; in order."""
    quarantine: pl.DataFrame
    """Refused rows as text, with `reason`."""
    counts: dict[str, Any]
    """`events`, `quarantined`, `reasons`, `out_of_order`, `users`, `first`, `last`."""
    source: str
    has_clock: bool = True


def of_split(examples: Path) -> Tail:
    """The interactions of the test part of a split."""
    facts = manifest.read(examples.parent) or {}
    rows = facts.get("rows", {})
    events = Examples.open(examples).interactions(2)
    events = events.drop([name for name in _CODES if name in events.columns])
    counts = {
        "quarantined": rows.get("quarantined", 0),
        "reasons": rows.get("reasons", {}),
        "out_of_order": 0,
    }
    return Tail(
        events,
        pl.DataFrame(),
        counts | _described(events),
        facts.get("source", str(examples)),
        facts.get("has_clock", True),
    )


def of_files(log: RawLog, *, refuse_disorder: bool) -> Tail:
    """A log of its own.

    Raises:
        InputError: no row can be used, or rows are out of order where that is refused.
    """
    late = 0

    def counted(part: Part) -> Part:
        def read() -> pl.DataFrame:
            nonlocal late
            table = part.read()
            if "timestamp" in table.columns and table["timestamp"].dtype.is_numeric():
                late += int((table["timestamp"] < table["timestamp"].cum_max()).fill_null(False).sum())
            return table

        return replace(part, read=read)

    valid = validate(replace(log, parts=[counted(part) for part in log.parts]))
    if late and refuse_disorder:
        raise InputError(
            f"{log.source}: {late} of {valid.events.height} rows are earlier than a row before them; sort the log, or "
            "set replay.disorder = 'sort'"
        )
    reasons = valid.quarantine["reason"].value_counts().sort("reason").rows() if valid.quarantine.height else []
    counts = {"quarantined": valid.quarantine.height, "reasons": dict(reasons), "out_of_order": late}
    events = valid.events.drop("row")
    return Tail(events, valid.quarantine, counts | _described(events), log.source, log.has_clock)


def _described(events: pl.DataFrame) -> dict[str, Any]:
    return {
        "events": events.height,
        "users": events["user_id"].n_unique(),
        "first": events["timestamp"].min(),
        "last": events["timestamp"].max(),
    }


_CODES = ("row", "part", "interaction", "positive", "user_code", "item_code", "user_index", "item_index")
"""Columns that `prepare` has added."""
