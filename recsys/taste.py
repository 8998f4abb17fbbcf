"""What a person says they like and dislike, as feeds follow it: at once, with nothing trained.

- A liked item counts as an interaction at the moment it was said to be liked: retriever and ranker see it in the
  history, in its place in time. Where that moment is not known, it is the moment of the request. Like all that is in a
  history it is not shown again.
- A disliked item is never shown, and models do not see it in the history. What is close to it is pushed down: an item
  whose vector has the cosine c > 0 with that of a disliked one is taken for `disliked`ᶜ times less likely, the closest
  one counting.
- An item of a disliked category is never shown; one of a liked category is taken for `liked_category` times as likely.

Counters count what is done, not what is said. The feed of a person who has said nothing is what it would be without all
this. Scores and values are logarithms, so that "times as likely" is added to them.
I items of the catalogue, R of them, D width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from pydantic import Field

from features.errors import InputError
from features.online import Event, Id
from features.settings import Settings
from features.taste import Taste


class Config(Settings):
    """The section [recommend.taste]."""

    by: str = "categories"
    """Column of the items whose values, or whose lists of values, are the categories."""
    liked_items: int = Field(default=20, gt=0)
    """So many of the items liked last count as interactions."""
    liked_category: float = Field(default=3.0, ge=1)
    """How many times as likely an item of a liked category is taken to be."""
    disliked: float = Field(default=20.0, ge=1)
    """How many times less likely an item is taken to be whose vector is that of a disliked one."""


@dataclass(frozen=True)
class Effect:
    """What a taste does to a feed."""

    tastes: "Tastes"
    taste: Taste
    hidden: np.ndarray
    """int64: indices of the items that are never shown."""

    def shift(self, items_R: np.ndarray) -> np.ndarray:
        """What is added to the scores and the values of items; float32 [R]."""
        tastes, config = self.tastes, self.tastes.config
        shift_R = np.zeros(len(items_R), dtype=np.float32)
        liked = [tastes.members[name] for name in self.taste.liked_categories if name in tastes.members]
        if liked:
            shift_R[np.isin(items_R, np.concatenate(liked))] = math.log(config.liked_category)
        disliked = tastes.known(self.taste.disliked_items)
        if len(disliked):
            close_R = (tastes.unit_ID[items_R] @ tastes.unit_ID[disliked].T).max(1)
            shift_R -= math.log(config.disliked) * np.maximum(close_R, 0)
        return shift_R


class Tastes:
    """Tastes for one catalogue."""

    def __init__(
        self,
        config: Config,
        items: pl.DataFrame,
        item_index: dict[Id, int],
        vectors: Callable[[], np.ndarray],
        like: tuple[str, float | None],
    ) -> None:
        """What requests do not change.

        Args:
            config: the section.
            items: row i is item i.
            item_index: id → index.
            vectors: gives those of the retriever; float32 [I + 1, D].
            like: action and value of the event that a liked item counts as.
        """
        self.config, self.item_index, self.like, self._vectors = config, item_index, like, vectors
        self.members: dict[str, np.ndarray] = {}
        """Category → indices of its items, int64."""
        self.of_item: list[tuple[str, ...]] = [()] * items.height
        """The categories of each item."""
        if config.by in items.columns:
            listed = items.select("index", name=config.by)
            if isinstance(listed.schema["name"], pl.List | pl.Array):
                listed = listed.explode("name", empty_as_null=False)
            listed = listed.drop_nulls().with_columns(pl.col("name").cast(pl.String))
            names = listed.group_by("name", maintain_order=True).agg("index")
            self.members = {name: np.array(index, dtype=np.int64) for name, index in names.iter_rows()}
            for index, own in listed.group_by("index").agg("name").iter_rows():
                self.of_item[index] = tuple(own)

    @cached_property
    def unit_ID(self) -> np.ndarray:
        """The item vectors, each of length 1, those of no length 0."""
        vectors_ID = self._vectors()
        length_I = np.linalg.norm(vectors_ID, axis=1, keepdims=True)
        return vectors_ID / np.where(length_I > 0, length_I, 1)

    def known(self, items: Sequence[Id]) -> np.ndarray:
        """Indices of those in the catalogue; int64."""
        return np.array([self.item_index[item] for item in items if item in self.item_index], dtype=np.int64)

    def done(self, history: Sequence[Event], taste: Taste) -> Sequence[Event]:
        """What of a history counts as done: what nothing is said of."""
        said = {*taste.liked_items, *taste.disliked_items}
        return [event for event in history if event.item_id not in said] if said else history

    def seen(self, done: Sequence[Event], taste: Taste, asked_ms: int) -> Sequence[Event]:
        """What models see: what was done, and what is liked."""
        times = taste.liked_at or [asked_ms] * len(taste.liked_items)
        action, value = self.like
        liked = [
            Event("", item, min(at, asked_ms), action, value, positive=True)
            for item, at in zip(taste.liked_items, times, strict=True)
            if item in self.item_index
        ][-self.config.liked_items :]
        return sorted([*done, *liked], key=lambda event: event.timestamp) if liked else done

    def effect(self, taste: Taste) -> Effect | None:
        """What a taste does beside that; None where nothing was said."""
        if not taste:
            return None
        gone = [self.members[name] for name in taste.disliked_categories if name in self.members]
        return Effect(self, taste, np.unique(np.concatenate([self.known(taste.disliked_items), *gone])))

    def liked_category(self, taste: Taste, item: int) -> str | None:
        """The category liked last that an item has."""
        liked = [name for name in taste.liked_categories if name in self.of_item[item]]
        return liked[-1] if liked else None

    def require_known(self, taste: Taste, before: Taste) -> None:
        """Refuse what this model does not know, but for what was said `before`, to whatever model.

        Raises:
            InputError: an item or a category that there is not.
        """
        for field, known, what in (
            ("liked_items", self.item_index, "item"),
            ("disliked_items", self.item_index, "item"),
            ("liked_categories", self.members, "category"),
            ("disliked_categories", self.members, "category"),
        ):
            said = {*before.liked_items, *before.disliked_items}
            said |= {*before.liked_categories, *before.disliked_categories}
            for name in getattr(taste, field):
                if name not in known and name not in said:
                    raise InputError(f"{field}: {name!r} is no {what} of this model; leave it out")
