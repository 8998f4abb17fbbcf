"""Stores of histories and counters: LMDB in a directory, Redis by URL."""

from serving.store.config import Config as Config
from serving.store.config import open_store as open_store
from serving.store.lmdb_store import LmdbStore as LmdbStore
from serving.store.redis_store import RedisStore as RedisStore
