"""Where a system is known to fail, a sentence each, from what was measured."""

from collections.abc import Mapping
from typing import Any

WORST = 3
"""Groups that are told of as those that are served worst."""
NARROW = 1.2
"""How many times as often as people do a feed may choose from the most popular tenth before it is said."""
OFF = 0.05
"""How far a calibration may be from 1 before it is said."""
SOME = 0.01
"""Share of requests or events from which newcomers are said."""
METRIC = "ndcg@10"


def found(card: Mapping[str, Any]) -> list[dict[str, str]]:
    """`kind` and `sentence` of each, from the other parts of a card; empty where nothing was measured."""
    told: list[dict[str, str]] = []

    def say(kind: str, sentence: str) -> None:
        told.append({"kind": kind, "sentence": sentence})

    quality, groups = card.get("quality", {}), card.get("groups", {})
    systems = quality.get("systems")
    if systems:
        own = systems["retriever + ranker"]
        missed = 1 - own["recall@10"]
        say("missed", f"Of 100 people {100 * missed:.0f} do not find what they chose next among the first ten.")
        best = max((name for name in systems), key=lambda name: systems[name][METRIC])
        if best != "retriever + ranker":
            say(
                "beaten",
                f"For the next item, {best} alone is ahead of the whole system: {METRIC} {systems[best][METRIC]:.4f} "
                f"against {own[METRIC]:.4f}.",
            )
    for sentence in _of_groups(groups):
        say("group", sentence)
    _of_newcomers(card, say)
    _of_popularity(quality, say)
    for task, one in quality.get("ranking", {}).items():
        if abs(one.get("calibration", 1.0) - 1) > OFF:
            more = "less" if one["calibration"] < 1 else "more"
            say(
                "calibration",
                f"The second step says “{task}” {abs(one['calibration'] - 1):.0%} {more} often than it happens.",
            )
    drift = card.get("drift", [])
    if drift:
        names = ", ".join(one["feature"].replace("_", " ") for one in drift[:5])
        more = f" and {len(drift) - 5} more" if len(drift) > 5 else ""
        say("drift", f"Some features are not what they were when training ended: {names}{more}.")
    for sentence in card.get("training", {}).get("findings", []):
        say("training", sentence)
    return told


def _of_groups(groups: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Groups that are served worse by more than chance, the worst first; else that there are none."""
    if not groups:
        return []
    gaps = [(row["gap"], by, row) for by, rows in groups.items() for row in rows if (row.get("gap") or 0) < 0]
    told = [
        f"Served worse than all others together by {-gap:.3f} {METRIC}: {by} “{row['group']}” "
        f"({row[METRIC]:.3f}, {row['questions']:,} questions)."
        for gap, by, row in sorted(gaps, key=lambda one: one[0])[:WORST]
    ]
    few = sum("low" not in row for rows in groups.values() for row in rows)
    people = [by for by in groups if by not in ("activity", "item popularity", "item age")]
    if people and not any(by in people for _, by, _ in gaps):
        told.append(
            f"By {', '.join(people)} no group is served worse by more than chance gives with so few people; that does "
            "not say that there is no gap."
        )
    if few:
        told.append(f"{few} groups are too small to be judged.")
    return told


def _of_newcomers(card: Mapping[str, Any], say: Any) -> None:
    replay = card.get("quality", {}).get("replay")
    if replay and replay["strangers"] >= SOME * replay["events"]:
        say(
            "strangers",
            f"{replay['strangers'] / replay['events']:.1%} of the replayed requests came from people of whom "
            "nothing was known; they are shown what is popular.",
        )
    test = card.get("strangers")
    if not test:
        return
    if test["events"] and test["events_of_unknown_people"] >= SOME * test["events"]:
        share = test["events_of_unknown_people"] / test["events"]
        say(
            "new people",
            f"{share:.0%} of the events after training are of people whom training has not met: what is known of them "
            "comes from their latest actions alone.",
        )
    if test["unknown_items"]:
        say(
            "new items",
            f"{test['unknown_items']:,} items came up after training; they cannot be shown before the next one.",
        )


def _of_popularity(quality: Mapping[str, Any], say: Any) -> None:
    shares = quality.get("popularity")
    if shares and "system" in shares and shares["system"][0] > NARROW * shares["actual"][0]:
        say(
            "popularity",
            f"{shares['system'][0]:.0%} of what is shown is from the most popular tenth of the catalogue, from which "
            f"people choose {shares['actual'][0]:.0%}: the rest is shown less than it is wanted.",
        )
