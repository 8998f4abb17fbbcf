"""The log of events for training: what people did and what they were shown, as lines of JSON in the log's own columns.

An event is written here first and then enters the store: what the store has, the log has. Where the disk is full
nothing is written, nothing enters the store, and the caller is told to send it again. Where the store fails after the
line was written, the caller is told the same, and the line comes twice: `read` keeps the first of an `event_id`.
A file has one writer, so that a line that was cut short can be taken back; each process begins one of its own.
"""

import datetime
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from features.online import Id
from features.settings import Settings

ERASED = "erased.jsonl"
"""Who wanted to be forgotten, and when; `read` leaves out what is older."""


class Config(Settings):
    """The section [serve.events]."""

    log: str | None = None
    """Directory of the log of events, relative to the run; None: no log."""
    impressions: bool = False
    """Write down what was shown too, with place and propensity."""
    durable: bool = False
    """Wait for the disk: without, a power cut may lose the last lines; a killed process loses none."""


class EventsLog:
    """Appends rows of `user_id, item_id, timestamp, action, value, event_id, request_id, position, propensity`."""

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        """Begin a file.

        Raises:
            OSError: it cannot be made.
        """
        directory.mkdir(parents=True, exist_ok=True)
        began = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%f")
        self.path = directory / f"{began}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
        self._durable = durable
        self._end = 0

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write all rows or none.

        Raises:
            OSError: the disk is full, or another of its troubles; nothing was written.
        """
        lines = "".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows).encode()
        try:
            written = 0
            while written < len(lines):
                written += os.pwrite(self._descriptor, lines[written:], self._end + written)
            if self._durable:
                os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(lines)

    def erase(self, user: Id, timestamp: int) -> None:
        """Note that a person's rows must not be used.

        Raises:
            OSError: it cannot be written.
        """
        with (self.path.parent / ERASED).open("a") as file:
            file.write(json.dumps({"user_id": user, "timestamp": timestamp}) + "\n")

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


def read(directory: Path) -> pl.DataFrame:
    """The events of a directory in the order of their time, each `event_id` once, without those who were erased."""
    files = sorted(file for file in directory.glob("*.jsonl") if file.name != ERASED and file.stat().st_size)
    frame = pl.concat([pl.read_ndjson(file, infer_schema_length=None) for file in files], how="diagonal_relaxed")
    frame = frame.sort("timestamp", maintain_order=True)
    named = pl.col("event_id").is_not_null() & (pl.col("event_id") != "")
    frame = frame.filter(~named | pl.struct("user_id", "event_id").is_first_distinct())
    erased = directory / ERASED
    if erased.exists():
        when = pl.read_ndjson(erased).group_by("user_id").agg(pl.col("timestamp").max().alias("erased"))
        frame = frame.join(when, on="user_id", how="left", maintain_order="left")
        frame = frame.filter((pl.col("timestamp") > pl.col("erased")) | pl.col("erased").is_null()).drop("erased")
    return frame
