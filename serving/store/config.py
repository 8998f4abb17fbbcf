"""Which store the online side uses, and where.

LMDB is for the processes of one host: nothing to run, reads take microseconds. Redis or Valkey is for several hosts.

    store = open_store(Config(kind="redis", url="redis://127.0.0.1:6379/0"), run_directory, retain=1000)
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from features.online import StateStore
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


def open_store(config: Config, directory: Path, retain: int) -> StateStore:
    """Open the store that `config` names.

    Args:
        config: kind and place.
        directory: what `config.path` is relative to.
        retain: events kept in a history; the oldest go first.

    Raises:
        InputError: the directory cannot be used, or the server does not answer.
    """
    if config.kind == "redis":
        return RedisStore(config.url, prefix=config.prefix, retain=retain)
    return LmdbStore(directory / config.path, retain=retain, map_size_gb=config.map_size_gb, durable=config.durable)
