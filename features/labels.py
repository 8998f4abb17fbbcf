"""What an event counts as: an interaction, which histories and counters know; a positive, which the ranker predicts.

Beside its label a ranker may have more tasks, each predicted from another column of the log.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features.errors import InputError
from features.events import OPTIONAL, REQUIRED
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


class Task(Settings):
    """One more outcome that the ranker predicts: [[prepare.tasks]]."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Its name in results."""
    source: str
    """Column of the log with numbers: `value`, or one of the log's own. Where it is missing, the row does not count."""
    at_least: float | None = None
    """Positive if the number is at least this. None: the number itself is predicted."""
    log: bool = False
    """Whether log(1 + x) of the number is predicted, which counts seconds and hours alike."""

    @model_validator(mode="after")
    def _check(self) -> "Task":
        if self.log and self.at_least is not None:
            raise ValueError(f"task {self.name}: log = true is for numbers, at_least for yes and no; remove one")
        return self

    @property
    def binary(self) -> bool:
        """Whether it is yes or no."""
        return self.at_least is not None

    def fitted(self, requests: pl.DataFrame) -> "FittedTask":
        """With the mean and standard deviation of the training part's numbers."""
        if self.binary:
            return FittedTask(**self.model_dump())
        numbers = requests.select(self.number_of).to_series().drop_nulls()
        mean, scale = numbers.mean(), numbers.std()
        if not isinstance(mean, float) or not isinstance(scale, float) or not scale > 0:
            raise InputError(
                f"prepare.tasks.{self.name}: the training part has fewer than two different numbers in "
                f"'{self.source}'; name another column"
            )
        return FittedTask(**self.model_dump(), mean=mean, scale=scale)

    @property
    def number_of(self) -> pl.Expr:
        """What is predicted, or compared with `at_least`; null where it is missing."""
        number = pl.col(self.source).cast(pl.Float64).fill_nan(None)
        return number.clip(lower_bound=0).log1p() if self.log else number


class FittedTask(Task):
    """A task whose numbers have been looked at."""

    mean: float = 0.0
    """Of what is predicted, where it is a number."""
    scale: float = Field(default=1.0, gt=0)
    """Its standard deviation."""

    @property
    def column(self) -> str:
        """Of encoded examples."""
        return f"label.{self.name}"

    @property
    def outcome(self) -> pl.Expr:
        """What is learned: 0 or 1, or the number, standardised; NaN where it is missing; float32."""
        number = self.number_of
        learned = number >= self.at_least if self.binary else (number - self.mean) / self.scale
        return learned.cast(pl.Float32).fill_null(float("nan")).alias(self.column)

    def number(self, learned: np.ndarray) -> np.ndarray:
        """What a ranker has predicted, in the unit of the column; of the same shape."""
        found = learned * self.scale + self.mean
        return np.expm1(found) if self.log else found


@dataclass(frozen=True)
class Rules:
    """Tell interactions and positives from other events."""

    label: Label
    history_actions: tuple[str, ...]
    """Actions that are interactions; (): all."""
    tasks: tuple[Task, ...] = ()
    """What is predicted beside the label."""

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
        for task in self.tasks:
            self._check_task(task, events)
        interaction = pl.col("action").is_in(self.history_actions) if self.history_actions else pl.lit(True)
        if label.actions:
            positive = pl.col("action").is_in(label.actions)
        elif label.at_least is not None:
            positive = pl.col("value") >= label.at_least
        else:
            positive = pl.lit(True)
        return events.with_columns(interaction=interaction.fill_null(False), positive=positive.fill_null(False))

    def _check_task(self, task: Task, events: pl.DataFrame) -> None:
        keys = {"row", *REQUIRED, *OPTIONAL} - {"value"}
        numbers = {
            name: dtype
            for name, dtype in events.schema.items()
            if name not in keys and (dtype.is_numeric() or dtype == pl.Boolean)
        }
        if task.source not in numbers:
            raise InputError(
                f"prepare.tasks.{task.name}: '{task.source}' is no column of the log with numbers that tell what "
                f"happened; name one of: {', '.join(numbers) or 'none'}"
            )
        if numbers[task.source] == pl.Boolean and not task.binary:
            raise InputError(f"prepare.tasks.{task.name}: '{task.source}' is yes or no; set at_least = 1")

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
