"""The same fold on Ray Data: the parts of a log side by side, on one machine or many.

Three steps, of which the middle one alone is in one place:

1. every part, anywhere: read, validate, number its own people and items, count what happened by key;
2. the driver, part after part: give people and items their lasting codes, and lay aside for each part what was known
   of its people and keys before it;
3. every part, anywhere: answer its rows from that, and write.

What is laid aside is as large as the distinct people and keys of a part; events never pass through the driver. The
files are those that one process writes, byte by byte. Ray declares few of its types, so the strict checks of this
package end here.
"""
# pyright: basic

import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.counters import Delta
from features.errors import InputError
from features.events import Part, RawLog, Validator, nothing_valid
from features.fold import Plan, Prior, Rows, State, done, frame, groupings, happenings, people_of
from features.folding import Folder, write_part
from features.histories import Interactions
from features.labels import Rules


@dataclass(frozen=True)
class _Task:
    """What a worker needs to know of the log and the run; the same for all parts."""

    log: RawLog
    parts: list[Part]
    plan: Plan
    rules: Rules
    tables: dict[str, pl.DataFrame]
    known: dict[str, pl.Series]
    types: dict[str, pl.DataType]
    scratch: Path
    directory: Path


@dataclass(frozen=True)
class _Summary:
    """What the driver is told of a part."""

    number: int
    users: pl.Series
    """In the order of their first event."""
    items: pl.Series
    actions: list[str]
    keys: list[np.ndarray]
    """Of each counter, the keys of the part's rows, in the order of its groupings."""
    happenings: list[Delta]
    done: Interactions
    """Of each person, in the order of `people`, what they did; items and actions by the part's own numbers."""
    people: np.ndarray
    """The person of each group of rows, by the part's own numbers."""
    rows: int
    first_ms: int
    last_ms: int
    newest_ms: int


@dataclass(frozen=True)
class _Answer:
    """What a part is told by the driver."""

    first_row: int
    user_code: np.ndarray
    item_code: np.ndarray
    action_code: np.ndarray
    prior: Prior


def fold(folder: Folder, directory: Path, report: Callable[[str], None]) -> tuple[State, list[dict[str, Any]]]:
    """Do what `Folder.fold` does, on a Ray cluster; where none is running, one is started on this machine.

    The log's files and `directory` must be at the same place on every machine of the cluster.

    Raises:
        InputError: as `Folder.fold`; or the log is not in files, or negatives are sampled.
    """
    import ray
    import ray.data

    parts = list(folder.log.parts)
    if not all(part.paths for part in parts):
        raise InputError(f"{folder.log.source}: is not read from files; --engine ray prepares dataset.kind = 'files'")
    if folder.plan.negatives:
        raise InputError("prepare.label.negatives are drawn part after part; leave --engine ray out, or set actions")
    # The first part decides the types, and a rehearsal tells early what cannot work.
    events = pl.DataFrame()
    for part in parts:
        events, _ = folder.validated(part)
        if events.height:
            break
    if not events.height:
        raise nothing_valid(folder.log, 0, [])
    state = folder.begin(directory / "state", events, resumed=False)
    scratch = directory / "scratch"
    scratch.mkdir()
    log = RawLog(parts=(), source=folder.log.source, has_clock=folder.log.has_clock)
    task = _Task(
        log,
        parts,
        folder.plan,
        folder.rules,
        folder.tables,
        folder.validator.known,
        folder.validator.types,
        scratch.resolve(),
        directory.resolve(),
    )
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        shared = ray.put(task)
        numbered = [{"number": number} for number in range(len(parts))]
        for row in ray.data.from_items(numbered).map(partial(_summarise, shared)).iter_rows():
            if row["error"]:
                raise InputError(row["error"])
        last_ms: int | None = None
        rows = 0
        for number, part in enumerate(parts):
            summary: _Summary = _load(scratch / f"summary-{number}")
            if last_ms is not None and summary.rows and summary.first_ms < last_ms:
                raise InputError(
                    f"{part.name}: begins before the part before it ends; --engine ray needs files that do not overlap "
                    "in time, so prepare this log without it"
                )
            answer = _answered(state, summary, rows)
            _save(scratch / f"answer-{number}", answer)
            rows += summary.rows
            last_ms = summary.last_ms if summary.rows else last_ms
        report(f"  {rows:,} events, {len(state.users):,} people and {len(state.items):,} items in {len(parts)} parts")
        ray.data.from_items(numbered).map(partial(_written, shared)).materialize()
        entries = [_load(scratch / f"entry-{number}") for number in range(len(parts))]
    finally:
        if started:
            ray.shutdown()
    shutil.rmtree(scratch)
    return state, entries


def _answered(state: State, summary: _Summary, first_row: int) -> _Answer:
    """Lay aside what was known before a part, then take the part in."""
    user_code, item_code = state.users.add(summary.users), state.items.add(summary.items)
    for action in summary.actions:
        if action not in state.actions:
            state.actions.append(action)
    action_code = np.array([state.actions.index(action) for action in summary.actions] + [-1], dtype=np.int16)
    people = user_code[summary.people]
    prior = Prior(
        [table.take(keys) for table, keys in zip(state.tables, summary.keys, strict=True)],
        state.histories.take(people),
    )
    done = summary.done
    lasting = Interactions(
        done.lengths, item_code[done.item].astype(np.int32), done.timestamp, action_code[done.action]
    )
    if summary.rows:
        state.learn(summary.happenings, people, prior.past.followed_by(lasting), summary.newest_ms)
    return _Answer(first_row, user_code, item_code, action_code, prior)


def _summarise(shared: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Step 1 of one part."""
    import ray

    task: _Task = ray.get(shared)
    number, part = row["number"], task.parts[row["number"]]
    try:
        _summarise_part(task, number, part)
    except InputError as error:
        return {"number": number, "error": str(error)}
    return {"number": number, "error": ""}


def _summarise_part(task: _Task, number: int, part: Part) -> None:
    events, refused = _validated(task, part)
    state = State.empty(task.plan, task.tables["user"], task.tables["item"])
    users, items = state.users, state.items
    log = state.code(events)
    rows = Rows.of(log, state.action_codes(log))
    grouped = groupings(task.plan, rows, users, items)
    summary = _Summary(
        number=number,
        users=users.ids,
        items=items.ids,
        actions=state.actions,
        keys=[grouping.key_G for grouping in grouped],
        happenings=happenings(task.plan, rows, users, items),
        done=done(rows, grouped[0], rows.item).last(task.plan.history),
        people=people_of(rows, grouped[0]),
        rows=log.height,
        first_ms=int(log["timestamp"][0]) if log.height else 0,
        last_ms=int(log["timestamp"][-1]) if log.height else 0,
        newest_ms=int(rows.timestamp.max(initial=0)),
    )
    log.write_ipc(task.scratch / f"log-{number}")
    refused.write_ipc(task.scratch / f"refused-{number}")
    _save(task.scratch / f"summary-{number}", summary)


def _written(shared: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Step 3 of one part."""
    import ray

    task: _Task = ray.get(shared)
    number, part = row["number"], task.parts[row["number"]]
    answer: _Answer = _load(task.scratch / f"answer-{number}")
    log = pl.read_ipc(task.scratch / f"log-{number}")
    refused = pl.read_ipc(task.scratch / f"refused-{number}")
    if not log.height:
        entry = write_part(task.directory, number, part, None, None, refused)
    else:
        state = State.empty(task.plan, task.tables["user"], task.tables["item"])
        log = state.code(log.with_columns(pl.col("row") + answer.first_row))
        own = Rows.of(log, answer.action_code[state.action_codes(log)])
        grouped = groupings(task.plan, own, state.users, state.items)
        user, item = answer.user_code[own.user], answer.item_code[own.item]
        known = frame(task.plan, log, own, grouped, answer.prior, user, item)
        log = log.with_columns(pl.Series("user_code", user), pl.Series("item_code", item))
        entry = write_part(task.directory, number, part, log, known, refused)
    _save(task.scratch / f"entry-{number}", entry)
    return {"number": number}


def _validated(task: _Task, part: Part) -> tuple[pl.DataFrame, pl.DataFrame]:
    validator = Validator(task.log, known=task.known, types=task.types)
    events, refused = validator.part(part)
    return task.rules.mark(events), refused


def _save(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value, protocol=5))


def _load(path: Path) -> Any:
    return pickle.loads(path.read_bytes())
