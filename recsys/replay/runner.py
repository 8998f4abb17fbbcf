"""Replay a log in time order: ask for a feed, let the event happen; what was shown is written stretch by stretch.

Stretches are the unit of work and of what survives: each is a Parquet file that is written aside and renamed, so that
a replay that was killed goes on where it stopped. Every process applies everybody's events, for the counters of an
item depend on all people, and asks for feeds in its own stretches alone. What is asked together is the same however
many processes there are, and so are the answers, bit by bit.

<directory>/log.parquet       the events; row i is event i
<directory>/items.parquet     the items of all policies and of the log; row i is code i, 0 is none
<directory>/shown/00000.parquet …   of each stretch what each policy has shown
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import torch

from features import manifest
from features.errors import InputError
from features.manifest import fingerprint, write_json
from features.online import Event
from recsys.inference import Request, Response
from recsys.replay.logs import Tail
from recsys.replay.settings import Config

LOG, ITEMS, SHOWN, QUARANTINE = "log.parquet", "items.parquet", "shown", "quarantine.parquet"

STRETCHES = 16
"""Batches of a stretch."""


class Asked(Protocol):
    """Who answers requests and is told events: a recommender of this process, or a server."""

    @property
    def context_columns(self) -> Sequence[str]:
        """Columns of the context that its features read."""
        ...

    def feeds(self, events: Sequence[Event], requests: Sequence[Request]) -> list[Response]:
        """What each request is shown just before its event; then the events have happened."""
        ...

    def observe(self, events: Sequence[Event]) -> Any:
        """Events have happened."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


class Policy(Protocol):
    """What can be loaded by any process."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    @property
    def key(self) -> dict[str, Any]:
        """What its answers depend on."""
        ...

    def load(self) -> Asked:
        """Make it ready."""
        ...


@dataclass(frozen=True)
class Task:
    """What a process needs to know."""

    directory: Path
    policies: tuple[Policy, ...]
    k: int
    batch: int

    @property
    def rows(self) -> int:
        """Events of a stretch."""
        return self.batch * STRETCHES

    def stretches(self) -> int:
        """How many there are."""
        events = pl.scan_parquet(self.directory / LOG).select(pl.len()).collect().item()
        return -(-events // self.rows)

    def part(self, number: int) -> Path:
        """Where a stretch's file is."""
        return self.directory / SHOWN / f"{number:05}.parquet"

    def done(self) -> int:
        """Stretches that are finished."""
        return sum(1 for _ in (self.directory / SHOWN).glob("?????.parquet"))


def begin(
    directory: Path, tail: Tail, items: pl.DataFrame, policies: Sequence[Policy], config: Config, *, resume: bool
) -> Task:
    """Write what all processes read; what an earlier replay of the same has finished is kept.

    Args:
        directory: of the replay.
        tail: the log.
        items: the items of all policies, with `item_id`.
        policies: who is asked.
        config: how.
        resume: whether an earlier replay may be taken up.
    """
    events = tail.events if config.max_events is None else tail.events.head(config.max_events)
    if events.is_empty():
        raise InputError(f"{tail.source}: there is no event to replay; give another log")
    key = fingerprint(
        [policy.key for policy in policies],
        config.settled,
        events.height,
        events.hash_rows(seed=0).sum(),
        manifest.source_fingerprint(_SOURCES),
    )
    before = manifest.read(directory)
    if not resume or before is None or before["key"] != key:
        shutil.rmtree(directory / SHOWN, ignore_errors=True)
        (directory / SHOWN).mkdir(parents=True)
        events.write_parquet(directory / LOG)
        catalogue(items, events).write_parquet(directory / ITEMS)
        if tail.quarantine.height:
            tail.quarantine.write_parquet(directory / QUARANTINE)
        write_json(directory / manifest.MANIFEST, {"key": key, "source": tail.source})
    return Task(directory, tuple(policies), config.k, config.batch)


def catalogue(items: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Every item once: none, those of the policies, those that the log alone knows (`known` is false)."""
    known = items.unique("item_id", keep="first", maintain_order=True).with_columns(known=pl.lit(True))
    met = events.select(pl.col("item_id").unique(maintain_order=True))
    others = met.join(known, on="item_id", how="anti", maintain_order="left").with_columns(known=pl.lit(False))
    return pl.concat([known.clear(1), known, others], how="diagonal").with_columns(pl.col("known").fill_null(False))


def work(task: Task, worker: int, workers: int, advance: Callable[[int], None] = lambda done: None) -> None:
    """Ask for every feed of the stretches of one process that are not done yet.

    Args:
        task: the replay.
        worker: which of `workers`.
        workers: how many processes share the stretches.
        advance: told after each batch how many events are past.

    Raises:
        InputError: a policy does not fit the log.
    """
    # One request at a time is too little work to share between threads; waking them costs more than they bring.
    torch.set_num_threads(1)
    missing = [number for number in range(task.stretches()) if not task.part(number).exists()]
    own = set(missing[worker::workers])
    if not own:
        return
    log = pl.read_parquet(task.directory / LOG)
    code = {item: place for place, item in enumerate(pl.read_parquet(task.directory / ITEMS)["item_id"]) if place}
    asked = {policy.name: policy.load() for policy in task.policies}
    for name, policy in asked.items():
        require_context(name, policy, log.columns)
    for number in range(max(own) + 1):
        rows = log.slice(number * task.rows, task.rows)
        happened = events(rows)
        if number not in own:
            for policy in asked.values():
                policy.observe(happened)
            continue
        found: list[dict[str, Any]] = []
        for first, last in batches(len(happened), task.batch):
            batch = happened[first:last]
            shown = {
                name: policy.feeds(batch, requests(rows[first:last], batch, policy.context_columns, task.k))
                for name, policy in asked.items()
            }
            for place in range(len(batch)):
                entry: dict[str, Any] = {"event": number * task.rows + first + place}
                for name, responses in shown.items():
                    response = responses[place]
                    entry[f"{name}.items"] = [code[item.item_id] for item in response.items]
                    entry[f"{name}.popular"] = response.source == "popularity"
                    entry[f"{name}.ms"] = response.latency_ms if len(batch) == 1 else {}
                found.append(entry)
            advance(number * task.rows + last)
        write_part(task.part(number), found, list(asked))
    for policy in asked.values():
        policy.close()


def batches(events: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the batches of a stretch begin and end; of each `size` events the first is alone."""
    for first in range(0, events, size):
        yield first, first + 1
        if first + 1 < min(first + size, events):
            yield first + 1, min(first + size, events)


def write_part(path: Path, found: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Write a stretch whole or not at all; stages of latency become lists of names and of milliseconds."""
    columns: dict[str, pl.Series] = {"event": pl.Series([entry["event"] for entry in found], dtype=pl.Int64)}
    for name in names:
        columns[f"{name}.items"] = pl.Series([entry[f"{name}.items"] for entry in found], dtype=pl.List(pl.Int32))
        columns[f"{name}.popular"] = pl.Series([entry[f"{name}.popular"] for entry in found], dtype=pl.Boolean)
        stages = [entry[f"{name}.ms"] for entry in found]
        columns[f"{name}.stages"] = pl.Series([list(one) for one in stages], dtype=pl.List(pl.String))
        columns[f"{name}.ms"] = pl.Series([list(one.values()) for one in stages], dtype=pl.List(pl.Float64))
    aside = path.with_suffix(".unfinished")
    pl.DataFrame([series.alias(name) for name, series in columns.items()]).write_parquet(aside)
    aside.replace(path)


def require_context(name: str, policy: Asked, columns: Sequence[str]) -> None:
    """Refuse a log that lacks what a policy's features are made of."""
    missing = sorted(set(policy.context_columns) - set(columns))
    if missing:
        raise InputError(
            f"replay.policies.{name}: its features read the context column {missing[0]!r}, which the log does not "
            f"have (it has {', '.join(columns)}); give a log with it, or a bundle without such a feature"
        )


def requests(rows: pl.DataFrame, batch: Sequence[Event], context: Sequence[str], k: int) -> list[Request]:
    """The requests just before some events."""
    given = [name for name in context if name in rows.columns]
    contexts = rows.select(given).to_dicts() if given else [{} for _ in batch]
    return [
        Request(user_id=event.user_id, k=k, timestamp=event.timestamp, context=values)
        for event, values in zip(batch, contexts, strict=True)
    ]


def events(tail: pl.DataFrame) -> list[Event]:
    """The rows of a log as events."""
    columns = [name for name in ("user_id", "item_id", "timestamp", "action", "value") if name in tail.columns]
    rows = tail.select(pl.col(name).fill_null("") if name == "action" else name for name in columns)
    return [Event(**row) for row in rows.iter_rows(named=True)]


_SOURCES = (
    *("recsys/inference.py", "recsys/scorer.py", "recsys/blend.py", "recsys/index", "recsys/baselines", "features"),
    *("recsys/replay/in_order.py", "recsys/replay/runner.py", "recsys/replay/policies.py"),
)
"""Source whose change makes what was shown before something else."""
