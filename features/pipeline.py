"""Events → examples: validate, split, look back in time, encode, write.

For each split `<out>/<split>/` holds
    sequences/{train,valid,test}.parquet   histories for the retriever
    ranking/{train,valid,test}.parquet     encoded examples for the ranker
    items.parquet, users.parquet           the vocabularies: row i is index i
    interactions.parquet                   the log with indices and the column `part` (0, 1, 2)
    snapshot/{users,items}.parquet         what the online side knows when the test part begins
    item_features.arrow, …                 the fitted encoder
and `<out>/` holds the canonical tables, the quarantine, and the manifest whose counts add up.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features.encoder import Encoder
from features.errors import InputError
from features.events import OPTIONAL, REQUIRED, RawLog, ValidLog, validate
from features.manifest import finished_directory
from features.schema import FeatureSpec
from features.settings import Settings
from features.temporal import PARTS, Timeline, by_time, leave_one_out, ragged

Split = Literal["leave_one_out", "time"]


class Label(Settings):
    """What the ranker predicts."""

    name: str = "like"
    """Name of the task."""
    actions: tuple[str, ...] = ()
    """Positive if the action is one of these."""
    at_least: float | None = None
    """Positive if the value is at least this."""
    negatives: int = Field(default=0, ge=0)
    """Items sampled uniformly as negatives beside each interaction; for logs that hold positives only."""

    @model_validator(mode="after")
    def _check(self) -> "Label":
        if sum((bool(self.actions), self.at_least is not None, self.negatives > 0)) != 1:
            raise ValueError(
                "set exactly one of actions, at_least (logs with feedback), negatives (logs of positives only)"
            )
        return self


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
    label: Label = Label(at_least=4.0)
    """What the ranker predicts."""
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
        return self


def prepare(log: RawLog, config: Config, specs: tuple[FeatureSpec, ...], out: Path, manifest: dict[str, Any]) -> None:
    """Write the examples of every split to `out`, whole or not at all; adds counts to `manifest`.

    Raises:
        InputError: the log does not suit the config, the features or a split; says which column or field and why.
    """
    _check_names(log)
    if not log.has_clock and "time" in config.splits:
        raise InputError(f"{log.source} has no times, only positions; set prepare.splits = ['leave_one_out']")
    valid = validate(log)
    events = _mark(valid.events, config).with_columns(
        _position_in("user_id", valid.users).alias("user_code"), _position_in("item_id", valid.items).alias("item_code")
    )
    with finished_directory(out, manifest) as directory:
        events.write_parquet(directory / "events.parquet")
        valid.items.write_parquet(directory / "items.parquet")
        valid.users.write_parquet(directory / "users.parquet")
        valid.quarantine.write_parquet(directory / "quarantine.parquet")
        manifest["rows"] = {
            "read": log.events.height,
            "valid": events.height,
            "quarantined": valid.quarantine.height,
            "reasons": dict(valid.quarantine.group_by("reason").len().sort("reason").iter_rows()),
            "interactions": int(events["interaction"].sum()),
            "users": valid.users.height,
            "items": valid.items.height,
        }
        manifest["splits"] = {}
        for split in config.splits:
            (directory / split).mkdir()
            manifest["splits"][split] = _write_split(split, valid, events, config, specs, directory / split)


_DERIVED = {
    *("row", "interaction", "positive", "part", "user_code", "item_code", "user_index", "item_index", "label"),
    *("user_events", "user_positives", "item_events", "item_positives", "user_last_timestamp", "history"),
}
"""Columns that the pipeline adds to events and requests."""


def _check_names(log: RawLog) -> None:
    tables = (("log", log.events, _DERIVED), ("item table", log.items, {"index"}), ("user table", log.users, {"index"}))
    for name, table, reserved in tables:
        taken = sorted(reserved.intersection(table.columns)) if table is not None else []
        if taken:
            raise InputError(
                f"{log.source}: the {name} has a column '{taken[0]}', a name that the pipeline gives to a column of "
                "its own; rename it"
            )


def _mark(events: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Add the bool columns `interaction` and `positive`."""
    label = config.label
    for field, is_set, column in (
        ("history_actions", bool(config.history_actions), "action"),
        ("label.actions", bool(label.actions), "action"),
        ("label.at_least", label.at_least is not None, "value"),
    ):
        if is_set and column not in events.columns:
            raise InputError(
                f"prepare.{field} needs the column '{column}', which the log does not have; map it or change {field}"
            )
    interaction = pl.col("action").is_in(config.history_actions) if config.history_actions else pl.lit(True)
    if label.actions:
        positive = pl.col("action").is_in(label.actions)
    elif label.at_least is not None:
        positive = pl.col("value") >= label.at_least
    else:
        positive = pl.lit(True)
    marked = events.with_columns(interaction=interaction.fill_null(False), positive=positive.fill_null(False))
    if not marked["interaction"].any():
        raise InputError(
            f"prepare.history_actions = {list(config.history_actions)} matches no row; use actions of the log"
        )
    if not marked["positive"].any():
        rule = f"actions = {list(label.actions)}" if label.actions else f"at_least = {label.at_least}"
        raise InputError(f"prepare.label.{rule} matches no row, so that nothing is positive; use values of the log")
    return marked


def _write_split(
    split: Split, log: ValidLog, events: pl.DataFrame, config: Config, specs: tuple[FeatureSpec, ...], out: Path
) -> dict[str, Any]:
    part = leave_one_out(events) if split == "leave_one_out" else by_time(events, config.valid_share, config.test_share)
    events = events.with_columns(part.alias("part"))
    train = events.filter(pl.col("part") == 0)
    if not {0, 2}.issubset(events.filter("interaction")["part"]):
        raise InputError(
            f"split {split}: no interactions in the training or the test part; use a longer log or another split"
        )
    # People are known from the training part. The catalogue is what the source describes and what happened in time:
    # a split by time must not know an item before its first event, where only events tell of it.
    users = _vocabulary(log.users, train["user_id"])
    items = _vocabulary(
        log.items, (events if split == "leave_one_out" else events.filter(pl.col("part") < 2))["item_id"]
    )
    users.write_parquet(out / "users.parquet")
    items.write_parquet(out / "items.parquet")
    events = events.with_columns(
        _index_of("user_id", users).alias("user_index"), _index_of("item_id", items).alias("item_index")
    )
    code_of_index = items.select(_position_in("item_id", log.items).fill_null(-1))["item_id"].to_numpy()
    (out / "sequences").mkdir()
    (out / "ranking").mkdir()
    counts: dict[str, Any] = {"users": users.height - 1, "items": items.height - 1}
    encoder: Encoder | None = None
    for number, name in enumerate(PARTS):
        seen = events.filter((pl.col("part") <= number) & pl.col("interaction"))
        sequences = _windows(seen, config.max_history) if number == 0 else _next_items(seen, number, config.max_history)
        sequences.write_parquet(out / "sequences" / f"{name}.parquet")
        asked = events.filter(pl.col("part") == number)
        requests = _requests(seen, asked, config, code_of_index)
        if encoder is None:
            # What a request cannot know cannot be the source of a feature.
            askable = requests.drop("user_code", "label")
            encoder = Encoder.fit(specs, config.label.name, items, users, askable)
            encoder.save(out)
        examples = pl.concat(
            [requests.select("user_code", "user_index", "item_index", "timestamp", "label"), encoder.encode(requests)],
            how="horizontal",
        )
        examples.write_parquet(out / "ranking" / f"{name}.parquet")
        counts[name] = {
            "events": asked.height,
            "sequences": sequences.height,
            "examples": examples.height,
            "positives": int(examples["label"].sum()),
        }
    _snapshot(events.filter((pl.col("part") < 2) & pl.col("interaction")), config.retain, out / "snapshot")
    events.filter("interaction").write_parquet(out / "interactions.parquet")
    return counts


def _vocabulary(table: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    """The people seen, or the items seen or described, with `index` 1, 2, …, after a row 0 for all others."""
    key = seen.name
    keep = table[key].is_in(seen.unique().implode())
    if key == "item_id" and table.width > 1:
        keep = keep | table.drop(key).select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    return (
        pl.concat([table.clear(1), table.filter(keep)])
        .with_row_index("index")
        .with_columns(pl.col("index").cast(pl.Int32))
    )


def _position_in(key: str, table: pl.DataFrame) -> pl.Expr:
    """A number for every id of the log, in the vocabulary or not, so that strangers are not mistaken for each other."""
    return pl.col(key).replace_strict(table[key], np.arange(table.height), default=None, return_dtype=pl.Int64)


def _index_of(key: str, vocabulary: pl.DataFrame) -> pl.Expr:
    known = vocabulary.slice(1)
    return pl.col(key).replace_strict(known[key], known["index"], default=0, return_dtype=pl.Int32)


def _windows(seen: pl.DataFrame, length: int) -> pl.DataFrame:
    """Each user's interactions cut into windows of length + 1 that overlap by one: every step is predicted once."""
    by_user = seen.sort("user_index", "row").filter(pl.col("user_index") > 0)
    user, count = np.unique(by_user["user_index"].to_numpy(), return_counts=True)
    first = np.concatenate([[0], np.cumsum(count)])
    windows = -(-(count - 1) // length)
    number = np.arange(int(windows.sum())) - np.repeat(np.cumsum(windows) - windows, windows)
    start = np.repeat(first[:-1], windows) + number * length
    end = np.minimum(start + length + 1, np.repeat(first[1:], windows))
    return pl.DataFrame({"user_index": np.repeat(user, windows)}).with_columns(
        ragged(by_user["item_index"].to_numpy(), start, end).alias("items"),
        ragged(by_user["timestamp"].to_numpy(), start, end).alias("timestamps"),
    )


def _next_items(seen: pl.DataFrame, part: int, length: int) -> pl.DataFrame:
    """The interactions in `part` of users with a history: its last `items`, and the item to find."""
    asked = seen.filter(pl.col("part") == part)
    timeline = Timeline.build(seen["user_code"].to_numpy(), seen)
    user, row = asked["user_code"].to_numpy(), asked["row"].to_numpy()
    return (
        asked.select("user_id", "user_index", "item_id", "item_index", "timestamp", "row", *_context(asked))
        .with_columns(timeline.history(user, row, length).alias("items"))
        .filter(pl.col("items").list.len() > 0)
    )


def _requests(seen: pl.DataFrame, asked: pl.DataFrame, config: Config, code_of_index: np.ndarray) -> pl.DataFrame:
    """The request frame (see `features.encoder`) and `label` of the rows `asked`, each with its sampled negatives."""
    if config.label.negatives:
        asked = _with_negatives(seen, asked.filter("interaction"), config, code_of_index)
    user, item, row = (asked[name].to_numpy() for name in ("user_code", "item_code", "row"))
    by_user = Timeline.build(seen["user_code"].to_numpy(), seen)
    by_item = Timeline.build(seen["item_code"].to_numpy(), seen)
    user_events, user_positives = by_user.counts(user, row)
    item_events, item_positives = by_item.counts(item, row)
    return asked.select("user_code", "user_index", "item_index", "timestamp", *_context(asked)).with_columns(
        pl.Series("user_events", user_events),
        pl.Series("user_positives", user_positives),
        pl.Series("item_events", item_events),
        pl.Series("item_positives", item_positives),
        by_user.last_time(user, row).alias("user_last_timestamp"),
        by_user.history(user, row, config.ranker_history).alias("history"),
        asked["positive"].cast(pl.Float32).alias("label"),
    )


def _context(events: pl.DataFrame) -> list[str]:
    """The log's own columns that a request knows: neither the key nor the outcome of an event."""
    return [name for name in events.columns if name not in {*REQUIRED, *OPTIONAL, *_DERIVED}]


def _with_negatives(seen: pl.DataFrame, asked: pl.DataFrame, config: Config, code_of_index: np.ndarray) -> pl.DataFrame:
    """Each interaction followed by items drawn uniformly from those its user has not met by the end of this part.

    Who has met the whole catalogue gets no negatives.
    """
    if asked.is_empty():
        return asked
    count = config.label.negatives
    rng = np.random.default_rng((config.seed, int(asked["part"][0])))
    repeated = asked[np.repeat(np.arange(asked.height), count + 1)]
    drawn = np.arange(repeated.height) % (count + 1) > 0
    item = _draw_unmet(rng, seen, repeated["user_code"].to_numpy()[drawn], len(code_of_index) - 1)
    index, code = repeated["item_index"].to_numpy().copy(), repeated["item_code"].to_numpy().copy()
    index[drawn], code[drawn] = item, code_of_index[item]
    return repeated.with_columns(
        pl.Series("item_index", index), pl.Series("item_code", code), pl.Series("positive", ~drawn)
    ).filter(~drawn | (index > 0))


def _draw_unmet(rng: np.random.Generator, seen: pl.DataFrame, user_Q: np.ndarray, items: int) -> np.ndarray:
    """An item index 1 … `items` for each user, uniform over those that are not `seen` with it; 0 where all are.

    With a user's met items in ascending order, the one at place j has (index - 1 - j) unmet items below it. The unmet
    item of rank r therefore stands after all met ones with at most r below them: one draw, one binary search.
    """
    met = (
        seen.filter(pl.col("item_index") > 0).select("user_code", "item_index").unique().sort("user_code", "item_index")
    )
    user_N, item_N = met["user_code"].to_numpy(), met["item_index"].to_numpy()
    below_N = item_N - 1 - (np.arange(met.height) - np.searchsorted(user_N, user_N))
    start_Q, end_Q = np.searchsorted(user_N, user_Q), np.searchsorted(user_N, user_Q, side="right")
    unmet_Q = items - (end_Q - start_Q)
    rank_Q = rng.integers(0, np.maximum(unmet_Q, 1))
    skipped_Q = np.searchsorted((user_N << 32) + below_N, (user_Q << 32) + rank_Q, side="right") - start_Q
    return np.where(unmet_Q > 0, 1 + rank_Q + skipped_Q, 0).astype(np.int32)


def _snapshot(events: pl.DataFrame, retain: int, out: Path) -> None:
    """The state of every person and item after `events`, as `features.online` keeps it."""
    out.mkdir()
    fields = [name for name in ("item_id", "timestamp", "action", "value", "positive") if name in events.columns]
    events.group_by("user_id", maintain_order=True).agg(
        *(pl.col(name).tail(retain) for name in fields),
        pl.len().alias("events"),
        pl.col("positive").sum().alias("positives"),
        pl.col("timestamp").last().alias("last_timestamp"),
    ).write_parquet(out / "users.parquet")
    events.group_by("item_id", maintain_order=True).agg(
        pl.len().alias("events"), pl.col("positive").sum().alias("positives")
    ).write_parquet(out / "items.parquet")
