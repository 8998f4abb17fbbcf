"""A logbook on a line of time: when each training was running, and the marks of what happened to it.

Time in which nothing runs is drawn short where it is long, so that a run of a minute that was taken up again after a
night can still be seen. All places are in per cent of the width.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from recsys.logbook import FINISHED, Entry
from recsys.logbook_words import told_span

CUT = 0.12
"""Idle time is drawn no longer than this share of all the running time."""
NARROW = 0.5
"""Width of the shortest bar that can be seen."""
ONE = 1.6
"""Alike marks that are closer are one."""
CLOSE = 4.0
"""Marks that are closer are kept from covering each other; on a phone, this is the width of one."""
SIDE_BY_SIDE = 6
"""Marks at most that push each other on."""
TICKS = 6
STEPS = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 172800, 604800, 2592000)
"""Seconds between ticks to choose from."""
MARKS = {
    "crash": "crash",
    "resume": "resumed from a checkpoint",
    "reshard": "other world size or plan",
    "early_stop": "early stop",
    "finished": "finished",
    "stop": "stopped",
    "not_finite": "not finite",
    "skipped": "batch skipped",
    "not_saved": "checkpoint not saved",
    "damaged": "checkpoint passed over",
}
"""Kinds that get a mark → what the legend says."""
BELOW = ("not_finite", "skipped", "not_saved", "damaged")
"""Marks under the bar; the others are above it."""


@dataclass
class Span:
    """A time in which a training was running."""

    line: int
    """Its first line in the logbook."""
    since: datetime
    until: datetime
    end: Entry | None = None
    """The stop or crash at its end; None: there is none yet."""


@dataclass
class Mark:
    """One or several alike things that happened at one place."""

    kind: str
    place: float
    left: str
    """Its place in CSS: not before the end of the mark on its left, whatever the width of the screen."""
    pushed: int
    """How many marks in a row have been pushed on, with this one."""
    time: datetime
    """Of the first of them."""
    entries: list[Entry]


@dataclass(frozen=True)
class Row:
    """A training on the line of time."""

    bars: list[tuple[float, float, Span]]
    """Left, width, what they show."""
    checkpoints: list[float]
    above: list[Mark]
    below: list[Mark]


class Timeline:
    """Rows, ticks, and the places where idle time was cut."""

    def __init__(self, trainings: dict[str, tuple[list[Span], list[Entry]]]) -> None:
        """Lay out.

        Args:
            trainings: name → when it was running, and its lines.
        """
        pieces = _union([(span.since, span.until) for spans, _ in trainings.values() for span in spans])
        busy = sum(((until - since).total_seconds() for since, until in pieces), 0.0) or 1.0
        self.seconds: list[float] = []
        self.places: list[float] = []
        self.cuts: list[tuple[float, str]] = []
        self.shown: list[tuple[float, float]] = []
        at = 0.0
        for number, (since, until) in enumerate(pieces):
            if number:
                idle = since.timestamp() - self.seconds[-1]
                drawn = min(idle, CUT * busy)
                if drawn < idle:
                    self.cuts.append((at + drawn / 2, told_span(idle)))
                    self.shown.append((since.timestamp(), until.timestamp()))
                else:
                    self.shown[-1] = (self.shown[-1][0], until.timestamp())
                at += drawn
            else:
                self.shown.append((since.timestamp(), until.timestamp()))
            length = (until - since).total_seconds()
            self.seconds += [since.timestamp(), until.timestamp()]
            self.places += [at, at + length]
            at += length
        self.width = at or 1.0
        self.cuts = [(100 * place / self.width, text) for place, text in self.cuts]
        self.rows = {name: self._row(spans, entries) for name, (spans, entries) in trainings.items()}
        found = {mark.kind for row in self.rows.values() for mark in (*row.above, *row.below)}
        self.legend = {kind: text for kind, text in MARKS.items() if kind in found}
        self.has_checkpoints = any(row.checkpoints for row in self.rows.values())
        self.has_running = any(span.end is None for spans, _ in trainings.values() for span in spans)

    def place(self, time: datetime) -> float:
        """Where a moment is."""
        return float(np.interp(time.timestamp(), self.seconds, self.places)) * 100 / self.width

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of round times."""
        step = next((step for step in STEPS if self.width / step <= TICKS), STEPS[-1])
        ticks: list[tuple[float, str]] = []
        day = None
        for since, until in self.shown:
            for second in range(-int(-since // step) * step, int(until) + 1, step):
                time = datetime.fromtimestamp(second, UTC)
                place = self.place(time)
                if ticks and place - ticks[-1][0] < 100 / TICKS / 2:
                    continue
                clock = "" if step >= 86400 else f"{time:%H:%M:%S}" if step < 60 else f"{time:%H:%M}"
                date = f"{time.day} {time:%b}" if time.date() != day else ""
                ticks.append((place, f"{date} {clock}".strip()))
                day = time.date()
        return ticks

    def _row(self, spans: list[Span], entries: list[Entry]) -> Row:
        bars = [
            (self.place(span.since), max(self.place(span.until) - self.place(span.since), NARROW), span)
            for span in spans
        ]
        found: dict[bool, list[Mark]] = {True: [], False: []}
        ends = {span.end.line: span.until for span in spans if span.end}
        checkpoints: list[float] = []
        for entry in entries:
            time = ends.get(entry.line, entry.time)
            assert time is not None, "a torn line belongs to no training"
            place = self.place(time)
            kind = FINISHED if entry.kind == "stop" and entry.cause == FINISHED else entry.kind
            if kind == "checkpoint" and (not checkpoints or place - checkpoints[-1] > ONE / 2):
                checkpoints.append(place)
            if kind not in MARKS:
                continue
            marks = found[kind in BELOW]
            near = next((mark for mark in reversed(marks[-3:]) if mark.kind == kind and place - mark.place < ONE), None)
            if near is not None:
                near.entries.append(entry)
                continue
            left, pushed = f"{place:.2f}%", 0
            if marks and place - marks[-1].place < CLOSE and marks[-1].pushed < SIDE_BY_SIDE:
                left, pushed = f"max({left}, {marks[-1].left} + 14px)", marks[-1].pushed + 1
            marks.append(Mark(kind, place, left, pushed, time, [entry]))
        return Row(bars, checkpoints, found[False], found[True])


def _union(spans: list[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    joined: list[tuple[datetime, datetime]] = []
    for since, until in sorted(spans):
        if joined and since <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], until))
        else:
            joined.append((since, until))
    return joined
