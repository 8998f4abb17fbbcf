"""One HTML file about prepared data, to be read before anything is trained: what to trust, and what to look at.

    page = write(Path("runs/ml-1m"), "time")

`recsys prepare` calls it. `features.profile` finds the numbers, which are left in `data.json` beside the page.
"""

import io
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from features.manifest import write_json, write_text
from features.pipeline import NAMES, Split
from features.profile import UNKNOWN, profile
from recsys.report import STYLE

TEMPLATE = "data_report.html.jinja"
COLOURS = {
    "all": "#8a8a8a",
    "interactions": "#1f5fbf",
    "positives": "#c2571a",
    "people": "#1f5fbf",
    "items": "#c2571a",
    "cut": "#222222",
}
TITLES = {"train": "training", "valid": "validation", "test": "test"}

SOME, MUCH = 0.1, 0.25
"""Stability indices from which drift is called some, and much."""

QUARANTINED = 0.01
"""Share of refused rows from which the page says so on top."""
REPEATED = 0.2
"""Share of interactions that repeat one of the same person and item, likewise."""
STRANGERS = {"people": 0.2, "items": 0.05}
"""Shares of a part's events that come from people, or are about items, that training does not know, likewise."""
RATE = 0.2
"""Relative difference of a part's base rate from training's, likewise."""
MOSTLY = 0.5
"""Share of examples in which a feature is unknown, missing or empty, likewise."""

UNEVEN = 50
"""How many times the median the busiest day has, where days are drawn on a logarithmic scale."""
LONG = 60
"""Days from which a part's times are told without the hour, and before which without the year."""
PARTS_SHOWN = 12
"""Rows of the table of the log's parts."""


def write(directory: Path, split: Split) -> Path:
    """Profile the examples of a run and write `reports/data.json` and the page; returns the page's path.

    Args:
        directory: of the run.
        split: whose features are shown.
    """
    found = profile(directory / "examples", split)
    out = page(directory)
    write_json(out.with_suffix(".json"), found)
    write_text(out, render(directory.name, found))
    return out


def page(directory: Path) -> Path:
    """Where the page of a run is."""
    return directory / "reports" / "data.html"


def render(name: str, found: dict[str, Any]) -> str:
    """The page about what `features.profile` has found."""
    with mpl.rc_context(rc=STYLE):
        plots = {"days": _days(found), "lorenz": _lorenz(found), "ranks": _ranks(found)}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "count": lambda number: f"{number:,.0f}",
        "share": _share,
        "number": _number,
        "moment": _moment,
        "cut": lambda ms: _moment(ms)[:10] if len(found["days"]) > LONG else _moment(ms)[5:],
        "span": _span,
        "histogram": _histogram,
        "index": lambda value: "<0.001" if value < 0.001 else f"{value:.3f}",
        "short": lambda text: text if len(text) <= 24 else text[:23] + "…",
    }
    features = {
        kind: [feature for feature in found["features"] if feature["kind"] == kind]
        for kind in ("sparse", "bag", "dense", "vector")
    }
    parts = found["parts"]
    hidden = max(len(parts) - PARTS_SHOWN, 0)
    return environment.get_template(TEMPLATE).render(
        name=name,
        found=found,
        findings=findings(found),
        plots=plots,
        features=features,
        drift=[{**one, **_worse(one)} for one in found["drift"]],
        parts=parts if not hidden else [*parts[: PARTS_SHOWN // 2], *parts[-PARTS_SHOWN // 2 :]],
        hidden=hidden,
        positives=sum(part["positives"] for part in parts),
        part_titles=TITLES,
        sampled=any(part["examples"] != part["events"] for of in found["splits"].values() for part in of.values()),
        some=SOME,
        much=MUCH,
    )


def findings(found: dict[str, Any]) -> list[str]:
    """What an analyst should look at before training, a sentence each; empty if nothing stands out."""
    return [*_about_log(found), *_about_splits(found), *_about_features(found)]


def reading(psi: float, chance: float) -> str:
    """How a stability index is usually read.

    Args:
        psi: the index.
        chance: what samples of this size give without any drift.
    """
    if psi < SOME:
        return "none"
    if psi <= chance:
        return "chance"
    return "some" if psi <= MUCH else "much"


def _about_log(found: dict[str, Any]) -> list[str]:
    said: list[str] = []
    rows = found["rows"]
    if rows["quarantined"] > QUARANTINED * rows["read"]:
        reason, count = max(rows["reasons"].items(), key=lambda pair: pair[1])
        said.append(
            f"{_share(rows['quarantined'] / rows['read'])} of the rows read were refused, most often for “{reason}” "
            f"({count:,})."
        )
    for name, of in (("people", "unknown_users"), ("items", "unknown_items")):
        if rows[of]:
            said.append(f"{rows[of]:,} {name} of the log are not described by their table.")
    if found["pairs"]["repeated"] > REPEATED:
        said.append(
            f"{_share(found['pairs']['repeated'])} of the interactions repeat an earlier one of the same person and "
            "item; a feed that leaves out what was seen cannot find them."
        )
    silent = _silent_days(found["days"])
    if silent:
        gap = found["gaps"][0]
        said.append(
            f"{silent:,} {'day has' if silent == 1 else 'days have'} no event at all; the longest silence, of "
            f"{_span(gap['ms'])}, ends {_moment(gap['to_ms'])}."
        )
    return said


def _silent_days(days: list[dict[str, Any]]) -> int:
    if not days:
        return 0
    first, last = (date.fromisoformat(days[place]["day"]) for place in (0, -1))
    return (last - first).days + 1 - len(days)


def _about_splits(found: dict[str, Any]) -> list[str]:
    said: list[str] = []
    for split, parts in found["splits"].items():
        usual = parts["train"]["base_rate"]
        if usual in (0, 1):
            said.append(f"In the training part of “{split}” every label is {usual:.0f}: there is nothing to learn.")
        for name in NAMES[1:]:
            part = parts[name]
            where = f"the {TITLES[name]} part of “{split}”"
            if not part["examples"]:
                said.append(f"{where[0].upper()}{where[1:]} has no examples.")
                continue
            rate = part["base_rate"]
            if usual and abs(rate / usual - 1) > RATE:
                said.append(f"In {where} {_share(rate)} are positive, in training {_share(usual)}.")
            for kind, limit in STRANGERS.items():
                share = part[f"events_of_unknown_{kind}"] / max(part["events"], 1)
                if share > limit:
                    verb = "come from people" if kind == "people" else "are about items"
                    said.append(f"In {where} {_share(share)} of the events {verb} that training has never seen.")
    return said


def _about_features(found: dict[str, Any]) -> list[str]:
    said: list[str] = []
    constant = [f["name"] for f in found["features"] if _is_constant(f)]
    if constant:
        said.append(f"Nothing to be learnt from what is the same in all of training: {', '.join(constant)}.")
    for feature in found["features"]:
        if feature.get("not_finite"):
            said.append(f"{feature['name']} is no finite number in {feature['not_finite']:,} examples of training.")
        for name in ("unknown", "missing", "empty"):
            share = feature.get(name)
            if share is not None and share > MOSTLY and feature["name"] not in constant:
                said.append(f"{feature['name']} is {name} in {_share(share)} of training.")
    drifted = [{**one, **_worse(one)} for one in found["drift"]]
    lost = [one for one in drifted if one["reading"] in ("some", "much") and one[one["part"]]["bin"] == UNKNOWN]
    moved = [one for one in drifted if one not in lost]
    for level, word in (("much", "much"), ("some", "somewhat")):
        names = dict.fromkeys(one["feature"] for one in moved if one["reading"] == level)
        if names:
            said.append(f"Drifted {word} from training: {', '.join(names)}.")
    if lost:
        names = dict.fromkeys(one["feature"] for one in lost)
        said.append(f"Known in training and much less so after it: {', '.join(names)}.")
    return said


def _is_constant(feature: dict[str, Any]) -> bool:
    if feature["kind"] in ("dense", "vector"):
        return (
            bool(feature["quantiles"])
            and feature["quantiles"][0] == feature["quantiles"][-1]
            and not (feature["kind"] == "vector" and feature["mean"])
        )
    return feature["effective"] <= 1.0


def _worse(one: dict[str, Any]) -> dict[str, Any]:
    """Which part has drifted more, and how that reads."""
    parts = [name for name in NAMES[1:] if one[name] is not None]
    if not parts:
        return {"reading": "unknown", "part": None}
    part = max(parts, key=lambda name: one[name]["psi"])
    return {"reading": reading(one[part]["psi"], one[part]["chance"]), "part": part}


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return ">99.9%"
    return f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"


def _number(value: float | None) -> str:
    """Three digits, without an exponent where that is readable."""
    if value is None:
        return "–"
    if abs(value) < 5e-4:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
    text = f"{value:.3g}"
    return text.replace("-", "−")


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _span(ms: int) -> str:
    minutes = ms // 60_000
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _days(found: dict[str, Any]) -> str:
    days = found["days"]
    if not days:
        return ""
    figure = Figure(figsize=(10.8, 2.9), layout="constrained")
    axes = figure.subplots()
    first, last = (np.datetime64(days[place]["day"]) for place in (0, -1))
    dates = np.arange(first, last + 1)
    counted = {title: np.zeros(len(dates)) for title in ("all", "interactions", "positives")}
    places = np.searchsorted(dates, np.array([day["day"] for day in days], dtype="datetime64[D]"))
    for title, name in zip(counted, ("events", "interaction", "positive"), strict=True):
        counted[title][places] = [day[name] for day in days]
    uneven = counted["all"].max() > UNEVEN * np.median(counted["all"])
    names = {title: title for title in counted}
    for title, below in (("all", "interactions"), ("interactions", "positives")):
        if (counted[title] == counted[below]).all():
            names[below] = f"{names.pop(title)} = {below}"
    for title, name in names.items():
        shown = np.where(counted[title] > 0, counted[title], np.nan) if uneven else counted[title]
        axes.plot(dates, shown, color=COLOURS[title], lw=1, marker="." if len(dates) < 40 else None, label=name)
    for name, side in (("valid", "right"), ("test", "left")):
        at = found["splits"].get("time", {}).get(name, {}).get("first_ms")
        if at is not None:
            when = date2num(np.datetime64(at, "ms"))
            axes.axvline(when, color=COLOURS["cut"], lw=0.8, ls="--")
            label = f" {TITLES[name]} "
            axes.annotate(label, (when, 1.0), xycoords=("data", "axes fraction"), ha=side, va="top", fontsize=8)
    axes.set(ylabel="events a day", yscale="log" if uneven else "linear", ylim=(None if uneven else 0, None))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    return _svg(figure)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    return figure, figure.subplots()


def _lorenz(found: dict[str, Any]) -> str:
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="#8a8a8a", lw=0.8, ls="--")
    for name in ("people", "items"):
        label = f"{name}, Gini {found[name]['gini']:.2f}"
        axes.plot(*found[name]["lorenz"], color=COLOURS[name], label=label)
    axes.set(xlabel="share of people or items, the least active first", ylabel="share of interactions")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False)
    return _svg(figure)


def _ranks(found: dict[str, Any]) -> str:
    figure, axes = _figure()
    for name in ("people", "items"):
        axes.plot(*found[name]["ranks"], color=COLOURS[name], marker=".", ms=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="rank, the most active first", ylabel="interactions")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(frameon=False)
    return _svg(figure)


def _histogram(histogram: dict[str, Any], width: int = 108, height: int = 26) -> Markup:
    """Training as bars, the test part as a line."""
    train, _, test = histogram["shares"]
    highest = max([*train, *test], default=0.0)
    if not train or not highest:
        return Markup("")
    step = width / len(train)
    tops = [[height - (height - 2) * share / highest for share in shares] for shares in (train, test)]
    bars = "".join(f"M{i * step:.1f} {height}V{top:.1f}h{step - 0.6:.1f}V{height}z" for i, top in enumerate(tops[0]))
    line = "".join(f"{'L' if i else 'M'}{i * step:.1f} {top:.1f}h{step:.1f}" for i, top in enumerate(tops[1]))
    drawn = f'<path d="{bars}" class="train"/>' + (f'<path d="{line}" class="test"/>' if any(test) else "")
    return Markup(f'<svg class="tiny" viewBox="0 0 {width} {height}" width="{width}" height="{height}">{drawn}</svg>')
