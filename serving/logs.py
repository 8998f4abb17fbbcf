"""The log of requests: a line of JSON each, without people's ids and tastes unless it is asked for."""

import datetime
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from features.settings import Settings
from serving.metrics import Metrics


class Config(Settings):
    """The section [serve.log]."""

    path: str | None = None
    """File that the lines go to, relative to the run; None: standard error."""
    ids: bool = False
    """Say who asked and which items were shown."""


class RequestLog:
    """Appends lines. A line that cannot be written is counted, and stops no request."""

    def __init__(self, config: Config, directory: Path, metrics: Metrics) -> None:
        self.ids = config.ids
        self._metrics = metrics
        self._descriptor: int | None = None
        if config.path is not None:
            path = directory / config.path
            path.parent.mkdir(parents=True, exist_ok=True)
            # Every replica appends to the one file, a line a call, which the system keeps apart.
            self._descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o640)

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line, with the time."""
        entry = {"time": now(), **entry}
        line = json.dumps(entry, separators=(",", ":"), default=str) + "\n"
        try:
            if self._descriptor is None:
                sys.stderr.write(line)
            else:
                os.write(self._descriptor, line.encode())
        except OSError:
            self._metrics.log_errors.labels(log="requests").inc()

    def defect(self, request_id: str, error: BaseException) -> None:
        """An error that nobody caused: with its traceback."""
        self.write(
            {"request_id": request_id, "level": "error", "traceback": "".join(traceback.format_exception(error))}
        )

    def close(self) -> None:
        """Release the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def now() -> str:
    """The time, as ISO 8601 with milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
