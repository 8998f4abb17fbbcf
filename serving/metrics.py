"""What a scrape says: latency by stage, requests, queue, fallbacks, store, events, drift of scores.

A scrape through the ingress reaches one replica. Each therefore leaves its own figures in a directory of the host every
few seconds, and whichever is asked answers for all of them, told apart by the label `replica`. On several hosts a
scrape speaks for the host that it reached.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WRITE_SECONDS = 5.0
"""How often a replica leaves its figures: those of the others are this old."""
STALE_SECONDS = 30.0
"""A replica that has left none for so long is gone."""
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.035, 0.05, 0.075)
SECONDS = (*SECONDS, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
"""Ends of the buckets of latency."""

Read = Callable[[], dict[str, float]]


class Metrics:
    """The figures of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "endpoint", "status", "variant", "key")
        self.seconds = self._histogram("request_seconds", "From the first byte read to the last written.", "endpoint")
        self.stages = self._histogram("stage_seconds", "Of a feed, by stage; `queue` is the wait.", "stage")
        self.feeds = self._counter("feeds", "Feeds, by what they are made of.", "source", "variant")
        self.fallbacks = self._counter("fallbacks", "Answers with what is popular, by why.", "reason")
        self.refused = self._counter("refused", "Requests that were not let in, by why.", "reason")
        self.together = self._histogram("batch_size", "Requests that were answered together.", buckets=_SIZES)
        self.store_errors = self._counter("store_errors", "Calls of the store that failed.")
        self.events = self._counter("events", "Events, by what became of them.", "outcome")
        self.log_errors = self._counter("log_errors", "Lines that could not be written.", "log")
        self.shadows = self._counter("shadows", "Shadow requests, by what became of them.", "variant", "outcome")

    def read(self, name: str, says: str, label: str, values: Read) -> None:
        """A gauge that is read when it is asked for; `values` by `label`, or by nothing where that is empty."""
        self.registry.register(_Reading(f"feedline_{name}", says, label, values))

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"feedline_{name}", says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"feedline_{name}", says, labels, registry=self.registry, buckets=buckets)

    def gauge(self, name: str, says: str, *labels: str) -> Gauge:
        """A value that is set."""
        return Gauge(f"feedline_{name}", says, labels, registry=self.registry)


_SIZES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)


class _Reading:
    def __init__(self, name: str, says: str, label: str, values: Read) -> None:
        self._name, self._says, self._label, self._values = name, says, label, values

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._says, labels=[self._label] if self._label else [])
        for of, value in self._values().items():
            family.add_metric([of] if self._label else [], value)
        yield family


class Shared:
    """The figures of all replicas of a host, by files in one directory."""

    def __init__(self, metrics: Metrics, directory: Path) -> None:
        self._metrics, self._directory = metrics, directory
        self.replica = f"{socket.gethostname()}-{os.getpid()}"
        self._file = directory / f"{self.replica}.json"
        directory.mkdir(parents=True, exist_ok=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_often, name="metrics", daemon=True)
        self._thread.start()

    def exposition(self) -> str:
        """In Prometheus' text format: this replica's figures of now, and the others' of some seconds ago."""
        found = [_by_family(self._metrics.registry, self.replica), *self._others()]
        heads: dict[str, str] = {}
        samples: dict[str, list[str]] = {}
        for families in found:
            for name, (head, lines) in families.items():
                heads.setdefault(name, head)
                samples.setdefault(name, []).append(lines)
        return "".join(head + "".join(samples[name]) for name, head in heads.items())

    def close(self) -> None:
        """Stop writing, and take the figures away."""
        self._stop.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def _others(self) -> list[dict[str, tuple[str, str]]]:
        found: list[dict[str, tuple[str, str]]] = []
        for file in sorted(self._directory.glob("*.json")):
            if file == self._file:
                continue
            try:
                if time.time() - file.stat().st_mtime > STALE_SECONDS:
                    file.unlink(missing_ok=True)
                else:
                    found.append(json.loads(file.read_text()))
            except FileNotFoundError:
                continue  # Its replica has just ended.
        return found

    def _write_often(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            self.write()

    def write(self) -> None:
        """Leave the figures for the others."""
        aside = self._file.with_suffix(".aside")
        try:
            aside.write_text(json.dumps(_by_family(self._metrics.registry, self.replica)))
            aside.replace(self._file)
        except OSError:
            self._metrics.log_errors.labels(log="metrics").inc()


class _Labelled:
    """A registry whose every sample says of which replica it is."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry, self._replica = registry, replica

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [
                Sample(sample.name, {**sample.labels, "replica": self._replica}, sample.value, sample.timestamp)
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
            yield family


def _by_family(registry: CollectorRegistry, replica: str) -> dict[str, tuple[str, str]]:
    """By name of a family: its head and its samples, as text."""
    text = generate_latest(_Labelled(registry, replica)).decode()  # pyright: ignore[reportArgumentType]
    families: dict[str, tuple[str, str]] = {}
    for block in re.split(r"(?m)^(?=# HELP )", text)[1:]:
        says, kind, samples = block.split("\n", 2)
        name = says.split()[2]
        families[name] = (f"{says}\n{kind}\n", samples)
    return families
