"""The blend, last step of the Recommender: what has been retrieved and ranked becomes the list that is shown.

    value = retriever_weight · retrieval score + ranker_weight · Σ over tasks  weight · log(probability)

Of a task that is a number, it is the number itself, standardised, that is weighted.
Without more in the config, the feed is ordered by value. Diversity, caps and exploration are greedy: they fill place
after place, and what stands at one depends on those above it alone. Of the same candidates, a longer feed therefore
begins with the shorter one.
B requests, R retrieved for each, T tasks of the ranker, K places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from pydantic import Field, field_validator, model_validator

from features._hash import hash_one, splitmix64
from features.counters import milliseconds
from features.errors import InputError
from features.online import Id
from features.schema import Schema
from features.settings import Settings
from recsys.diversity import PENALTIES, Candidates, CappedCategories, Caps, Categories, Diversity, Penalty


class Exploration(Settings):
    """Places that are filled by chance, so that what is logged there can be judged without the policy's bias."""

    slots: tuple[int, ...] = Field(min_length=1)
    """The places, counted from 1."""
    pool: int = Field(default=50, gt=0)
    """An item is drawn from so many of the best values: from those that are not shown above and that caps allow. Where
    there is none, the place is filled as any other."""
    temperature: float | None = Field(default=None, gt=0)
    """Chances are proportional to exp(value / temperature). None: all are equal."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """With the person and the time of the request it decides what is drawn: the same request gets the same feed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.slots) < 1 or len(set(self.slots)) < len(self.slots):
            raise ValueError(f"slots = {list(self.slots)}: places are counted from 1; name each once")
        return self


class Config(Settings):
    """The section [recommend.blend]."""

    retriever_weight: float = Field(default=1.0, ge=0)
    """Weight of the retriever's score."""
    ranker_weight: float = Field(default=1.0, ge=0)
    """Weight of all that the ranker says."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Task of the ranker → weight of the log of its probability, or of its number, standardised; those not named weigh
    0. {}: the first task, 1."""
    diversity: Diversity | None = None
    """Keep items apart that are like each other."""
    caps: Caps | None = None
    """Show at most so many of one category."""
    exploration: Exploration | None = None
    """Fill some places by chance, and tell with which."""
    seen_again_after: str | None = None
    """How long what is in a history is left out of feeds, as `24h`, `7d`, `2w`; None: as long as it is in the
    history. A request with `exclude_seen = false` leaves nothing out."""

    @field_validator("seen_again_after")
    @classmethod
    def _is_duration(cls, value: str | None) -> str | None:
        if value is not None:
            milliseconds(value)
        return value

    def weights_of(self, tasks: Sequence[str]) -> np.ndarray:
        """The weight of each of the ranker's tasks, the main one first; float32 [T].

        Raises:
            InputError: `weights` names a task that there is not.
        """
        for name, weight in self.weights.items():
            if name not in tasks:
                raise InputError(
                    f"recommend.blend.weights.{name} = {weight} names no task; known: {', '.join(sorted(tasks))}"
                )
        given = self.weights or {tasks[0]: 1.0}
        return np.array([given.get(name, 0.0) for name in tasks], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Places:
    """What stands at the K places of B feeds."""

    candidates_BK: np.ndarray
    """int64: which of those retrieved, 0 … R − 1; −1 where there are no more."""
    propensities_BK: np.ndarray | None
    """float64: the chance that this item had at this place, given those above; None without exploration."""


class Blend:
    """A config for one catalogue and one ranker."""

    def __init__(self, config: Config, items: pl.DataFrame, schema: Schema) -> None:
        """What requests do not change.

        Args:
            config: the section.
            items: row i is item i; has the columns that the config names.
            schema: of the ranker, with its tasks.

        Raises:
            InputError: the config names a task or a column that there is not.
        """
        self.config = config
        self.weight_T = config.weights_of(schema.outcomes)
        self.binary_T = schema.binary
        sections = {"diversity": config.diversity, "caps": config.caps}
        self.categories = {
            section.by: Categories.of(items, section.by, f"recommend.blend.{name}.by")
            for name, section in sections.items()
            if section is not None
        }

    def values(self, score_BR: np.ndarray, prediction_BRT: np.ndarray | None) -> np.ndarray:
        """The value of each item retrieved; float32 [B, R].

        Args:
            score_BR: the retriever's; float32, −inf where there are no more.
            prediction_BRT: the ranker's, by task: a probability, or a standardised number; float32. None: there is no
                ranking.
        """
        found_BR = np.isfinite(score_BR)
        value_BR = self.config.retriever_weight * np.where(found_BR, score_BR, 0)
        if prediction_BRT is not None:
            log_BRT = np.log(np.maximum(prediction_BRT, _TINY))
            utility_BRT = np.where(self.binary_T, log_BRT, prediction_BRT)
            value_BR = value_BR + self.config.ranker_weight * (utility_BRT * self.weight_T).sum(-1)
        return np.where(found_BR, value_BR, -np.inf)

    def fill(
        self, value_BR: np.ndarray, items_BR: np.ndarray, users: Sequence[Id], times_B: np.ndarray, count: int
    ) -> Places:
        """The K = min(count, R) places of each feed, none of which repeats an item.

        Args:
            value_BR: of what was retrieved; −inf is never shown.
            items_BR: its item indices, none twice in a row.
            users: who asks.
            times_B: when, Unix time in ms; with the user it decides what is drawn where the feed explores.
            count: places wanted.
        """
        order_BR = np.argsort(-value_BR, axis=1, kind="stable")
        value_BR = np.take_along_axis(value_BR, order_BR, axis=1)
        config, places = self.config, min(count, value_BR.shape[1])
        if config.diversity is None and config.caps is None and config.exploration is None:
            return Places(np.where(np.isfinite(value_BR), order_BR, -1)[:, :places], None)
        chosen_BK, propensity_BK = self._greedy(
            value_BR, np.take_along_axis(items_BR, order_BR, axis=1), users, times_B, places
        )
        shown_BK = np.where(chosen_BK < 0, -1, np.take_along_axis(order_BR, chosen_BK, axis=1))
        return Places(shown_BK, propensity_BK if config.exploration is not None else None)

    def _greedy(
        self, value_BR: np.ndarray, items_BR: np.ndarray, users: Sequence[Id], times_B: np.ndarray, places: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Place by place, of candidates in the order of their values: which, −1 for none, and their propensities."""
        config = self.config
        candidates = {by: Candidates(categories, items_BR) for by, categories in self.categories.items()}
        capped: CappedCategories | None = None
        penalty: Penalty | None = None
        strength = 0.0
        if config.caps is not None:
            capped = CappedCategories(candidates[config.caps.by], config.caps.most)
        if config.diversity is not None:
            strength = config.diversity.strength
            penalty = PENALTIES[config.diversity.kind](candidates[config.diversity.by], places)
        slots = {} if config.exploration is None else _draws(config.exploration, users, times_B)

        left_BR = np.isfinite(value_BR)
        value_BR = np.where(left_BR, value_BR, 0)
        goal_BR = relevance_BR = (1 - strength) * value_BR
        rows_B = np.arange(len(items_BR))
        chosen_BK = np.full((len(items_BR), places), -1)
        propensity_BK = np.ones((len(items_BR), places))
        for place in range(places):
            free_BR = left_BR
            if capped is not None:
                free_BR = left_BR & capped.open()
                none_B = ~free_BR.any(1)
                if none_B.any():
                    free_BR[none_B] = left_BR[none_B]
            if penalty is not None:
                goal_BR = relevance_BR - strength * penalty.penalty_BR
            # The first of equals is the one of the greater value.
            best_B = np.where(free_BR, goal_BR, -np.inf).argmax(1)
            if config.exploration is not None and place + 1 in slots:
                best_B, propensity_BK[:, place] = _drawn(
                    config.exploration, value_BR, free_BR, best_B, slots[place + 1]
                )
            chosen_BK[:, place] = np.where(left_BR[rows_B, best_B], best_B, -1)
            left_BR[rows_B, best_B] = False
            if capped is not None:
                capped.show(best_B)
            if penalty is not None:
                penalty.show(best_B)
        return chosen_BK, propensity_BK


def _draws(config: Exploration, users: Sequence[Id], times_B: np.ndarray) -> dict[int, np.ndarray]:
    """Place → a number in [0, 1) for each request, a function of seed, user, time and place; float64 [B]."""
    key_B = splitmix64(np.array([config.seed], dtype=np.uint64)) ^ times_B.astype(np.uint64)
    key_B = splitmix64(key_B) ^ np.array([hash_one(user) for user in users], dtype=np.uint64)
    return {slot: (splitmix64(splitmix64(key_B) + np.uint64(slot)) >> np.uint64(11)) / 2.0**53 for slot in config.slots}


def _drawn(
    config: Exploration, value_BR: np.ndarray, free_BR: np.ndarray, best_B: np.ndarray, draw_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A free candidate of each pool by chance, and that chance; `best_B` and 1 where the pool has none; [B] each."""
    free_BP = free_BR[:, : config.pool]
    chance_BP = free_BP.astype(np.float64)
    if config.temperature is not None:
        value_BP = np.where(free_BP, value_BR[:, : config.pool], -np.inf).astype(np.float64)
        greatest_B1 = np.where(free_BP.any(1), value_BP.max(1), 0)[:, None]
        chance_BP = np.exp((value_BP - greatest_B1) / config.temperature)
    reached_BP = chance_BP.cumsum(1)
    total_B = reached_BP[:, -1]
    some_B = total_B > 0
    # Rounding must not take a draw past the last.
    sought_B = np.minimum(draw_B * total_B, np.nextafter(total_B, 0))
    drawn_B = np.where(some_B, (reached_BP <= sought_B[:, None]).sum(1), best_B)
    chance_B = chance_BP[np.arange(len(best_B)), np.minimum(drawn_B, chance_BP.shape[1] - 1)]
    return drawn_B, np.where(some_B, chance_B / np.where(some_B, total_B, 1), 1.0)


_TINY = float(np.finfo(np.float32).tiny)
"""A probability that has underflowed is taken for this, so that its logarithm is a number."""
