"""What a feature looks at and why, in words made from its declaration; and what of a person it touches."""

from collections.abc import Sequence
from typing import Any

from features.counters import Counter
from features.schema import RETRIEVED, FeatureSpec

SENSITIVE = (
    *("age", "gender", "sex", "race", "ethnicity", "religion", "health", "disability", "income", "nationality"),
    *("orientation", "political", "zip", "postal", "city", "country", "location", "language", "occupation", "birth"),
)
"""Words in a column's name from which a card calls it sensitive."""

NOTHING = "nothing of the person"
WHY = {
    "person": "so that different people get different feeds",
    "item": "so that items differ from each other",
    "moment": "so that a feed fits its moment",
    "history": "so that a feed follows what the person did before",
    "everybody": "so that what has pleased others counts",
    "retriever": "so that the order starts from what the first step found",
}


def described(spec: FeatureSpec, counters: Sequence[Counter]) -> dict[str, Any]:
    """A feature in words.

    Returns:
        `name`; `looks_at`, what of the data; `becomes`, what is made of it; `why`; `personal`, what of a person it
        touches; `sensitive`.
    """
    looks_at, why, personal = _source(spec, counters)
    sensitive = personal != NOTHING and is_sensitive(spec.source.split(".")[1])
    return {
        "name": spec.name,
        "source": spec.source,
        "looks_at": looks_at,
        "becomes": _becomes(spec),
        "why": WHY[why],
        "personal": personal,
        "sensitive": sensitive,
    }


def _becomes(spec: FeatureSpec) -> str:
    """What the model reads."""
    match spec.kind:
        case "sparse":
            return f"each value as {spec.dim} learned numbers, in the table “{spec.table_name}” ({spec.transform})"
        case "bag":
            return f"all its values as {spec.dim} learned numbers, in the table “{spec.table_name}” ({spec.transform})"
        case "dense":
            return f"as a number ({spec.transform})"
        case "vector":
            return f"as a list of numbers ({spec.transform})"


def is_sensitive(column: str) -> bool:
    """Whether a column's name says that it holds what people are treated unequally for, or where they are."""
    words = column.lower().split("_")
    return any(word in SENSITIVE for word in words)


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, without its formulas."""
    line = " ".join((text or "").split("\n\n")[0].split())
    return line.split(". ")[0].rstrip(".")


def _source(spec: FeatureSpec, counters: Sequence[Counter]) -> tuple[str, str, str]:
    entity, column = spec.source.split(".")
    words = column.replace("_", " ")
    if spec.source.startswith(RETRIEVED):
        return f"what the first step says of the item: {words}", "retriever", "what the person did before"
    match entity, column:
        case "user", "index":
            return "which person it is", "person", "the person's identifier"
        case "item", "index":
            return "which item it is", "item", NOTHING
        case "user", _:
            return f"what is known of the person: {words}", "person", f"the person's {words}"
        case "item", _:
            return f"what is known of the item: {words}", "item", NOTHING
        case "history", _:
            return f"{words} of the items that the person met last", "history", "what the person did before"
        case "feature", _:
            names = [name for value in spec.params.values() for name in (value if isinstance(value, list) else [value])]
            others = " and ".join(str(name).replace("_", " ") for name in (column, *names))
            return f"{others}, taken together", "person", "what these touch"
        case "request", "timestamp":
            return "when the feed is asked for", "moment", "when the person comes"
        case "request", "history":
            return "the items that the person met last", "history", "what the person did before"
        case _:
            return _of_request(column, words, counters)


def _of_request(column: str, words: str, counters: Sequence[Counter]) -> tuple[str, str, str]:
    """A counter, the time of a last event, or a column of the log's context."""
    for name, what in (("user_last_timestamp", "person's"), ("item_last_timestamp", "item's")):
        if column == name:
            own = what == "person's"
            said = f"how long the {what} last interaction is ago"
            return said, "history" if own else "everybody", "when the person was last here" if own else NOTHING
    stem, _, kind = column.rpartition("_")
    counted = {"events": "interactions", "positives": "positive interactions"}.get(kind)
    if counted is not None:
        if stem in ("user", "item"):
            of, personal = ("the person", "how much the person did") if stem == "user" else ("the item", NOTHING)
            return f"{counted} of {of} so far", "history" if stem == "user" else "everybody", personal
        for counter in counters:
            if counter.name == stem:
                by = " and ".join(
                    axis.replace("user", "this person").replace("item", "this item") for axis in counter.by
                )
                span = f" in the last {counter.window}" if counter.window else " so far"
                of_person = any(axis.startswith("user") for axis in counter.by)
                why = "history" if of_person else "everybody"
                return (
                    f"{counted} counted by {by.replace('.', '’s ')}{span}",
                    why,
                    ("what the person did before" if of_person else NOTHING),
                )
    return f"what the request says: {words}", "moment", f"the person's {words} at that moment"
