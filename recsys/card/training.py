"""What a run's logbook tells of its trainings: starts, crashes, resumes, how long, how each ended."""

from collections.abc import Sequence
from typing import Any

from recsys.logbook import TORN, Entry, stamp
from recsys.logbook_page import Training, findings


def history(entries: Sequence[Entry]) -> dict[str, Any]:
    """The trainings of a logbook.

    Returns:
        `trainings`: `name`, `state`, `first`, `last` (ISO 8601), `seconds` of running, counts of `starts`, `crashes`,
        `resumes`, `checkpoints`, `skipped` batches, `evaluation` (its last one's metrics) and `best` (metric, value);
        `findings`, a sentence for each that somebody should know; `commits` that trained; `last`, of all lines.
    """
    names = dict.fromkeys(entry.training for entry in entries if entry.kind != TORN)
    trainings = [Training(name, [entry for entry in entries if entry.training == name]) for name in names]
    commits = dict.fromkeys(
        f"{entry.facts['commit'][:10]}{' with changes' if entry.facts.get('uncommitted') else ''}"
        for entry in entries
        if entry.kind == "start" and "commit" in entry.facts
    )
    times = [entry.time for entry in entries if entry.time is not None]
    return {
        "trainings": [_told(training) for training in trainings],
        "findings": findings(trainings, list(entries)),
        "commits": list(commits),
        "last": stamp(max(times)) if times else None,
    }


def _told(training: Training) -> dict[str, Any]:
    best, evaluation = training.latest("best"), training.latest("evaluation")
    return {
        "name": training.name,
        "state": training.state,
        "first": stamp(training.spans[0].since),
        "last": stamp(training.last.time),
        "seconds": round(training.seconds, 1),
        "starts": len(training.of("start")),
        "crashes": len(training.of("crash")),
        "resumes": len(training.of("resume")),
        "checkpoints": len(training.of("checkpoint")),
        "skipped": training.skipped,
        "evaluation": None if evaluation is None else evaluation.facts.get("metrics"),
        "best": None if best is None else {"metric": best.facts.get("metric"), "value": best.facts.get("value")},
    }
