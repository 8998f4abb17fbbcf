"""A log folded part by part: what was known just before each of its rows, and what is known after them.

`State` is all that a part needs to know of the parts before it, in memory that grows with people, items and open
buckets, not with events. A part is answered from its own rows and the state before it, so that parts may be answered
one after the other (`advance`), on the next day from a saved state, or side by side on a cluster
(`features.distributed`): every number is made of integers that add up in any order.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from features._arrow import list_series
from features._hash import splitmix64
from features.counters import (
    BUILT_IN,
    Axis,
    Counter,
    CounterTable,
    Delta,
    Grouping,
    as_of,
    group,
    happened,
    packed,
)
from features.entities import Entities
from features.errors import InputError
from features.events import DAY_MS, OPTIONAL, REQUIRED
from features.histories import HistoryTable, Interactions, Past, interactions_by
from features.online import Counts

DERIVED = ("row", "interaction", "positive", "user_code", "item_code")
"""Columns that the pipeline adds to the log."""

HISTORY_COLUMNS = ("history", "history_actions", "history_gaps", "history_recency")
"""What a request frame says of the last interactions, oldest first: items, numbers of actions, ms since each, and the
weight 1 / (1 + days since it) of each."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be known of each row."""

    counters: tuple[Counter, ...]
    """All of them, those built in first."""
    history: int
    """Interactions in `history`."""
    columns: frozenset[str]
    """Which of their columns, and of HISTORY_COLUMNS, are read."""
    negatives: int = 0
    """Items sampled beside each interaction."""
    seed: int = 0
    outcomes: frozenset[str] = frozenset()
    """Columns of the log that tasks predict."""

    @classmethod
    def of(
        cls,
        declared: tuple[Counter, ...],
        sources: Iterable[str],
        history: int,
        negatives: int,
        seed: int,
        outcomes: frozenset[str] = frozenset(),
    ) -> Self:
        """For the features whose sources these are."""
        columns = frozenset({"history", *(source.removeprefix("request.") for source in sources)})
        return cls(
            counters=(*BUILT_IN, *declared),
            history=history,
            columns=columns,
            negatives=negatives,
            seed=seed,
            outcomes=outcomes,
        )

    def counted(self, entity: str) -> set[str]:
        """Columns of the entity's table that something is counted by."""
        axes = (axis.partition(".") for counter in self.counters for axis in counter.by)
        return {column for name, _, column in axes if name == entity and column}


@dataclass(frozen=True)
class Rows:
    """Rows of a part in stable order, sampled ones before the interaction that they stand beside."""

    row: np.ndarray
    """int64: place in the log; equal for an interaction and its samples."""
    event: np.ndarray
    """int64: place in the part."""
    user: np.ndarray
    """int64: codes."""
    item: np.ndarray
    timestamp: np.ndarray
    interaction: np.ndarray
    """bool: what the rows after it know of."""
    positive: np.ndarray
    """bool"""
    action: np.ndarray
    """int16: codes; −1 where there is none."""

    @classmethod
    def of(cls, log: pl.DataFrame, action: np.ndarray) -> Self:
        """The events of a part."""
        return cls(
            row=log["row"].to_numpy(),
            event=np.arange(log.height),
            user=log["user_code"].to_numpy(),
            item=log["item_code"].to_numpy(),
            timestamp=log["timestamp"].to_numpy(),
            interaction=log["interaction"].to_numpy(),
            positive=log["positive"].to_numpy(),
            action=action,
        )

    @cached_property
    def weight(self) -> np.ndarray:
        """What each row adds to counters, packed."""
        return packed(self.interaction, self.interaction & self.positive)

    @property
    def interactions(self) -> "Rows":
        """Those of them that are interactions."""
        chosen = np.flatnonzero(self.interaction)
        return Rows(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @cached_property
    def runs(self) -> "Runs":
        """Consecutive rows of one person, among which nothing happens: they know the same of the person."""
        head = np.ones(len(self.row), dtype=bool)
        head[1:] = self.interaction[:-1]
        head[1:] |= self.user[1:] != self.user[:-1]
        head[1:] |= self.timestamp[1:] != self.timestamp[:-1]
        first = np.flatnonzero(head)
        last = np.append(first[1:], len(head))[: len(first)] - 1
        return Runs(
            last + 1 - first,
            self.user[first],
            self.item[last],
            self.timestamp[first],
            self.interaction[last],
            self.weight[last],
            self.action[last],
        )


@dataclass(frozen=True)
class Runs:
    """Rows that know the same of their person; what happens, happens in the last of them."""

    lengths: np.ndarray
    """int64: rows of each run."""
    user: np.ndarray
    """int64: codes."""
    item: np.ndarray
    """int64: code of the last row's item."""
    timestamp: np.ndarray
    interaction: np.ndarray
    """bool: whether the last row is one."""
    weight: np.ndarray
    """int64: what it adds, packed."""
    action: np.ndarray
    """int16: its action."""


def groupings(plan: Plan, rows: Rows, users: Entities, items: Entities) -> list[Grouping]:
    """The rows, or for counters of the person alone their runs, by the key of each counter; the first is by person."""
    sorted_by: dict[tuple[str, ...], Grouping] = {}
    found: list[Grouping] = []
    for counter in plan.counters:
        of: Rows | Runs = rows.runs if counter.personal else rows
        axes: list[Axis] = []
        for axis in counter.by:
            name, _, column = axis.partition(".")
            entities, codes = (users, of.user) if name == "user" else (items, of.item)
            axes.append(entities.axis(column or None, codes))
        if counter.by in sorted_by:
            found.append(sorted_by[counter.by].renamed(counter, tuple(axes)))
        else:
            sorted_by[counter.by] = group(counter, tuple(axes), len(of.user))
            found.append(sorted_by[counter.by])
    return found


def happenings(plan: Plan, rows: Rows, users: Entities, items: Entities) -> list[Delta]:
    """What the rows add to each counter."""
    only = rows.interactions
    found: list[Delta] = []
    for counter, grouping in zip(plan.counters, groupings(plan, only, users, items), strict=True):
        of: Rows | Runs = only.runs if counter.personal else only
        found.append(happened(grouping, counter.bucket(of.timestamp), of.weight))
    return found


def done(rows: Rows, grouping: Grouping, item: np.ndarray) -> Interactions:
    """The interactions of each person in `grouping`, that of the first counter, with the lasting codes of items."""
    runs = rows.runs
    return interactions_by(grouping, runs.interaction, (item[np.cumsum(runs.lengths) - 1], runs.timestamp, runs.action))


@dataclass(frozen=True)
class Prior:
    """What was known before a part, of the keys and people of its groupings."""

    counts: list[Counts]
    past: Interactions


def frame(
    plan: Plan,
    log: pl.DataFrame,
    rows: Rows,
    grouped: list[Grouping],
    prior: Prior,
    user: np.ndarray,
    item: np.ndarray,
) -> pl.DataFrame:
    """The request frame of a part: what was known just before each row.

    Columns: `row, user_code, item_code, timestamp, label`, the log's context columns, its `value` where that is a
    task's outcome, those of the counters, `user_last_timestamp`, and the plan's history columns, with codes for items
    and actions.

    Args:
        plan: what to look up.
        log: the part's events.
        rows: its rows.
        grouped: `groupings` of them.
        prior: what was known before.
        user: the lasting code of each row's person, where `rows.user` are codes of this part alone.
        item: the same for its item.
    """
    context = log.select(*context_columns(log.columns), *({"value"} & plan.outcomes))
    if context.width and plan.negatives:
        context = context[rows.event]
    runs = rows.runs

    def look_up(number: int) -> list[pl.Series]:
        counter, grouping = plan.counters[number], grouped[number]
        if not plan.columns.intersection(counter.columns):
            return []
        of: Rows | Runs = runs if counter.personal else rows
        totals = as_of(counter, grouping, counter.bucket(of.timestamp), of.weight, prior.counts[number])
        found: list[pl.Series] = []
        for name, total in zip(counter.columns, totals, strict=True):
            if name in plan.columns:
                value = counter.values(total)
                found.append(pl.Series(name, np.repeat(value, runs.lengths) if counter.personal else value))
        return found

    def look_back() -> list[pl.Series]:
        whole = prior.past.followed_by(done(rows, grouped[0], item))
        past = Past.of(grouped[0], runs.interaction, whole, prior.past.lengths).repeated(runs.lengths)
        found = [
            past.last_timestamp().alias("user_last_timestamp"),
            past.last(whole.item, plan.history).alias("history"),
        ]
        if "history_actions" in plan.columns:
            found.append(past.last(whole.action, plan.history).alias("history_actions"))
        if plan.columns & {"history_gaps", "history_recency"}:
            when = past.last(whole.timestamp, plan.history)
            lengths = when.list.len().to_numpy()
            flat = np.repeat(rows.timestamp, lengths) - when.explode(empty_as_null=False).to_numpy()
            offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            if "history_gaps" in plan.columns:
                found.append(list_series(flat, offsets).alias("history_gaps"))
            if "history_recency" in plan.columns:
                found.append(list_series(recency(flat), offsets).alias("history_recency"))
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        histories = pool.submit(look_back)
        counted = [column for columns in pool.map(look_up, range(len(plan.counters))) for column in columns]
    return pl.DataFrame(
        [
            pl.Series("row", rows.row),
            pl.Series("user_code", user, dtype=pl.Int32),
            pl.Series("item_code", item, dtype=pl.Int32),
            pl.Series("timestamp", rows.timestamp),
            pl.Series("label", rows.positive, dtype=pl.Float32),
            *context.get_columns(),
            *counted,
            *histories.result(),
        ]
    )


def recency(gaps: np.ndarray) -> np.ndarray:
    """The weight of what happened so many ms ago; float32."""
    return (1.0 / (1.0 + np.maximum(gaps, 0) / DAY_MS)).astype(np.float32)


def context_columns(columns: Sequence[str]) -> list[str]:
    """The log's own columns that a request knows: neither the key nor the outcome of an event."""
    return [name for name in columns if name not in {*REQUIRED, *OPTIONAL, *DERIVED}]


@dataclass
class State:
    """Everything that a log has told so far, as far as the rows to come need it."""

    plan: Plan
    users: Entities
    items: Entities
    histories: HistoryTable
    tables: list[CounterTable]
    actions: list[str] = field(default_factory=list)
    met: CounterTable | None = None
    """Which items each person has interacted with; kept where negatives are sampled."""

    @classmethod
    def empty(cls, plan: Plan, users: pl.DataFrame, items: pl.DataFrame) -> Self:
        """Nothing has happened; `users` and `items` are what is known of them from elsewhere."""
        return cls(
            plan=plan,
            users=Entities.of("user", users, plan.counted("user")),
            items=Entities.of("item", items, plan.counted("item")),
            histories=HistoryTable(plan.history),
            tables=[CounterTable(counter) for counter in plan.counters],
            met=CounterTable(_MET) if plan.negatives else None,
        )

    def code(self, events: pl.DataFrame) -> pl.DataFrame:
        """Events with the codes of their people and items; new ones are numbered in the order of their first event."""
        return events.with_columns(
            _coded(events["user_id"], self.users).alias("user_code"),
            _coded(events["item_id"], self.items).alias("item_code"),
        )

    def advance(self, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(log, request frame) of the next part, after which the state knows it.

        Args:
            events: valid rows with the bool columns `interaction` and `positive`.
        """
        items_before = len(self.items)
        log = self.code(events)
        rows = Rows.of(log, self.action_codes(log))
        if self.plan.negatives:
            rows = self._with_negatives(rows, items_before)
        grouped = groupings(self.plan, rows, self.users, self.items)
        people = people_of(rows, grouped[0])
        prior = Prior(
            [table.take(grouping.key_G) for table, grouping in zip(self.tables, grouped, strict=True)],
            self.histories.take(people),
        )
        known = frame(self.plan, log, rows, grouped, prior, rows.user, rows.item)
        past = prior.past.followed_by(done(rows, grouped[0], rows.item))
        news = happenings(self.plan, rows, self.users, self.items)
        self.learn(news, people, past, int(rows.timestamp.max(initial=0)))
        return log, known

    def learn(self, happenings: list[Delta], people: np.ndarray, past: Interactions, newest_ms: int) -> None:
        """Take in what happened in a part: new counts, and all that is known of the people in it."""
        for table, delta in zip(self.tables, happenings, strict=True):
            table.add(delta, int(table.counter.bucket(np.array(newest_ms))))
        self.histories.put(people, past)

    def action_codes(self, log: pl.DataFrame) -> np.ndarray:
        """The code of each row's action, −1 where it has none; int16."""
        if "action" not in log.columns:
            return np.full(log.height, -1, dtype=np.int16)
        for action in log["action"].unique(maintain_order=True).drop_nulls():
            if action not in self.actions:
                self.actions.append(action)
        if len(self.actions) > 2**15 - 1:
            raise InputError(f"the log has {len(self.actions)} different actions; map a column of kinds, not of texts")
        codes = log["action"].replace_strict(
            pl.Series(self.actions, dtype=pl.String), pl.Series(range(len(self.actions)), dtype=pl.Int16), default=-1
        )
        return codes.to_numpy()

    def _with_negatives(self, rows: Rows, items_before: int) -> Rows:
        """The interactions, each after its negatives.

        They are drawn uniformly from the items that the log had shown before and that the person had not interacted
        with before. Where a few draws find no such item, there are fewer.
        """
        assert self.met is not None
        count, done = self.plan.negatives, np.flatnonzero(rows.interaction)
        shown = np.maximum.accumulate(np.concatenate([[items_before], rows.item + 1]))[done]
        user, own, place = (np.repeat(values[done], count) for values in (rows.user, rows.item, rows.row))
        shown, at = np.repeat(shown, count), np.repeat(np.arange(len(done)), count)
        stream = splitmix64(
            place.astype(np.uint64) * np.uint64(count) + np.tile(np.arange(count), len(done)).astype(np.uint64)
        )
        stream ^= np.uint64(self.plan.seed * 0x9E3779B97F4A7C15 % 2**64)
        # When each pair of person and item first met, in this part.
        pair = rows.user[done] * len(self.items) + rows.item[done]
        pairs, first = np.unique(pair, return_index=True)
        drawn = np.full(len(own), -1)
        open_ = np.flatnonzero(shown > 0)
        for _ in range(_DRAWS):
            stream = splitmix64(stream)
            item = (stream[open_] % shown[open_].astype(np.uint64)).astype(np.int64)
            asked = user[open_] * len(self.items) + item
            near = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
            met = (pairs[near] == asked) & (first[near] < at[open_])
            key = _MET.key((self.users.hash_E[user[open_]], self.items.hash_E[item]))
            met |= self.met.index.find(key) >= 0
            good = ~met & (item != own[open_])
            drawn[open_[good]] = item[good]
            open_ = open_[~good]
            if not len(open_):
                break
        key = _MET.key((self.users.hash_E[pairs // len(self.items)], self.items.hash_E[pairs % len(self.items)]))
        self.met.index.add(key)
        found = np.flatnonzero(drawn >= 0)
        source = np.concatenate([done[at[found]], done])
        # Stable: samples come first in the concatenation, and so before their interaction.
        order = np.argsort(source, kind="stable")
        source, sampled = source[order], order < len(found)
        item = np.concatenate([drawn[found], rows.item[done]])[order]
        return Rows(
            row=rows.row[source],
            event=rows.event[source],
            user=rows.user[source],
            item=item,
            timestamp=rows.timestamp[source],
            interaction=~sampled,
            positive=rows.positive[source] & ~sampled,
            action=rows.action[source],
        )

    def save(self, directory: Path) -> None:
        """Write what `load` reads; makes the directory."""
        directory.mkdir()
        for entities in (self.users, self.items):
            entities.met().write_parquet(directory / f"{entities.name}s.parquet")
        self.histories.frame().write_parquet(directory / "histories.parquet")
        pl.DataFrame({"action": self.actions}, schema={"action": pl.String}).write_parquet(
            directory / "actions.parquet"
        )
        for table in self.tables:
            table.frame().write_parquet(directory / f"counter_{table.counter.name}.parquet")
        if self.met is not None:
            pl.DataFrame({"key": self.met.index.keys}).write_parquet(directory / "met.parquet")

    @classmethod
    def load(cls, directory: Path, plan: Plan, users: pl.DataFrame, items: pl.DataFrame) -> Self:
        """The state that was saved; the tables may have got new rows since, but tell the same of whom was met."""
        state = cls.empty(plan, users, items)
        for entities in (state.users, state.items):
            met = pl.read_parquet(directory / f"{entities.name}s.parquet")
            entities.add(met[entities.key])
            assert entities.met().equals(met), f"the {entities.name} table tells another story of those already met"
        state.histories = HistoryTable.load(plan.history, pl.read_parquet(directory / "histories.parquet"))
        state.actions = pl.read_parquet(directory / "actions.parquet")["action"].to_list()
        state.tables = [
            CounterTable.load(counter, pl.read_parquet(directory / f"counter_{counter.name}.parquet"))
            for counter in plan.counters
        ]
        if state.met is not None:
            state.met.index.add(pl.read_parquet(directory / "met.parquet")["key"].to_numpy())
        return state


_MET = Counter(name="met", by=("user", "item"))

_DRAWS = 20
"""Items drawn for a sample before it is given up."""


def _coded(ids: pl.Series, entities: Entities) -> pl.Series:
    distinct = ids.unique(maintain_order=True)
    code = pl.Series(entities.add(distinct), dtype=pl.Int64)
    return ids.replace_strict(distinct, code, return_dtype=pl.Int64)


def people_of(rows: Rows, grouping: Grouping) -> np.ndarray:
    """The person of each group of the first counter; [G]."""
    return rows.runs.user[grouping.order_M[grouping.start_G]]
