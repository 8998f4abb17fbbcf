"""Parts of a log that are judged apart: by time, by people's activity, by how new items are, by category, by group."""

import datetime
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.errors import InputError
from recsys.replay.world import DAY_MS, World

MOST_PERIODS = 60
"""Points of a plot in time; a longer log is shown by weeks or months."""

CATEGORIES = 12
"""Categories that are shown."""

ACTIVITY = {"no history": 0, "1 to 9": 1, "10 to 49": 10, "50 to 199": 50, "200 and more": 200}
"""Interactions of a person before the event, from so many on."""

NEWNESS = {"never met": 0, "met 1 to 9 times": 1, "10 to 99": 10, "100 to 999": 100, "1,000 and more": 1000}
"""How often the event's item had been met by anybody."""

AGES = {"up to a day": 0, "up to a week": 1, "up to 90 days": 7, "longer": 90}
"""Days since the item was first met by anybody."""


@dataclass(frozen=True)
class Segment:
    """Some of the events."""

    by: str
    name: str
    events_E: np.ndarray
    """bool"""


def segments(world: World, groups: tuple[str, ...] | None) -> list[Segment]:
    """All that are looked at.

    Raises:
        InputError: a group that is no attribute of people.
    """
    found = banded("activity", world.active_before_E, ACTIVITY)
    found += banded("item_met", world.met_before_E, NEWNESS)
    if world.has_clock:
        found += [Segment("item_age", "first time", np.isnan(world.age_days_E))]
        found += banded("item_age", world.age_days_E, AGES)
        found += [Segment("period", name, events) for name, events in periods(world.log["timestamp"])]
    category_IG, names = world.categories
    for number, name in enumerate(names[:CATEGORIES]):
        found.append(Segment("category", name, category_IG[world.item_E, number] > 0))
    for column in group_columns(world.people, groups):
        values = world.people[column].cast(pl.String)
        for value in sorted(values.drop_nulls().unique().to_list()):
            found.append(Segment(column, value, (values == value).fill_null(False).to_numpy()[world.user_E]))
    return [segment for segment in found if segment.events_E.any()]


def banded(by: str, number_E: np.ndarray, bands: dict[str, int]) -> list[Segment]:
    """Segments by where a number lies; NaN is in none."""
    edges = [*bands.values(), np.inf]
    return [
        Segment(by, name, (number_E >= low) & (number_E < high))
        for name, low, high in zip(bands, edges[:-1], edges[1:], strict=True)
    ]


def group_columns(people: pl.DataFrame, groups: tuple[str, ...] | None) -> list[str]:
    """Attributes whose values make groups."""
    own = [name for name in people.columns if name not in ("user", "user_id")]
    if groups is None:
        plain = [name for name in own if not people.schema[name].is_nested() and not people.schema[name].is_float()]
        return [name for name in plain if 2 <= people[name].drop_nulls().n_unique() <= 12]
    for name in groups:
        if name not in own:
            raise InputError(
                f"replay.groups: {name!r} is no attribute of people (known: {', '.join(own) or 'none'}); take it out"
            )
    return list(groups)


def periods(times: pl.Series) -> list[tuple[str, np.ndarray]]:
    """Days, or weeks, or months: the shortest of which there are few enough; each by its first day."""
    day = times // DAY_MS
    date = pl.from_epoch(day.cast(pl.Int32), time_unit="d")
    for every in ("1d", "1w", "1mo", "1y"):
        first = date.dt.truncate(every)
        if first.n_unique() <= MOST_PERIODS or every == "1y":
            break
    return [(value.isoformat(), (first == value).to_numpy()) for value in first.unique().sort().to_list()]


def days(times: pl.Series) -> list[tuple[str, np.ndarray]]:
    """Every day that has events, with the numbers of these."""
    day = (times // DAY_MS).to_numpy()
    order = np.argsort(day, kind="stable")
    values, first = np.unique(day[order], return_index=True)
    return [
        (datetime.datetime.fromtimestamp(int(value) * DAY_MS / 1000, tz=datetime.UTC).date().isoformat(), events)
        for value, events in zip(values, np.split(order, first[1:]), strict=True)
    ]
