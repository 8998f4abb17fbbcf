"""Learning rates over time: a warm-up, then a decay to a floor, as a pure function of the step.

[ranker.optimizer.schedule]
warmup_steps = 500
decay = "cosine"
floor = 0.1

Nothing is counted or saved: the rate of a step is the same after a restart and on any number of processes.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from features.errors import InputError
from features.settings import Settings


class Schedule(Settings):
    """The section [<role>.optimizer.schedule]: what both learning rates are multiplied by."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the factor rises linearly: 1/n in the first, 1 in the n-th."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How it falls from 1 after that."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """What it falls to, and stays at."""
    steps: int | None = Field(default=None, gt=0)
    """Step in which it has fallen to the floor; None: when all epochs are over."""

    @model_validator(mode="after")
    def _check(self) -> "Schedule":
        if self.decay == "constant":
            for name in ("floor", "steps"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} = {getattr(self, name)} says where a decay ends; choose a decay")
        elif self.steps is not None and self.steps <= self.warmup_steps:
            raise ValueError(f"steps = {self.steps} leaves no step after warmup_steps = {self.warmup_steps}; raise it")
        return self

    def check(self, total_steps: int | None, section: str) -> None:
        """Refuse a decay that has no end, or one that ends before it begins.

        Args:
            total_steps: of the whole training; None: nobody knows, as where it follows a stream.
            section: where the schedule is from, such as `ranker.optimizer.schedule`.

        Raises:
            InputError: with the field, its value and the fix.
        """
        if self.decay == "constant" or self.steps is not None:
            return
        if total_steps is None:
            raise InputError(f"{section}.decay = {self.decay!r}: this training has no last step; set {section}.steps")
        if total_steps <= self.warmup_steps:
            raise InputError(
                f"{section}.warmup_steps = {self.warmup_steps} leaves nothing of the {total_steps} steps; "
                "lower it or train for longer"
            )

    def factor(self, step: int, total_steps: int | None) -> float:
        """What the learning rates of a step are multiplied by.

        Args:
            step: from 0.
            total_steps: of the whole training, as it was checked.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        end = self.steps or total_steps
        assert end is not None, "the schedule has not been checked"
        done = min(1.0, (step - self.warmup_steps) / (end - self.warmup_steps))
        left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * left
