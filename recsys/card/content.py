"""What a card says of a run, as plain values: read off its manifests, its logbook and its results."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import manifest
from features.errors import InputError
from features.manifest import read_json
from recsys import bundle as bundles
from recsys import logbook, summary
from recsys.card import failures, model, training
from recsys.card.features import described, is_sensitive
from recsys.config import RunConfig
from recsys.groups import FEW, people_groups
from recsys.logbook import FILE
from recsys.stages import RESULT, Run

NEEDED = {
    "prepare": "data, people and features",
    "train retriever": "the training of the first step",
    "train ranker": "the training of the second step",
    "export": "the parameters and how the models are built",
    "evaluate": "the quality, overall and by group",
    "replay": "the quality in time",
}
"""Stages → what a card misses without them."""

LOSSES = {
    "full": "how much of its belief in all items goes to the right one",
    "sampled": "how much of its belief in the right item and some by chance goes to the right one",
    "binary": "telling the right item from one by chance",
    "pointwise": "how surprised it is by what happened, event by event",
    "listwise": "how much of its belief in a list goes to the right item",
}
"""What makes a loss small, in words."""


def content(run: Run) -> dict[str, Any]:
    """All that is known of a run; what has not been made is in `missing` with the command that makes it.

    Raises:
        InputError: there is nothing yet.

    Returns:
        `name`, `as_of` (of the last thing that happened), `missing`, `purpose`, `objectives`, `features`, `remembered`,
        `data`, `people`, `items`, `environment`, `fingerprints`, `failures`; and where they have been made
        `architecture`, `parameters`, `training`, `quality`, `groups`.
    """
    config, split = run.config, run.config.served_split
    prepared = manifest.read(run.directory / "examples")
    if prepared is None:
        raise InputError(f"{run.directory}: there is nothing to tell of yet; run `recsys run {run.path}` first")
    found: dict[str, Any] = {
        "name": config.run.name,
        "missing": _missing(run),
        "purpose": _purpose(config),
        "objectives": _objectives(config),
        "features": _features(config),
        "remembered": _remembered(config),
        "fingerprints": {},
    }
    found |= _prepared(run, prepared)
    found["fingerprints"] |= {"data": prepared["content"], "settings of features": prepared["settings"]}
    trained = {
        role: facts
        for role in ("retriever", "ranker")
        if (facts := manifest.read(run.checkpoint(split, role))) is not None
    }
    exported = manifest.read(run.bundle(split))
    if exported is not None:
        found["architecture"] = model.architecture(config, bundles.load(run.bundle(split)))
        found["parameters"] = model.parameters(exported, trained, split)
        found["fingerprints"] |= {"schema": exported["schema"], "bundle": exported["key"]}
    entries = logbook.read(run.directory / FILE)
    if entries:
        found["training"] = training.history(entries)
    elif not any(one["what"] == NEEDED["train ranker"] for one in found["missing"]):
        found["missing"].append({"what": "what happened in training", "why": f"there is no {FILE}", "command": "train"})
    found |= _quality(run)
    found["environment"] = _environment(run)
    found["as_of"] = found.get("training", {}).get("last")
    found["failures"] = failures.found(found)
    return found


def _missing(run: Run) -> list[dict[str, str]]:
    """What a card cannot tell, or can tell only of an older state."""
    found: list[dict[str, str]] = []
    older: dict[str, str] = {}
    for stage, what in NEEDED.items():
        verb, places = stage.split(" ")[0], run.places(stage)
        if any(manifest.read(place) is None for place in places):
            found.append({"what": what, "why": "it has not been made", "command": verb})
        elif any(run.current(stage, place) is None for place in places):
            older[what] = verb
    if older:
        why = "it was made from another config, other data or other code, and is told as it was"
        found.append(
            {"what": "; ".join(older), "why": why, "command": "run" if len(older) > 1 else min(older.values())}
        )
    if "leave_one_out" not in run.config.prepare.splits:
        why = "prepare.splits has no leave_one_out, on which groups are judged"
        found.append({"what": "the quality by group", "why": why, "command": "run"})
    data = run.directory / "reports" / "data.json"
    if not data.exists():
        found.append(
            {"what": "how activity is shared out, and drift", "why": "it has not been made", "command": "prepare"}
        )
    for one in found:
        one["command"] = f"recsys {one['command']} {run.path}"
    return found


def _purpose(config: RunConfig) -> dict[str, Any]:
    exploring = config.recommend.blend.exploration
    return {
        "retrieved": config.recommend.retrieved,
        "task": config.label.replace("_", " "),
        "explored": None if exploring is None else list(exploring.slots),
        "diverse": config.recommend.blend.diversity is not None,
        "capped": config.recommend.blend.caps is not None,
        "seen_again_after": config.recommend.blend.seen_again_after,
    }


def _objectives(config: RunConfig) -> list[dict[str, str]]:
    label, blend = config.prepare.label, config.recommend.blend
    found = [
        {
            "who": "first step",
            "aim": "to find what the person will interact with next, among all items",
            "loss": LOSSES[config.retriever.loss.kind],
        }
    ]
    if config.lists:
        found.append(
            {
                "who": "second step",
                "aim": "to tell which of the items found is the one that comes next",
                "loss": LOSSES[config.ranker.loss.kind],
            }
        )
    else:
        rule = "an item that the person met, against items drawn by chance"
        if label.actions:
            rule = f"an event with the action {' or '.join(label.actions)}"
        elif label.at_least is not None:
            rule = f"a value of {label.at_least:g} or more"
        aim = f"to say how likely {label.name.replace('_', ' ')} is: {rule}"
        found.append({"who": "second step", "aim": aim, "loss": LOSSES[config.ranker.loss.kind]})
    for task in config.prepare.tasks:
        found.append({"who": "second step", "aim": f"to foretell {task.name.replace('_', ' ')}", "loss": "beside it"})
    weights = {name: weight for name, weight in blend.weights.items() if weight} or {config.label: 1.0}
    of_tasks = ", ".join(f"{name.replace('_', ' ')} {weight:g}" for name, weight in weights.items())
    order = (
        f"by {blend.retriever_weight:g} × the first step’s score + {blend.ranker_weight:g} × the second’s ({of_tasks})"
    )
    return [*found, {"who": "feed", "aim": f"the order: {order}", "loss": "not learned"}]


def _features(config: RunConfig) -> list[dict[str, Any]]:
    return [described(spec, config.prepare.counters) for spec in config.features]


def _remembered(config: RunConfig) -> dict[str, Any]:
    store = config.serve.get("store", {})
    actions = config.prepare.history_actions
    return {
        "store": store.get("kind", "lmdb"),
        "retain": config.prepare.retain,
        "seen": config.prepare.max_history,
        "actions": list(actions),
        "counters": [
            {"name": counter.name, "by": list(counter.by), "window": counter.window, "half_life": counter.half_life}
            for counter in config.prepare.counters
        ],
    }


def _prepared(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """The data, and who and what is in them."""
    users = pl.read_parquet(run.directory / "examples" / "users.parquet")
    rows, page = facts["rows"], run.directory / "reports" / "data.json"
    profile = read_json(page) if page.exists() else {}
    days = profile.get("days", [])
    parts = facts["parts"]
    people = {
        "count": rows["users"],
        "columns": [name for name in users.columns if name != "user_id"],
        "groups": {name: _counted(groups) for name, groups in people_groups(users).items()},
        "sensitive": [name for name in users.columns if is_sensitive(name)],
    }
    for name in ("quantiles", "mean", "once", "with_half", "share_of_top_percent"):
        if "people" in profile:
            people[name] = profile["people"][name]
    found: dict[str, Any] = {
        "data": {
            # A place on somebody's disk says nothing to a reader.
            "source": " ".join(Path(word).name if "/" in word else word for word in str(facts["source"]).split(" ")),
            "kind": run.config.dataset["kind"],
            "has_clock": facts["has_clock"],
            "first_ms": min(part["first_ms"] for part in parts) if facts["has_clock"] else None,
            "last_ms": max(part["last_ms"] for part in parts) if facts["has_clock"] else None,
            "days": len(days) if days else None,
            **{name: rows[name] for name in ("read", "valid", "quarantined", "interactions", "reasons")},
            "splits": facts["splits"],
        },
        "people": people,
        "items": {"count": rows["items"], **({"once": profile["items"]["once"]} if "items" in profile else {})},
    }
    if "drift" in profile:
        found["drift"] = _drift(profile["drift"])
        found["strangers"] = profile["splits"][profile["split"]]["test"]
    return found


def _counted(groups: pl.Series) -> list[dict[str, Any]]:
    """Groups of people with their shares, the largest first; those of few together, so that nobody is told of."""
    names, counts = np.unique(groups.to_numpy().astype(str), return_counts=True)
    rows = [
        {"group": str(name), "people": int(count), "share": float(count / len(groups))}
        for name, count in sorted(zip(names, counts, strict=True), key=lambda pair: -pair[1])
    ]
    few = [row for row in rows if row["people"] < FEW]
    kept = [row for row in rows if row["people"] >= FEW]
    if few:
        people = sum(row["people"] for row in few)
        title = f"{len(few)} groups of fewer than {FEW}" if len(few) > 1 else f"a group of fewer than {FEW}"
        kept.append({"group": title, "people": people, "share": people / len(groups)})
    return kept


def _drift(drift: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Features whose values in the test part are far from those of training, the farthest first."""
    # What draws plots is slow to import, and says what much is.
    from recsys.data_report import reading

    return [
        {"feature": one["feature"], "psi": one["test"]["psi"]}
        for one in drift
        if one.get("test") and reading(one["test"]["psi"], one["test"]["chance"]) == "much"
    ]


def _quality(run: Run) -> dict[str, Any]:
    """What was judged: overall, by group, in time."""
    found: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    if manifest.read(run.report("evaluate")) is not None:
        result = read_json(run.report("evaluate") / RESULT)
        quality["ranking"], quality["ranking_split"] = result["ranking"], result["ranking_split"]
        if "retrieval" in result:
            quality |= {
                "systems": summary.systems(result),
                "questions": result["questions"],
                "popularity": result["popularity"],
            }
        if "groups" in result:
            found["groups"] = result["groups"]
    if manifest.read(run.report("replay")) is not None:
        replay = read_json(run.report("replay") / RESULT)
        names = ("recall@10", "ndcg@10", "events", "strangers", "popularity")
        quality["replay"] = {name: replay[name] for name in names}
        quality["replay"]["latency_ms"] = {name: replay["latency_ms"][name] for name in ("p50", "p99")}
    return found | ({"quality": quality} if quality else {})


def _environment(run: Run) -> dict[str, Any]:
    """What everything was made with: libraries, the stages' time and memory."""
    stages: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for stage in NEEDED:
        for place in run.places(stage):
            facts = manifest.read(place)
            if facts is not None:
                own = stages.setdefault(stage, {"seconds": 0.0, "peak_memory_mb": 0.0, "source": ""})
                own["seconds"] += facts.get("seconds_taken", 0.0)
                own["peak_memory_mb"] = max(own["peak_memory_mb"], facts.get("peak_memory_mb", 0.0))
                own["source"] = facts["environment"]["source"]
                versions |= facts["environment"]["versions"]
    return {"versions": versions, "stages": stages}
