"""What the counters of a store mean, and whether a bundle means the same by them.

A store is filled once, from the snapshot of a bundle, and lives on when other bundles are served from it. What it holds
are numbers under hashed keys, which say nothing of what they count: it keeps that as text. Histories and tastes hold
the log's own ids and actions, and mean the same to every bundle of the same log.
"""

import json
from typing import Any

from features import pipeline
from features.errors import InputError
from features.fold import Plan
from features.online import StateStore
from recsys.bundle import Bundle


def meaning(bundle: Bundle) -> str:
    """What counters mean to a bundle: which there are, what is an interaction and what a positive, the kind of ids."""
    prepared = pipeline.Config.model_validate(bundle.config["prepare"])
    counters = Plan.of(prepared.counters, (), prepared.ranker_history, 0, 0).counters
    label = prepared.label.model_dump(mode="json", include={"actions", "at_least"})
    what: dict[str, Any] = {
        "counters": {one.name: one.model_dump(mode="json", exclude={"name"}, exclude_none=True) for one in counters},
        "history_actions": sorted(prepared.history_actions),
        "label": {**label, "actions": sorted(label["actions"])},
        "user_id": _kind(bundle.users.schema["user_id"].is_integer()),
        "item_id": _kind(bundle.items.schema["item_id"].is_integer()),
    }
    return json.dumps(what, sort_keys=True)


def misfit(bundle: Bundle, store: StateStore) -> str | None:
    """Why a bundle cannot go on with a store, in one line with the fix; None where it can, or the store is empty."""
    kept, own = store.meaning(), meaning(bundle)
    if kept is None or kept == own:
        return None
    before, now = json.loads(kept or "{}"), json.loads(own)
    differ = [name for name in now if before.get(name) != now[name]]
    return (
        f"{store.place}: what it counts is not what {bundle.directory} counts: they differ in {', '.join(differ)} of "
        "[prepare]; serve a bundle that was prepared as the one which filled the store, or set another store.path or "
        "store.prefix, which is then filled from this bundle"
    )


def require_fit(bundle: Bundle, store: StateStore) -> None:
    """Refuse a store that was filled for another meaning.

    Raises:
        InputError: see `misfit`.
    """
    if (why := misfit(bundle, store)) is not None:
        raise InputError(why)


def _kind(integer: bool) -> str:
    return "number" if integer else "text"
