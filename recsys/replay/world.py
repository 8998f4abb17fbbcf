"""What is known of a replayed log beside what was shown: who had met what before, whose item was new to everybody."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recsys.replay.runner import ITEMS, LOG
from recsys.replay.tastes import category_rows, met_before

DAY_MS = 86_400_000


@dataclass(frozen=True)
class World:
    """A log with the state before it; E events, U people, I items with codes 1 … I."""

    log: pl.DataFrame
    items: pl.DataFrame
    """Row i is code i."""
    history: pl.DataFrame
    """`user, item, timestamp`: codes of what the log's people had met before it."""
    met: pl.DataFrame
    """`item, events, first`: how often each item had been met before it by anybody, and when first."""
    people: pl.DataFrame
    """Attributes of the log's people, row u of person u; only what is known."""
    has_clock: bool = True

    @classmethod
    def load(cls, directory: Path, snapshot: Path | None, users: pl.DataFrame | None, *, has_clock: bool) -> "World":
        """Read it.

        Args:
            directory: of the replay.
            snapshot: what a bundle knew when the log began; None: nothing is known.
            users: their table.
            has_clock: whether times are times.
        """
        log, items = pl.read_parquet(directory / LOG), pl.read_parquet(directory / ITEMS)
        people = log.select(pl.col("user_id").unique(maintain_order=True)).with_row_index("user")
        codes = items.select("item_id").with_row_index("item").slice(1)
        log = log.join(people, on="user_id", how="left", maintain_order="left")
        log = log.join(codes, on="item_id", how="left", maintain_order="left")
        history = pl.DataFrame(schema={"user": pl.UInt32, "item": pl.UInt32, "timestamp": pl.Int64})
        met = pl.DataFrame(schema={"item": pl.UInt32, "events": pl.Int64, "first": pl.Int64})
        if snapshot is not None:
            lists = pl.read_parquet(snapshot / "users.parquet", columns=["user_id", "item_id", "timestamp"])
            all_met = lists.explode("item_id", "timestamp").drop_nulls("item_id")
            firsts = all_met.group_by("item_id").agg(pl.col("timestamp").min().alias("first"))
            counts = pl.read_parquet(snapshot / "items.parquet", columns=["item_id", "events"])
            met = (
                counts.join(firsts, on="item_id", how="left")
                .join(codes, on="item_id")
                .select("item", "events", "first")
            )
            history = all_met.join(people, on="user_id").join(codes, on="item_id").select("user", "item", "timestamp")
        if users is not None:
            people = people.join(
                users.drop("index", strict=False).drop_nulls("user_id"), on="user_id", how="left", maintain_order="left"
            )
        return cls(log, items, history, met, people, has_clock)

    @cached_property
    def user_E(self) -> np.ndarray:
        """Who it was; int64."""
        return self.log["user"].to_numpy().astype(np.int64)

    @cached_property
    def item_E(self) -> np.ndarray:
        """What it was with; int64."""
        return self.log["item"].to_numpy().astype(np.int64)

    @property
    def users(self) -> int:
        """U."""
        return self.people.height

    @cached_property
    def count_I(self) -> np.ndarray:
        """How often each item had been met when the log began; int64 [I + 1]."""
        count = np.zeros(self.items.height, dtype=np.int64)
        count[self.met["item"].to_numpy()] = self.met["events"].to_numpy()
        return count

    @cached_property
    def met_before_E(self) -> np.ndarray:
        """How often each event's item had been met before it; int64."""
        return self.count_I[self.item_E] + _times_before(self.item_E)

    @cached_property
    def active_before_E(self) -> np.ndarray:
        """Interactions of each event's person before it; int64."""
        return np.bincount(self.history["user"], minlength=self.users)[self.user_E] + _times_before(self.user_E)

    @cached_property
    def age_days_E(self) -> np.ndarray:
        """Days since each event's item was first met by anybody; NaN for the first time; float64."""
        first = np.full(self.items.height, np.inf)
        known = self.met.drop_nulls("first")
        first[known["item"].to_numpy()] = known["first"].to_numpy()
        time = self.log["timestamp"].to_numpy()
        inside = np.full(self.items.height, np.inf)
        np.minimum.at(inside, self.item_E, time.astype(np.float64))
        age = (time - np.minimum(first, inside)[self.item_E]) / DAY_MS
        return np.where(self.met_before_E == 0, np.nan, age)

    @cached_property
    def categories(self) -> tuple[np.ndarray, list[str]]:
        """Of each item, see `category_rows`; no columns where none has some."""
        if "categories" not in self.items.columns:
            return np.zeros((self.items.height, 0), dtype=np.float32), []
        return category_rows(self.items["categories"])

    def summed_before(self, value_IX: np.ndarray) -> np.ndarray:
        """Sums of a value of items over what each event's person had met before it; float64 [E, X]."""
        start = np.zeros((self.users, value_IX.shape[1]))
        np.add.at(start, self.history["user"].to_numpy(), value_IX[self.history["item"].to_numpy()])
        return met_before(value_IX[self.item_E], self.user_E, start)


def _times_before(code_E: np.ndarray) -> np.ndarray:
    """How often each event's code has come before it."""
    return (
        pl.DataFrame({"code": code_E}).select(pl.int_range(pl.len()).over("code").alias("before"))["before"].to_numpy()
    )
