"""The page about a logbook: for the person who asks what happened to a run last night.

    page = logbook.write_page(Path("runs/ml-1m"))

A summary by training, what stands out, a timeline, then every line, the newest first; runs of alike lines are one row
that can be opened. The page needs nothing but itself.
"""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recsys.logbook import ENDS, FILE, FINISHED, TORN, WITHOUT_A_WORD, Entry, last_position, stamp
from recsys.logbook_timeline import Span, Timeline
from recsys.logbook_words import (
    changes,
    counted,
    told_change,
    told_facts,
    told_place,
    told_score,
    told_span,
    told_times,
    told_value,
)

TEMPLATE = "logbook.html.jinja"

ALIKE = {
    **dict.fromkeys(("position", "checkpoint", "evaluation", "best"), "routine"),
    **dict.fromkeys(("not_finite", "skipped"), "trouble"),
}
"""Kinds of which a row may hold many."""
TROUBLE = ("crash", "damaged", "not_finite", "skipped", "not_saved", "delayed", TORN)
"""Kinds that somebody should look at."""
FEW = 3
"""Alike lines that are not worth a row that must be opened."""
SHOWN = 60
"""Lines at most that such a row opens to: half of them the newest, half the oldest."""
LONG = 240
"""Characters of a cause or a torn line from which the rest must be opened."""
CHANGES = 30
"""Changed fields of a line that are shown."""
CRASHES = 3
"""Crashes of a training that the page tells of in sentences: the last ones."""


@dataclass
class Training:
    """What a training's lines come to."""

    name: str
    entries: list[Entry]
    spans: list[Span] = field(init=False)
    """When it was running."""

    def __post_init__(self) -> None:
        self.spans = _spans(self.entries)

    def of(self, *kinds: str) -> list[Entry]:
        """Its lines of these kinds."""
        return [entry for entry in self.entries if entry.kind in kinds]

    def latest(self, kind: str) -> Entry | None:
        """The last of its lines of a kind."""
        return next((entry for entry in reversed(self.entries) if entry.kind == kind), None)

    @property
    def state(self) -> str:
        """How it stands: running, finished, stopped or crashed."""
        end = self.spans[-1].end
        if end is None:
            return "running"
        if end.kind == "crash":
            return "crashed"
        return FINISHED if end.cause == FINISHED else "stopped"

    @property
    def last(self) -> Entry:
        """Its last line."""
        return self.entries[-1]

    @property
    def seconds(self) -> float:
        """How long it has been running in all."""
        return sum((span.until - span.since).total_seconds() for span in self.spans)

    @property
    def position(self) -> dict[str, int]:
        """Where it last stood."""
        return last_position(self.entries)

    @property
    def skipped(self) -> int:
        """Batches left out."""
        return sum(entry.facts.get("batches", 1) for entry in self.of("skipped"))


@dataclass(frozen=True)
class Group:
    """Alike lines of one training that follow each other, newest first."""

    entries: list[Entry]

    @property
    def kinds(self) -> dict[str, int]:
        """Kind → lines, the most frequent first."""
        return dict(Counter(entry.kind for entry in self.entries).most_common())

    @property
    def shown(self) -> list[Entry]:
        """The lines that it opens to."""
        half = SHOWN // 2
        return self.entries if len(self.entries) <= SHOWN else [*self.entries[:half], *self.entries[-half:]]

    @property
    def best(self) -> Entry | None:
        """The last best validation among them."""
        return next((entry for entry in self.entries if entry.kind == "best"), None)


def write(directory: Path, entries: list[Entry]) -> Path:
    """Render and write the page, aside and then renamed; returns its path."""
    out = (directory / FILE).with_suffix(".html")
    # Several trainings may be at it; each has a file of its own until it is whole.
    aside = out.with_name(f"{out.name}.{os.getpid()}.unfinished")
    try:
        aside.write_text(render(directory.name, entries), encoding="utf-8")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return out


def render(name: str, entries: list[Entry]) -> str:
    """The page about the lines of the run `name`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "moment": lambda time: time.strftime("%Y-%m-%d %H:%M:%S") if time else "",
        "stamp": stamp,
        "words": lambda kind: kind.replace("_", " "),
        "span": told_span,
        "where": told_place,
        "breakable": lambda name: Markup("/<wbr>").join(name.split("/")),
        "changes": changes,
        "facts": told_facts,
        "value": told_value,
        "score": told_score,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    trainings = [
        Training(name, [entry for entry in entries if entry.training == name])
        for name in dict.fromkeys(entry.training for entry in entries if entry.kind != TORN)
    ]
    rows = grouped(entries)
    anchors = {entry.line: row.entries[0].line for row in rows for entry in row.entries}
    anchors |= {entry.line: entry.line for row in rows for entry in row.shown}
    return environment.get_template(TEMPLATE).render(
        name=name,
        trainings=trainings,
        states=Counter(training.state for training in trainings),
        findings=findings(trainings, entries),
        timeline=Timeline({training.name: (training.spans, training.entries) for training in trainings}),
        rows=rows,
        lines=len(entries),
        anchors=anchors,
        kinds=sorted({entry.kind for entry in entries}),
        trouble=TROUBLE,
        file=FILE,
        shown=CHANGES,
        long=LONG,
    )


def _spans(entries: list[Entry]) -> list[Span]:
    """When a training was running: from a first line to the line that ends it, or the last one."""
    spans: list[Span] = []
    previous: Entry | None = None
    for entry in entries:
        assert entry.time is not None, "only a torn line has no time, and it belongs to no training"
        if previous is None or previous.kind in ENDS or entry.kind == "start":
            spans.append(Span(entry.line, entry.time, entry.time))
        span = spans[-1]
        if entry.kind in ENDS:
            span.end = entry
        # A crash that was found later happened after the last line before it.
        seen = entry.facts.get("last_line")
        span.until = max(span.until, datetime.fromisoformat(seen) if seen else entry.time)
        previous = entry
    return spans


def grouped(entries: list[Entry]) -> list[Group]:
    """All lines, newest first; alike lines of a training that follow each other in one group."""
    groups: list[Group] = []
    last: dict[str, Group] = {}
    for entry in reversed(entries):
        group, alike = last.get(entry.training), ALIKE.get(entry.kind)
        if group is not None and alike is not None and ALIKE.get(group.entries[0].kind) == alike:
            group.entries.append(entry)
        else:
            last[entry.training] = Group([entry])
            groups.append(last[entry.training])
    return [
        part
        for group in groups
        for part in ([group] if len(group.entries) > FEW else [Group([entry]) for entry in group.entries])
    ]


def findings(trainings: list[Training], entries: list[Entry]) -> list[str]:
    """What somebody should know first, a sentence each; empty if nothing went wrong."""
    said = [sentence for training in trainings for sentence in (*_about_ends(training), *_about_steps(training))]
    if torn := sum(entry.kind == TORN for entry in entries):
        verb = "is" if torn == 1 else "are"
        said.append(f"{counted(torn, 'line')} of the logbook {verb} torn: half written, or being written just now.")
    return said


def _about_ends(training: Training) -> list[str]:
    crashes = [number for number, span in enumerate(training.spans) if span.end and span.end.kind == "crash"]
    said: list[str] = []
    if len(crashes) > CRASHES:
        said.append(f"{training.name} crashed {len(crashes):,} times; the last {CRASHES} follow.")
    for number in crashes[-CRASHES:]:
        span = training.spans[number]
        assert span.end is not None
        cause = (span.end.cause or "").split("\n")[0]
        silent = span.end.cause == WITHOUT_A_WORD
        step = f" (step {told_value(span.end.facts['step'])})" if "step" in span.end.facts else ""
        sentence = f"{training.name} {f'{cause} after' if silent else 'crashed at'} {span.until:%Y-%m-%d %H:%M}{step}"
        sentence += f"{_taken_up(training, span, training.spans[number + 1 :])}."
        said.append(sentence if silent or not cause else f"{sentence} {cause}")
    return said


def _taken_up(training: Training, span: Span, later: list[Span]) -> str:
    """How it went on after a crash."""
    if not later:
        return " and has not been started again"
    ending = later[1].line if len(later) > 1 else training.last.line + 1
    found = {entry.kind: entry for entry in reversed(training.entries) if later[0].line <= entry.line < ending}
    said = f"; it was started again {told_span((later[0].since - span.until).total_seconds())} later"
    said += f" and went on{_from(found['resume'])}" if "resume" in found else ", from the beginning"
    return f"{said}, with {told_change(found['reshard'])}" if "reshard" in found else said


def _about_steps(training: Training) -> list[str]:
    said: list[str] = []
    unfinite = training.of("not_finite")
    causes = Counter(
        (entry.cause or "").split("\n")[0] for entry in [*training.of("skipped"), *unfinite] if entry.cause
    )
    cause = "".join(f": {text}" for text, _ in causes.most_common(1))
    if training.skipped:
        said.append(f"{training.name} skipped {counted(training.skipped, 'batch')}{cause}.")
    elif unfinite:
        said.append(f"{training.name} met what is not finite {told_times(len(unfinite))}{cause}.")
    if lost := training.of("not_saved"):
        said.append(f"{training.name} could not save a checkpoint {told_times(len(lost))}: {lost[-1].cause}.")
    for entry in training.of("damaged")[-CRASHES:]:
        name = f" passed over {entry.facts['checkpoint']}" if "checkpoint" in entry.facts else ""
        said.append(f"{training.name}{name}{f': {entry.cause}' if entry.cause else ''}.")
    if late := training.of("delayed"):
        lines = sum(entry.facts.get("lines", 1) for entry in late)
        said.append(f"{counted(lines, 'line')} about {training.name} came late: {late[-1].cause}.")
    return said


def _from(entry: Entry) -> str:
    return f" from step {told_value(entry.facts['step'])}" if "step" in entry.facts else ""
