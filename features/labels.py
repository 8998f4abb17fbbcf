"""What an event counts as: an interaction, which histories and counters know; a positive, which the ranker predicts."""

from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import Field, model_validator

from features.errors import InputError
from features.settings import Settings


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


@dataclass(frozen=True)
class Rules:
    """Tell interactions and positives from other events."""

    label: Label
    history_actions: tuple[str, ...]
    """Actions that are interactions; (): all."""

    def mark(self, events: pl.DataFrame) -> pl.DataFrame:
        """Add the bool columns `interaction` and `positive`.

        Raises:
            InputError: the events lack a column that a rule needs.
        """
        label = self.label
        for field, is_set, column in (
            ("history_actions", bool(self.history_actions), "action"),
            ("label.actions", bool(label.actions), "action"),
            ("label.at_least", label.at_least is not None, "value"),
        ):
            if is_set and column not in events.columns:
                raise InputError(
                    f"prepare.{field} needs the column '{column}', which the log does not have; map it or change "
                    f"{field}"
                )
        interaction = pl.col("action").is_in(self.history_actions) if self.history_actions else pl.lit(True)
        if label.actions:
            positive = pl.col("action").is_in(label.actions)
        elif label.at_least is not None:
            positive = pl.col("value") >= label.at_least
        else:
            positive = pl.lit(True)
        return events.with_columns(interaction=interaction.fill_null(False), positive=positive.fill_null(False))

    def require_matches(self, parts: list[dict[str, Any]]) -> None:
        """Refuse a rule that matches nothing in a whole log, of which the manifest's entries of all parts are given.

        Raises:
            InputError: there are no interactions, or no positives.
        """
        if not any(entry["interactions"] for entry in parts):
            raise InputError(
                f"prepare.history_actions = {list(self.history_actions)} matches no row; use actions of the log"
            )
        if not any(entry["positives"] for entry in parts):
            label = self.label
            rule = f"actions = {list(label.actions)}" if label.actions else f"at_least = {label.at_least}"
            raise InputError(f"prepare.label.{rule} matches no row, so that nothing is positive; use values of the log")
