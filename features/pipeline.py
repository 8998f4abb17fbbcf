"""Events → examples: validate, fold in time, split, fit, write.

`<out>/` holds what is true of the log however it is split, part by part (features.fold):
    log/00000.parquet, …               the canonical events, with codes of people and items
    frames/00000.parquet, …            the request frame: what was known just before each row, and its label
    quarantine/00000.parquet, …        refused rows with their reasons
    items.parquet, users.parquet       the canonical tables: row i is code i
    state/                             what the next part needs to know
and for each split `<out>/<split>/`
    part.npy                           the part (0, 1, 2) of each row of the log
    items.parquet, users.parquet       the vocabularies: row i is index i
    item_index.npy, user_index.npy     the index of each code
    sequences/{train,valid,test}.parquet   histories for the retriever
    sequences/known.parquet            those of training and validation together
    snapshot/                          what the online side knows when the test part begins
    snapshot_train/                    likewise when the validation part begins, where features ask what is retrieved
    schema.json, transforms.json, item_features.arrow, user_features.arrow   the fitted encoder
`features.examples` reads them. The manifest's counts add up.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features import distributed
from features._arrow import Writer
from features.counters import BUILT_IN, Counter, CounterTable
from features.encoder import Encoder
from features.errors import InputError
from features.events import RawLog, nothing_valid
from features.examples import BLOCKS, ITEMS, PART, USERS, Frames, Vocabulary, with_unknown
from features.fold import Plan, Rows, State, context_columns, happenings
from features.folding import PLACES, Folder
from features.labels import Label, Rules, Task
from features.manifest import fingerprint, finished_directory, write_json
from features.placing import resolve
from features.schema import FeatureSpec
from features.settings import Settings
from features.splits import Log, by_time, leave_one_out, next_items, windows

Split = Literal["leave_one_out", "time"]
Engine = Literal["local", "ray"]


class Config(Settings):
    """The section [prepare]."""

    splits: tuple[Split, ...] = ("leave_one_out", "time")
    """Which splits to make; models are trained and bundles exported for each."""
    valid_share: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of rows in the validation part of the split by time."""
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of rows in the test part of the split by time."""
    history_actions: tuple[str, ...] = ()
    """Actions that count as interactions, in histories and counters; empty: all."""
    max_history: int = Field(default=50, gt=0)
    """Interactions that the retriever sees at once."""
    ranker_history: int = Field(default=20, gt=0)
    """Interactions in the ranker's `request.history`."""
    retain: int = Field(default=1000, gt=0)
    """Interactions that a person's online history holds; what is older is no longer known to have been seen."""
    counters: tuple[Counter, ...] = ()
    """What is counted beside the events and positives of every user and item: [[prepare.counters]]."""
    unknown_ids: Literal["keep", "quarantine"] = "keep"
    """What to do with events of items or users that their table, where there is one, does not describe."""
    label: Label = Label(at_least=4.0)
    """What the ranker predicts."""
    tasks: tuple[Task, ...] = ()
    """What it predicts beside that: [[prepare.tasks]]."""
    seed: int = 0
    """Seed of the sampled negatives."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if not self.splits:
            raise ValueError("splits is empty; name leave_one_out, time or both")
        if self.retain < max(self.max_history, self.ranker_history):
            raise ValueError(
                f"retain = {self.retain} is less than max_history = {self.max_history} or ranker_history = "
                f"{self.ranker_history}: the online side would see less than the models were trained on; raise retain"
            )
        if self.label.actions and self.history_actions and not set(self.label.actions) & set(self.history_actions):
            raise ValueError(
                f"label.actions = {list(self.label.actions)} are none of history_actions, so that no counter would "
                "ever see a positive; add them to history_actions"
            )
        if self.tasks and self.label.negatives:
            raise ValueError(
                f"label.negatives = {self.label.negatives} are items of which no outcome is known, and tasks predict "
                "outcomes; remove one"
            )
        names = [self.label.name, *(task.name for task in self.tasks)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tasks: the name {twice[0]!r} is used twice (label.name is one of them); rename one")
        names = [counter.name for counter in (*BUILT_IN, *self.counters)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"counters: the name {twice[0]!r} is used twice (user and item are built in); rename one")
        return self

    @property
    def outcomes(self) -> frozenset[str]:
        """Columns that tasks predict."""
        return frozenset(task.source for task in self.tasks)

    @property
    def rules(self) -> Rules:
        """What counts as an interaction and as a positive."""
        return Rules(self.label, self.history_actions, self.tasks)


def prepare(
    log: RawLog,
    config: Config,
    specs: tuple[FeatureSpec, ...],
    out: Path,
    manifest: dict[str, Any],
    *,
    inputs: dict[str, str] | None = None,
    engine: Engine = "local",
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the examples of every split to `out`, whole or not at all; adds counts to `manifest`.

    Where `out` holds a finished beginning of the same log, made with the same settings, only the parts that follow are
    read, as long as the item and user tables still say the same of whom that beginning names. The result is that of
    preparing the whole log at once.

    Args:
        log: what to prepare.
        config: how.
        specs: the declared features.
        out: a directory; what was there before is replaced.
        manifest: what the caller wants to be said beside the counts; its `settings` tell whether `out` can be extended.
        inputs: path → fingerprint of the files that the log is read from.
        engine: `local`: one part after the other in this process; `ray`: side by side, by Ray Data.
        report: told what is being done, a line each.

    Raises:
        InputError: the log does not suit the config, the features or a split; says which column or field and why.
    """
    if not log.has_clock:
        if "time" in config.splits:
            raise InputError(f"{log.source} has no times, only positions; set prepare.splits = ['leave_one_out']")
        timed = [counter.name for counter in config.counters if not counter.timeless]
        if timed:
            raise InputError(f"{log.source} has no times; counter {timed[0]} can have no window and no half_life")
    _check_tables(log)
    _check_outcomes(config.tasks, specs)
    sources = (source for spec in specs for source in (spec.source, spec.weights or "", *_parameters(spec)))
    plan = Plan.of(
        config.counters, sources, config.ranker_history, config.label.negatives, config.seed, config.outcomes
    )
    of_log = of_rows(specs)
    folder = Folder(log, plan, config.rules, of_log, only_described=config.unknown_ids == "quarantine")
    inputs = inputs or {}
    with finished_directory(out, manifest) as directory:
        for name in PLACES:
            (directory / name).mkdir()
        done = folder.resume(out, directory, manifest, inputs) if engine == "local" else []
        if done:
            report(f"  {len(done)} parts of the log are prepared already")
        if engine == "ray":
            state, parts = distributed.fold(folder, directory, report)
        else:
            state, parts = folder.fold(directory, done, report)
        for entry in parts[len(done) :]:
            entry["inputs"] = [inputs.get(str(path), "") for path in entry.pop("paths")]
        if not any(entry["valid"] for entry in parts):
            refused = [pl.read_parquet(path) for path in sorted((directory / "quarantine").iterdir())]
            raise nothing_valid(log, sum(entry["read"] for entry in parts), refused)
        config.rules.require_matches(parts)
        state.save(directory / "state")
        state.tables = []  # They have been saved, and the snapshots of the splits count their own.
        tables = {"items": state.items.described(), "users": state.users.described()}
        for name, table in tables.items():
            table.write_parquet(directory / f"{name}.parquet")
        manifest["parts"] = parts
        manifest["let_through"] = folder.let_through
        manifest["rows"] = {
            **{name: sum(entry[name] for entry in parts) for name in ("read", "valid", "quarantined", "interactions")},
            "reasons": _added(entry["reasons"] for entry in parts),
            "users": len(state.users),
            "items": tables["items"].height,
            "unknown_users": int((~state.users.is_described()).sum()) if log.users is not None else 0,
            "unknown_items": int((~state.items.is_described()).sum()) if log.items is not None else 0,
        }
        splits: dict[str, dict[str, Any]] = {}
        for split in config.splits:
            report(f"  split {split}")
            (directory / split).mkdir()
            splits[split] = _write_split(split, state, tables, parts, config, specs, directory)
        manifest["splits"] = splits
        manifest["content"] = fingerprint(
            [entry["frame"] for entry in parts], [facts["schema"] for facts in splits.values()]
        )


def of_rows(specs: tuple[FeatureSpec, ...]) -> tuple[FeatureSpec, ...]:
    """The features that a row of the log has.

    Raises:
        InputError: there are none.
    """
    found = tuple(spec for spec in specs if not spec.retrieved)
    if not found:
        raise InputError("features: all are of what was retrieved; declare one of a user, an item or a request too")
    return found


def _check_outcomes(tasks: tuple[Task, ...], specs: tuple[FeatureSpec, ...]) -> None:
    for task in tasks:
        for spec in specs:
            if task.source in (spec.source.split(".")[-1], *(name.split(".")[-1] for name in _parameters(spec))):
                raise InputError(
                    f"feature {spec.name}: '{task.source}' is what task {task.name} predicts, which a request does "
                    "not know; remove the feature or the task"
                )


def _parameters(spec: FeatureSpec) -> list[str]:
    """Whatever in a feature's parameters might name a column."""
    return [value for value in spec.params.values() if isinstance(value, str)]


def _check_tables(log: RawLog) -> None:
    for name, table in (("item", log.items), ("user", log.users)):
        if table is not None and "index" in table.columns:
            raise InputError(
                f"{log.source}: the {name} table has a column 'index', a name that the pipeline gives to a column of "
                "its own; rename it"
            )


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _write_split(
    split: Split,
    state: State,
    tables: dict[str, pl.DataFrame],
    parts: list[dict[str, Any]],
    config: Config,
    specs: tuple[FeatureSpec, ...],
    directory: Path,
) -> dict[str, Any]:
    out, of_log = directory / split, of_rows(specs)
    log = Log(sorted((directory / "log").iterdir()), sum(entry["valid"] for entry in parts))
    part = leave_one_out(log) if split == "leave_one_out" else by_time(log, config.valid_share, config.test_share)
    np.save(out / PART, part)
    # People are known from the training part. The catalogue is what the source describes and what happened in time:
    # a split by time must not know an item before its first event, where only events tell of it.
    last = 3 if split == "leave_one_out" else 2
    seen_user = np.zeros(tables["users"].height, dtype=bool)
    seen_item = np.zeros(tables["items"].height, dtype=bool)
    events, interactions = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for table in log.tables("row", "user_code", "item_code", "interaction"):
        of = part[table["row"].to_numpy()]
        user, item = table["user_code"].to_numpy(), table["item_code"].to_numpy()
        interaction = table["interaction"].to_numpy()
        seen_user[user[of == 0]] = True
        seen_item[item[of < last]] = True
        events += np.bincount(of, minlength=3)
        interactions += np.bincount(of[interaction], minlength=3)
    if not interactions[0] or not interactions[2]:
        raise InputError(
            f"split {split}: no interactions in the training or the test part; use a longer log or another split"
        )
    seen_item |= tables["items"]["item_id"].is_in(state.items.table["item_id"].implode()).to_numpy()
    vocabulary = Vocabulary(_numbered(seen_user), _numbered(seen_item))
    np.save(out / USERS, vocabulary.user)
    np.save(out / ITEMS, vocabulary.item)
    users, items = with_unknown(tables["users"].filter(seen_user)), with_unknown(tables["items"].filter(seen_item))
    users.write_parquet(out / "users.parquet")
    items.write_parquet(out / "items.parquet")

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(_write_sequences, log, part, vocabulary, state.actions, config, out)
        keeping = pool.submit(_snapshot, log, part, 2, state, config, out / "snapshot")
        if len(of_log) < len(specs):
            _snapshot(log, part, 1, state, config, out / "snapshot_train")
        frames = Frames(sorted((directory / "frames").iterdir()), part, vocabulary, config.outcomes)
        features = resolve(of_log, items.schema, users.schema, frames.schema)
        requests = frames.sample(sorted({name for feature in features for name in feature.requested} | config.outcomes))
        encoder = Encoder.fit(of_log, config.label.name, items, users, requests, frames.counted, config.tasks)
        encoder.save(out)
        write_json(out / "actions.json", {"actions": state.actions})
        blocks, positives = frames.blocks()
        np.save(out / BLOCKS, blocks)
        sequences = writing.result()
        keeping.result()
    return {
        "users": users.height - 1,
        "items": items.height - 1,
        "schema": encoder.schema.fingerprint,
        **{
            name: {
                "events": int(events[number]),
                "sequences": sequences[number],
                "examples": int(blocks[:, 3 + number].sum()),
                "positives": int(positives[number]),
            }
            for number, name in enumerate(NAMES)
        },
    }


def _numbered(seen: np.ndarray) -> np.ndarray:
    return np.where(seen, np.cumsum(seen), 0).astype(np.int32)


def _write_sequences(
    log: Log, part: np.ndarray, vocabulary: Vocabulary, actions: list[str], config: Config, out: Path
) -> list[int]:
    """Histories of training, questions of validation and test; how many of each."""
    (out / "sequences").mkdir()
    columns = list(pl.read_parquet_schema(log.paths[0]))
    acted = ["action"] if "action" in columns else []
    code = pl.lit(-1, dtype=pl.Int16)
    if acted:
        known = pl.Series(actions, dtype=pl.String)
        code = pl.col("action").replace_strict(known, pl.Series(range(len(actions)), dtype=pl.Int16), default=-1)
    with ExitStack() as files:
        writers = {
            name: files.enter_context(Writer(out / "sequences" / f"{name}.parquet")) for name in (*NAMES, "known")
        }
        names = dict.fromkeys(("user_id", "item_id", "item_code", "timestamp", *context_columns(columns), *acted))
        for shard in log.shards(*names):
            seen = shard.with_columns(pl.Series("part", part[shard["row"].to_numpy()]), code.alias("action_code"))
            seen = vocabulary.indexed(seen).drop("item_code", *acted)
            for last, name in enumerate(("train", "known")):
                mine = seen.filter((pl.col("part") <= last) & (pl.col("user_index") > 0) & (pl.col("item_index") > 0))
                writers[name].write(windows(mine, config.max_history))
            for number, name in enumerate(NAMES[1:], start=1):
                writers[name].write(next_items(seen.filter(pl.col("part") <= number), number, config.max_history))
    return [writers[name].rows for name in NAMES]


def _snapshot(log: Log, part: np.ndarray, begins: int, state: State, config: Config, out: Path) -> None:
    """What the online side knows when a part begins, as `features.online` keeps it.

    users.parquet: the last interactions of each person. counters.parquet: the counters by key and bucket.
    items.parquet: interactions of each item. described_{users,items}.parquet: what counters count by.
    """
    out.mkdir()
    fields = [
        name for name in ("item_id", "timestamp", "action", "value") if name in pl.read_parquet_schema(log.paths[0])
    ]
    with Writer(out / "users.parquet") as writer:
        for shard in log.shards("user_id", "positive", *fields):
            known = shard.filter(pl.Series(part[shard["row"].to_numpy()] < begins))
            writer.write(
                known.group_by("user_id", maintain_order=True).agg(
                    pl.col(name).tail(config.retain) for name in (*fields, "positive")
                )
            )
    tables = [CounterTable(counter) for counter in state.plan.counters]
    item_counts = np.zeros((2, len(state.items)), dtype=np.int64)
    for events in log.tables("row", "user_code", "item_code", "timestamp", "interaction", "positive"):
        known = events.filter(pl.col("interaction") & pl.Series(part[events["row"].to_numpy()] < begins))
        if not known.height:
            continue
        item = known["item_code"].to_numpy()
        item_counts[0] += np.bincount(item, minlength=len(state.items))
        item_counts[1] += np.bincount(item[known["positive"].to_numpy()], minlength=len(state.items))
        rows = Rows.of(known, np.full(known.height, -1, dtype=np.int16))
        newest = int(rows.timestamp[-1])
        for table, delta in zip(tables, happenings(state.plan, rows, state.users, state.items), strict=True):
            table.add(delta, int(table.counter.bucket(np.array(newest))))
    pl.concat([table.frame() for table in tables]).write_parquet(out / "counters.parquet")
    pl.DataFrame(
        {
            "item_id": state.items.ids,
            "events": item_counts[0],
            "positives": item_counts[1],
        }
    ).filter(pl.col("events") > 0).write_parquet(out / "items.parquet")
    for entities in (state.users, state.items):
        columns = sorted(state.plan.counted(entities.name))
        entities.table.select(entities.key, *columns).write_parquet(out / f"described_{entities.name}s.parquet")


NAMES = ("train", "valid", "test")
"""The parts of a split in order; a part sees itself and the parts before it."""
