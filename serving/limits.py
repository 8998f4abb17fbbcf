"""How much one request may say, and how many a key may send."""

import time

from pydantic import Field

from features.settings import Settings


class Config(Settings):
    """The section [serve.limits]."""

    body_kb: int = Field(default=1024, ge=1)
    """The longest body of a request, KB; a longer one is refused before it is read."""
    rate: float | None = Field(default=None, gt=0)
    """Requests a second of a key at each replica, where the key does not say its own; None: any number."""
    burst_s: float = Field(default=2.0, gt=0)
    """Seconds of its rate that a key may send at once."""


class Rates:
    """A token bucket for each key. The clock is the monotonic one: nobody gains by the other being set."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._buckets: dict[str, tuple[float, float]] = {}
        """By name: tokens left, and when they were counted, s."""

    def take(self, name: str, rate: float | None) -> float:
        """Seconds until this key may ask again; 0 where it may now, which is counted."""
        rate = self._config.rate if rate is None else rate
        if rate is None:
            return 0.0
        now, most = time.monotonic(), max(1.0, rate * self._config.burst_s)
        tokens, counted = self._buckets.get(name, (most, now))
        tokens = min(most, tokens + (now - counted) * rate)
        allowed = tokens >= 1
        self._buckets[name] = (tokens - 1 if allowed else tokens, now)
        return 0.0 if allowed else (1 - tokens) / rate
