"""The page of a replayed log: the verdict, tables with intervals, plots in time and by segment, feeds side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from recsys.replay import report
from recsys.replay.report import Plot, Section, Table
from recsys.replay.results import FEWEST, MAIN
from recsys.replay.runner import SHOWN
from recsys.replay.settings import Config
from recsys.replay.world import World
from recsys.report import STYLE

COLOURS = ("#c2571a", "#1f5fbf", "#3f8f4f", "#8a8a8a", "#7a4fa3", "#b0912b")

KINDS = {
    "activity": "how much the person had done before",
    "item_met": "how often the item had been met by anybody",
    "item_age": "how long ago the item was first met",
    "category": "category of the item",
}

EXAMPLES, EXAMPLE_PLACES = 3, 5


def verdict(result: dict[str, Any]) -> str:
    """Which policy is ahead, by how much, and whether that is real."""
    policies = result["policies"]
    first, *others = sorted(policies, key=lambda name: -policies[name][MAIN])
    events = f"{result['events']:,} events of {result['users']:,} people"
    if not others:
        return f"{first} has {MAIN} {policies[first][MAIN]:.4f} over {events}."
    second = others[0]
    one = _difference(result, first, second, MAIN)
    apart = f"by {one['mean']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"
    if not one["real"]:
        return (
            f"{first} and {second} cannot be told apart over {events}: {MAIN} {policies[first][MAIN]:.4f} and "
            f"{policies[second][MAIN]:.4f}; the difference, {apart.removeprefix('by ')}, may be chance."
        )
    return (
        f"{first} is ahead: {MAIN} {policies[first][MAIN]:.4f} over {events}, against {policies[second][MAIN]:.4f} of "
        f"{second}; {apart}, which is real after correction."
    )


def write(directory: Path, title: str, result: dict[str, Any], world: World, config: Config) -> Path:
    """Draw and write the page; returns its path."""
    with mpl.rc_context(rc=STYLE):
        sections = [
            _quality(result, config),
            *([_compared(result, config)] if result["differences"] else []),
            *([_in_time(result)] if "period" in result["segments"] else []),
            _segments(result),
            *([_gaps(result)] if result["gaps"] else []),
            _shown(result, config),
            _examples(directory, list(result["policies"]), world, config),
            _latency(result),
            _assumed(result, config),
        ]
        return report.write(directory, f"Replay: {title}", verdict(result), sections)


def _quality(result: dict[str, Any], config: Config) -> Section:
    policies = result["policies"]
    metrics = [f"{name}@{k}" for k in sorted({5, 10, config.k}) for name in ("recall", "ndcg", "mrr", "map")]
    if config.ahead == 1:
        metrics = [metric for metric in metrics if not metric.startswith("map")]
    rows = []
    for name, found in policies.items():
        cells = [f"{found[metric]:.4f} ± {_half(found['intervals'][metric]):.4f}" for metric in metrics]
        rows.append([name, *cells])
    strong = frozenset(
        (int(np.argmax([found[metric] for found in policies.values()])), 1 + place)
        for place, metric in enumerate(metrics)
    )
    what = "the event's own item" if config.ahead == 1 else f"the person's next {config.ahead} items"
    text = (
        f"Before each event every policy was asked for {config.k} items, out of the whole catalogue but for what the "
        f"person had met; right is {what}. Beside each mean is half of its 95 % interval, from a bootstrap by people."
    )
    if config.ahead == 1:
        text += " With one right item map is mrr."
    return Section("How good the feeds were", (text,), Table(("policy", *metrics), rows, strong))


def _compared(result: dict[str, Any], config: Config) -> Section:
    metrics = [f"recall@{config.k}", f"ndcg@{config.k}"]
    metrics += [name for name in ("diversity", "miscalibration", "novelty") if name in _any(result)]
    rows: list[list[str]] = []
    strong: set[tuple[int, int]] = set()
    for a, others in result["differences"].items():
        for b, found in others.items():
            strong |= {(len(rows), 1 + place) for place, metric in enumerate(metrics) if found[metric]["real"]}
            rows.append([f"{a} − {b}", *(_apart(found[metric]) for metric in metrics)])
    number = sum(len(found) for others in result["differences"].values() for found in others.values())
    text = (
        "Means of the first policy less those of the second, with 95 % intervals; real ones are blue. Each resample "
        f"draws people, the same for both, and takes all their events; {config.resamples:,} resamples. p-values are "
        f"two-sided and corrected by Holm's method for all {number} differences of this replay, not only those shown: "
        f"the chance of calling any of them real by mistake is {result['compared']['real_below']:.0%}."
    )
    return Section("Which differences are real", (text,), Table(("difference", *metrics), rows, frozenset(strong)))


def _in_time(result: dict[str, Any]) -> Section:
    periods = result["segments"]["period"]
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    axes = figure.subplots()
    dates = np.array(list(periods), dtype="datetime64[D]")
    for name, colour in _coloured(result):
        middle = [one[name][MAIN] for one in periods.values()]
        low = [one[name]["interval"]["low"] for one in periods.values()]
        high = [one[name]["interval"]["high"] for one in periods.values()]
        axes.plot(dates, middle, marker=".", color=colour, label=name)
        axes.fill_between(dates, low, high, color=colour, alpha=0.12, lw=0)
    axes.set(ylabel=MAIN, ylim=(0, None))
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.legend(frameon=False, ncols=len(result["policies"]))
    events = [one["events"] for one in periods.values()]
    caption = f"{MAIN} by day, week or month, with 95 % intervals; {min(events):,} to {max(events):,} events a point."
    return Section("In time", (), None, (Plot(figure, caption),))


def _segments(result: dict[str, Any]) -> Section:
    plots = []
    for by, segment in result["segments"].items():
        if by != "period" and len(segment) > 1:
            plots.append(Plot(_bars(result, segment), f"{MAIN} by {KINDS.get(by, by)}, with 95 % intervals."))
    return Section("For whom, and of what", (), None, plots)


def _bars(result: dict[str, Any], segment: dict[str, Any]) -> Figure:
    policies = list(_coloured(result))
    figure = Figure(figsize=(5.2, 1.0 + 0.085 * len(segment) * (len(policies) + 1)), layout="constrained")
    axes = figure.subplots()
    names = list(segment)
    height = 0.8 / len(policies)
    for number, (name, colour) in enumerate(policies):
        place = np.arange(len(names)) + (number - (len(policies) - 1) / 2) * height
        value = np.array([segment[one][name][MAIN] for one in names])
        ends = [segment[one][name]["interval"] for one in names]
        error = [
            np.maximum(value - [end["low"] for end in ends], 0),
            np.maximum([end["high"] for end in ends] - value, 0),
        ]
        axes.barh(place, value, height * 0.9, xerr=np.nan_to_num(error), color=colour, label=name, error_kw={"lw": 0.7})
    axes.set_yticks(range(len(names)), [f"{name} ({segment[name]['events']:,})" for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=MAIN)
    axes.margins(y=0.01)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=len(policies))
    return figure


def _gaps(result: dict[str, Any]) -> Section:
    rows = [
        [by, name, one["best"], one["worst"], f"{one['mean']:.4f}", _between(one)]
        for by, found in result["gaps"].items()
        for name, one in found.items()
    ]
    text = (
        f"Between the segment that a policy serves best and the one that it serves worst, in {MAIN}, of those with at "
        f"least {FEWEST} people. Both were picked after looking, so that a gap whose interval only just leaves 0 out "
        "says little."
    )
    columns = ("by", "policy", "best", "worst", "gap", "95 % interval")
    return Section("Gaps", (text,), Table(columns, rows, words=frozenset({0, 1, 2, 3})))


def _shown(result: dict[str, Any], config: Config) -> Section:
    wanted = {
        f"coverage@{config.k}": "coverage",
        f"gini@{config.k}": "Gini",
        "novelty": "novelty, bits",
        "popularity_rank": "popularity rank",
        "popularity_bias": "rank over history's",
        "diversity": "diversity",
        "miscalibration": "miscalibration",
    }
    names = [name for name in wanted if name in _any(result)]
    rows = [
        [
            name,
            *(f"{found[metric]:,.0f}" if metric == "popularity_rank" else f"{found[metric]:.3f}" for metric in names),
        ]
        for name, found in result["policies"].items()
    ]
    text = (
        "Coverage: share of the catalogue that was shown to anybody. Gini: 0 where all items are shown equally often, "
        "1 where one takes all. Novelty: mean self-information of what is shown. Popularity rank: its mean place among "
        "all items by how often they had been met, 1 the most popular; beside it, that over the same of the person's "
        "history: below 1 a feed is of more popular items than the person has chosen so far. Diversity: mean distance, "
        "1 − cosine of categories, of two items of a feed. Miscalibration: KL divergence of a feed's categories from "
        "the history's, 0 where the proportions are kept."
    )
    return Section("What was shown", (text,), Table(("policy", *(wanted[name] for name in names)), rows))


def _examples(directory: Path, names: Sequence[str], world: World, config: Config) -> Section:
    """Feeds of people with a history, spread over the log."""
    title = "title" if "title" in world.items.columns else "item_id"
    titles = ["", *(str(value) for value in world.items[title].fill_null("?").to_list()[1:])]
    history = np.flatnonzero(world.active_before_E >= min(5, world.active_before_E.max()))
    chosen = history[np.linspace(0, len(history) - 1, EXAMPLES + 2).astype(int)[1:-1]].tolist()
    shown = (
        pl.scan_parquet(directory / SHOWN / "*.parquet").filter(pl.col("event").is_in(chosen)).sort("event").collect()
    )
    rows: list[list[str]] = []
    strong: set[tuple[int, int]] = set()
    for row in shown.iter_rows(named=True):
        event = row["event"]
        right = int(world.item_E[event])
        before = np.flatnonzero(world.user_E[:event] == world.user_E[event])
        last = f", the last “{titles[world.item_E[before[-1]]]}”" if len(before) else ""
        said = f"After {world.active_before_E[event]} interactions{last}; next came “{titles[right]}”"
        rows.append([said, *("" for _ in names)])
        for place in range(EXAMPLE_PLACES):
            feeds = [row[f"{name}.items"] for name in names]
            strong |= {
                (len(rows), 1 + number)
                for number, feed in enumerate(feeds)
                if place < len(feed) and feed[place] == right
            }
            cells = [titles[feed[place]] if place < len(feed) else "" for feed in feeds]
            rows.append([f"{place + 1}", *cells])
    text = f"The first {EXAMPLE_PLACES} of {config.k} places, at events spread over the log; what came next is blue."
    table = Table(("", *names), rows, frozenset(strong), frozenset(range(len(names) + 1)))
    return Section("Feeds side by side", (text,), table)


def _latency(result: dict[str, Any]) -> Section:
    rows = []
    for name, found in result["policies"].items():
        one = found["latency_ms"]
        stages = ", ".join(f"{stage} {milliseconds:.1f}" for stage, milliseconds in one["stages"].items())
        rows.append([name, *(f"{one[quantile]:.1f}" for quantile in ("p50", "p90", "p99", "mean")), stages])
    measured = next(iter(result["policies"].values()))["latency_ms"]["measured"]
    text = f"Milliseconds for a feed, of {measured:,} that were asked for alone; the others were scored in batches."
    columns = ("policy", "median", "p90", "p99", "mean", "mean by stage")
    return Section("Latency", (text,), Table(columns, rows, words=frozenset({5})))


def _assumed(result: dict[str, Any], config: Config) -> Section:
    log = result["log"]
    reasons = "".join(f"; {count:,} × {reason}" for reason, count in log["reasons"].items())
    unseen = result["unknown_items"]
    strangers = ", ".join(f"{name} {found['strangers']:,}" for name, found in result["policies"].items())
    return Section(
        "What is assumed",
        (
            "What people did was done under another feed, or none. A policy is judged by whether it shows what they "
            "did then; what they would have done had they seen its feed is not known, so that policies like the one "
            "of then have it easier. Nothing that a policy shows changes what comes next.",
            "Models are not trained on the way: a policy knows the events of the replay as history and as counts, "
            "while its weights stay those of its bundle. Baselines are counted over what was before the log.",
            f"The log: {log['source']}; {log['quarantined']:,} rows refused{reasons}; {log['out_of_order']:,} out of "
            f"order and sorted; {unseen:,} events with items that no policy knows, which count as missed. Requests of "
            f"people without a history, who get what is popular: {strangers}.",
            "People are taken to be independent of each other. Coverage and Gini are of all feeds together and have no "
            "interval.",
        ),
    )


def _coloured(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(result["policies"])]


def _difference(result: dict[str, Any], a: str, b: str, metric: str) -> dict[str, Any]:
    """A less b, whichever way round it was compared."""
    tree = result["differences"]
    if b in tree.get(a, {}):
        return tree[a][b][metric]
    one = tree[b][a][metric]
    return one | {"mean": -one["mean"], "low": -one["high"], "high": -one["low"]}


def _any(result: dict[str, Any]) -> dict[str, Any]:
    return next(iter(result["policies"].values()))


def _half(interval: dict[str, float]) -> float:
    return (interval["high"] - interval["low"]) / 2


def _between(one: dict[str, Any]) -> str:
    return "–" if np.isnan(one["low"]) else f"{one['low']:.4f} to {one['high']:.4f}"


def _apart(one: dict[str, Any]) -> str:
    return f"{_signed(one['mean'])} [{_signed(one['low'])}, {_signed(one['high'])}]"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")
