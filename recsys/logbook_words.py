"""How a logbook's lines are put into words: places, facts, changes, lengths of time."""

import json
from datetime import datetime, timedelta
from typing import Any

from recsys.logbook import Entry, difference

BRIEF = 40
"""Characters of a change from which a sentence does not spell it out."""
HEAVY = ("config", "changed", "versions", "plan", "plans")
"""Facts that take more than a phrase."""
PLACED = ("step", "epoch", "batch", "before", "after", "text", *HEAVY)
"""Facts that are not told among the others: they have a place of their own."""


def told_times(number: int) -> str:
    """How often, in words."""
    return "once" if number == 1 else f"{number:,} times"


def counted(number: int, noun: str) -> str:
    """A number of lines, or of batches."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('ch') else 's'}"


def changes(entry: Entry) -> dict[str, dict[str, Any]] | None:
    """What a line says has changed: dotted field → `before` and `after`; None if it is about nothing of the kind."""
    before, after = entry.facts.get("before"), entry.facts.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        return difference(before, after)
    return entry.facts.get("changed")


def told_change(entry: Entry) -> str:
    """The same in a sentence: what is a short value is spelled out, what is long or nested is named."""
    said: dict[str, None] = {}
    for name, both in (changes(entry) or {}).items():
        text = f"{name} {told_value(both.get('before'))} → {told_value(both.get('after'))}"
        said[text if len(text) <= BRIEF and "." not in name else f"another {name.split('.')[0]}"] = None
    return ", ".join(said)


def told_place(facts: dict[str, Any]) -> tuple[str, str]:
    """The step, and the epoch and batch, in words; the first is empty only if both are."""
    inside = ", ".join(f"{name} {told_value(facts[name])}" for name in ("epoch", "batch") if name in facts)
    return (f"step {told_value(facts['step'])}", inside) if "step" in facts else (inside, "")


def told_facts(entry: Entry) -> list[tuple[str, str]]:
    """What a line says beside its cause, its place and what takes a table: name, value."""
    facts = {name: value for name, value in entry.facts.items() if name not in PLACED}
    said: list[tuple[str, str]] = []
    if "metric" in facts and "value" in facts:
        said.append((str(facts.pop("metric")), told_value(facts.pop("value"))))
    for name, value in facts.items():
        if isinstance(value, dict):
            said += [(f"{name}.{of}" if name != "metrics" else of, told_value(inner)) for of, inner in value.items()]
        elif name == "commit":
            said.append((name, str(value)[:10]))
        else:
            said.append((name.replace("_", " "), _measure(name, value)))
    return said


def told_score(entry: Entry) -> str:
    """The best validation, in words."""
    return ", ".join(f"{name} {value}" for name, value in told_facts(entry)[:1])


def _measure(name: str, value: Any) -> str:
    if name == "last_line":
        return f"{datetime.fromisoformat(value):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name == "seconds":
            return f"{value:.3g} s" if value < 100 else told_span(value)
        if name == "bytes":
            return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.2f} MB"
        if name == "pid":
            return str(value)
    return told_value(value)


def told_value(value: Any) -> str:
    """Any fact, as it stands in a table."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-").replace("-", "−")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def told_span(seconds: float) -> str:
    """A length of time in words, its two largest units."""
    left = timedelta(seconds=round(seconds))
    hours, rest = divmod(left.seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [(left.days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((place for place, (number, _) in enumerate(parts) if number), 3)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number) or "0 s"
