"""The page of a simulated A/B test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recsys.replay import report
from recsys.replay.report import Plot, Section, Table
from recsys.replay.simulation.results import CONDITIONS, ONLINE
from recsys.report import COLOURS, STYLE

TITLES = {"without_feedback": "without feedback", "with_feedback": "with feedback"}
METRICS: dict[str, str] = {"ips": "IPS, clicks"}
CYCLE = ("#1f5fbf", "#c2571a", "#3f8f4f", "#8a5fbf", "#b0902a", "#2a9aa8", "#b03a6a", "#6b6b6b", "#222222", "#d99a3a")


def write(directory: Path, found: Mapping[str, Any]) -> Path:
    """Write the page about what `results.summary` has found; returns its path."""
    sections = [_policies(found), _agreement(found), _rounds(found), _read(found)]
    return report.write(directory, "A/B tests in simulation", found["verdict"], sections)


def _policies(found: Mapping[str, Any]) -> Section:
    shown = tuple(reversed(CONDITIONS))
    # One list metric is enough for a table that a screen holds; all are in the next one.
    metrics = found["metrics"][1:]
    columns = ["policy", *(f"clicks {TITLES[condition]}" for condition in shown)]
    columns += [_title(metric) for metric in metrics]
    order = found["order"][CONDITIONS[-1]]
    rows = [
        [
            f"{name} (reference)" if found["policies"][name]["reference"] else name,
            *(_told(found["policies"][name]["online"][condition][ONLINE], 2) for condition in shown),
            *(_told(found["policies"][name]["offline"][metric], 2 if metric in METRICS else 3) for metric in metrics),
        ]
        for name in order
    ]
    judged = [row for row, name in enumerate(order) if not found["policies"][name]["reference"]]
    cells = [
        *(("online", condition, ONLINE) for condition in shown),
        *(("offline", metric, None) for metric in metrics),
    ]

    def value(row: int, side: str, name: str, inner: str | None) -> float:
        one = found["policies"][order[row]][side][name]
        return (one if inner is None else one[inner])["value"]

    strong = frozenset(
        (max(judged, key=lambda row, cell=cell: value(row, *cell)), place) for place, cell in enumerate(cells, start=1)
    )
    return Section(
        "Policies, the best before people first",
        [
            f"Before people: {found['rounds']} rounds of {found['feeds']:,} feeds of {found['slate']} items in each of "
            f"{found['seeds']} worlds; clicks of a feed, their true expectation. On the log: {found['seeds']} held-out "
            "logs of the world's own policy, replayed request by request; IPS: the clicks of a feed as they are "
            "estimated from it. In brackets, where 95 of 100 such experiments would end, by bootstrap "
            "over rounds, or over people."
        ],
        Table(columns, rows, strong),
        [Plot(_scatter(found), f"Each policy by {found['metrics'][1]} on the log and by what people click.")],
    )


def _agreement(found: Mapping[str, Any]) -> Section:
    columns = ("ordered on the log by", "before people", "Spearman", "Kendall", "lost by choosing offline")
    rows = [
        (
            _title(metric),
            TITLES[condition],
            _told(one["spearman"], 2),
            _told(one["kendall"], 2),
            _told(one["regret"], 3),
        )
        for metric in found["metrics"]
        for condition in CONDITIONS
        for one in [found["agreement"][condition][metric]]
    ]
    return Section(
        "Does the log foretell the people?",
        [
            "Rank correlations of policies that are no references: 1 is the same order, 0 none, −1 the reverse. The "
            "last column is the share of the best policy's clicks that is lost by taking the one that is best on the "
            "log. Intervals are by bootstrap over worlds, rounds and people; resampling adds noise, which only weakens "
            "a correlation, so that they reach further down than up."
        ],
        Table(columns, rows, words=frozenset({1})),
    )


def _rounds(found: Mapping[str, Any]) -> Section:
    with mpl.rc_context(rc=STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, title, series in (
            (left, "clicks a feed, expected", "rounds"),
            (right, "different items shown", "shown"),
        ):
            for place, name in enumerate(found["policies"]):
                for condition, style in zip(CONDITIONS, (":", "-"), strict=True):
                    value = found["policies"][name]["online"][condition][series]
                    label = name if condition == CONDITIONS[-1] else None
                    colour = CYCLE[place % len(CYCLE)]
                    axes.plot(range(1, len(value) + 1), value, style, color=colour, label=label, lw=1.3)
            axes.set(title=title, xlabel="round")
            axes.set_xticks(range(1, found["rounds"] + 1))
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return Section(
        "Round by round",
        ["A policy that learns from what it has shown moves away from the one that was judged on the log."],
        figures=[Plot(figure, "Solid: with feedback; dotted: without. Means over worlds.")],
    )


def _read(found: Mapping[str, Any]) -> Section:
    rows = [
        (name, f"{one['places']:,}", f"{one['matched']:,}", f"{one['effective']:,.0f}")
        for name, one in found["support"].items()
    ]
    return Section(
        "How to read this",
        [
            "With feedback, what a policy shows and what is clicked is added to the log, and it is fitted again on "
            "all of it before the next round; its feeds know every click at once. Without feedback it stays as "
            "it was when it was judged on the log, and nothing that it shows reaches it. A feed leaves out what the "
            "person has clicked: who clicks much soon has seen the best, and what is left is worth less, round by "
            "round.",
            "The people are simulated: they click by a taste that turns slowly, by the item's own appeal and by the "
            "position, independently for each item of a feed, and never tire of a feed. What holds here need not hold "
            "where that is wrong. The same people come at the same times for every policy, and the same "
            "chances decide.",
            "The metrics on the log count clicks that its own policy has led to, and favour who shows the same. The "
            "estimate (IPS) corrects that by the logged propensities: it is right on average, and rests on the few "
            "places of the log at which a policy shows what was logged; how few, the table says.",
        ],
        Table(("policy", "logged places", "shown at the same place", "worth so many equal ones"), rows),
    )


def _scatter(found: Mapping[str, Any]) -> Figure:
    metric = found["metrics"][1]
    with mpl.rc_context(rc=STYLE):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        axes: Axes = figure.subplots()
        for condition, colour, marker in zip(
            CONDITIONS, (COLOURS["popularity"], COLOURS["retriever"]), ("o", "s"), strict=True
        ):
            one = [(own["offline"][metric], own["online"][condition][ONLINE]) for own in found["policies"].values()]
            x, y = ([pair[side]["value"] for pair in one] for side in (0, 1))
            widths = [
                [
                    [pair[side]["value"] - pair[side]["low"] for pair in one],
                    [pair[side]["high"] - pair[side]["value"] for pair in one],
                ]
                for side in (0, 1)
            ]
            axes.errorbar(x, y, widths[1], widths[0], marker, color=colour, ms=4, lw=0.8, label=TITLES[condition])
        for name, own in found["policies"].items():
            place = (own["offline"][metric]["value"], own["online"][CONDITIONS[-1]][ONLINE]["value"])
            axes.annotate(name, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel=f"{metric} on the held-out log", ylabel="clicks a feed, expected")
        axes.legend(frameon=False)
    return figure


def _title(metric: str) -> str:
    return METRICS.get(metric, metric)


def _told(one: Mapping[str, float], digits: int = 3) -> str:
    value, low, high = (f"{one[name]:.{digits}f}".replace("-", "−") for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
