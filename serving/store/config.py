"""Which store the online side uses, and where.

LMDB is for the processes of one host: nothing to run, reads take microseconds. Redis or Valkey is for several hosts.

    store = open_store(Config(kind="redis", url="redis://127.0.0.1:6379/0"), run_directory, retain=1000)

What is kept of a person is bounded by number and by age; both ages are counted from the clock of the process.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from features.counters import milliseconds
from features.online import Retention, StateStore
from features.settings import Settings
from serving.store.lmdb_store import LmdbStore
from serving.store.redis_store import RedisStore


class Config(Settings):
    """Where the online side keeps histories and counters."""

    kind: Literal["lmdb", "redis"] = "lmdb"
    """`lmdb`: a directory that the processes of this host share. `redis`: a server that several hosts share."""
    path: str = "state"
    """Directory of `lmdb`, relative to the run; on a disk of this host, not on a network file system."""
    url: str = "redis://127.0.0.1:6379/0"
    """Server of `redis`: `redis://[user:password@]host:port/db`, `rediss://…` for TLS, or `unix://path`."""
    prefix: str = "feedline:"
    """What every key of `redis` begins with; two runs on one server need two prefixes."""
    map_size_gb: float = Field(default=16.0, gt=0)
    """The most `lmdb` may hold, GB. The file is sparse: it takes disk as it fills. The same in every process."""
    durable: bool = True
    """`lmdb`: an append waits for the disk. Without, a power cut may damage the store; a killed process cannot."""
    timeout_s: float = Field(default=1.0, gt=0)
    """How long `redis` may take to answer, seconds; then the service goes on without it, and tries again."""
    retain: int | None = Field(default=None, gt=0)
    """Events kept in a history, at most as many as `[prepare] retain` says; None: as many. With less than
    `[prepare] max_history` models see less than they were trained on, and what is forgotten may be shown again."""
    retain_for: str | None = None
    """How old an event of a history may be, as `90d`: an older one is not told any more, and deleted later. None: any
    age."""
    expire_every: str = "6h"
    """How often a server deletes what is too old, as `6h`."""
    ids: int = Field(default=2000, ge=1000)
    """Ids of events that are remembered of a person, the last ones; at least as many as one batch may have."""
    ids_for: str = "1d"
    """How long they are remembered, as `24h`: an event that is sent again within it is not applied again."""

    @field_validator("retain_for", "ids_for", "expire_every")
    @classmethod
    def _is_duration(cls, value: str | None) -> str | None:
        if value is not None:
            milliseconds(value)
        return value

    def retention(self, retain: int) -> Retention:
        """What is kept, of histories no more than `retain` events."""
        return Retention(
            events=retain if self.retain is None else min(self.retain, retain),
            age_ms=None if self.retain_for is None else milliseconds(self.retain_for),
            ids=self.ids,
            ids_ms=milliseconds(self.ids_for),
        )


def open_store(config: Config, directory: Path, retain: int) -> StateStore:
    """Open the store that `config` names.

    Args:
        config: kind and place.
        directory: what `config.path` is relative to.
        retain: events kept in a history at most: the bundle's `[prepare] retain`.

    Raises:
        InputError: the directory cannot be used, or the server does not answer.
    """
    keeps = config.retention(retain)
    if config.kind == "redis":
        return RedisStore(config.url, keeps, prefix=config.prefix, timeout_s=config.timeout_s)
    return LmdbStore(directory / config.path, keeps, map_size_gb=config.map_size_gb, durable=config.durable)
