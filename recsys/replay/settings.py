"""How a log is replayed: what a run's section [replay] and a replay's own have in common."""

from typing import Literal

from pydantic import Field

from features.settings import Settings


class Config(Settings):
    """The section [replay] of a run."""

    k: int = Field(default=10, ge=10)
    """Length of the feeds that are judged."""
    ahead: int = Field(default=1, gt=0)
    """By how many of a person's next interactions, this one and those after it, a feed is judged."""
    max_events: int | None = Field(default=None, gt=0)
    """Replay only so many of the first events of the tail; None: all."""
    batch: int = Field(default=32, gt=1)
    """Feeds that are scored together, each from what was known just before its event; the first of so many is asked
    for alone, which gives the latencies."""
    workers: int = Field(default=1, gt=0)
    """Processes that ask for feeds. The result is the same."""
    engine: Literal["local", "ray"] = "local"
    """What starts the processes: this one, or Ray, on as many machines as it has."""
    groups: tuple[str, ...] | None = None
    """Attributes of people whose groups are compared; None: all with 2 to 12 values."""
    resamples: int = Field(default=4000, ge=200)
    """Of the bootstrap by people that intervals come from."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def settled(self) -> dict[str, int | str | None]:
        """The fields that what is shown depends on."""
        return {"k": self.k, "max_events": self.max_events, "batch": self.batch}
