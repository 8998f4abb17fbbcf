"""One HTML file about a run, readable without a server: tables and plots, drawn as SVG inside of it."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from features import manifest
from features.manifest import read_json, write_text
from recsys import checkpoint, summary

TEMPLATE = "report.html.jinja"
COLOURS = {
    "retriever": "#1f5fbf",
    "retriever, exhaustive": "#a9c4ec",
    "ranker": "#c2571a",
    "item-knn": "#3f8f4f",
    "popularity": "#8a8a8a",
    "actual": "#222222",
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "path",
    "svg.hashsalt": "feedline",
}


def write(directory: Path, results: dict[str, Any]) -> Path:
    """Draw and write the report; returns its path."""
    histories: dict[str, Any] = {}
    for path in sorted((directory / "checkpoints").glob("*/*")):
        if path.name in COLOURS and manifest.read(path) is not None:
            # What was fitted anew on all that is known has no validations: those that chose its epochs are shown.
            choice = checkpoint.choice(path)
            shown = path if manifest.read(choice) is None else choice
            histories[f"{path.parent.name} {path.name}"] = read_json(shown / "history.json")
    with mpl.rc_context(rc=STYLE):
        plots = {
            "loss": _loss(histories),
            "validation": _validation(histories),
            "days": _days(results["replay"]["by_day"]),
            "latency": _latency(results["replay"]["latency_ms"]),
        }
        if "retrieval" in results:
            plots |= {"metrics": _metrics(results), "popularity": _popularity(results["popularity"])}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(TEMPLATE).render(
        results=results,
        plots=plots,
        rows=summary.systems(results) if "retrieval" in results else {},
        columns=summary.COLUMNS,
        verdict=summary.verdict(results) if "retrieval" in results else "",
        ranking=summary.ranking_tables(results),
        bundles={split: summary.export_lines(found) for split, found in results["export"].items()},
    )
    out = summary.page(directory)
    write_text(out, text)
    return out


def _figure(width: float = 5.2, height: float = 3.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _loss(histories: dict[str, Any]) -> str:
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, history in histories.items():
        split, role = name.split(" ")
        axes = left if role == "retriever" else right
        axes.plot(history["loss"], color=COLOURS[role], alpha=0.9 if split == "time" else 0.45, lw=1, label=split)
    for axes, title in ((left, "retriever, softmax loss"), (right, "ranker, loss")):
        axes.set(title=title, xlabel="step")
        axes.legend(frameon=False)
    return _svg(figure)


def _validation(histories: dict[str, Any]) -> str:
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, history in histories.items():
        split, role = name.split(" ")
        axes = left if role == "retriever" else right
        # A ranker of lists is judged as a retriever is.
        lists = role == "ranker" and all("ndcg@10" in found for found in history["valid"])
        metric = "ndcg@10" if role == "retriever" or lists else "ne"
        if role == "ranker":
            right.set(title="ranker, ndcg@10 (higher)" if lists else "ranker, NE (lower)")
        values = [found[metric] for found in history["valid"]]
        axes.plot(
            range(1, len(values) + 1),
            values,
            marker=".",
            color=COLOURS[role],
            alpha=0.9 if split == "time" else 0.45,
            label=split,
        )
    left.set(title="retriever, ndcg@10 (higher)", xlabel="epoch")
    right.set(xlabel="epoch")
    for axes in (left, right):
        axes.legend(frameon=False)
    return _svg(figure)


def _metrics(results: dict[str, Any]) -> str:
    figure, axes = _figure()
    rows = summary.systems(results)
    names = ("recall@5", "recall@10", "ndcg@10", "mrr")
    width = 0.8 / len(rows)
    colours = {"retriever + ranker": COLOURS["ranker"], **COLOURS}
    for number, (title, found) in enumerate(rows.items()):
        places = [index + (number - (len(rows) - 1) / 2) * width for index in range(len(names))]
        axes.bar(places, [found[name] for name in names], width * 0.92, label=title, color=colours.get(title))
    axes.set_xticks(range(len(names)), names)
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False)
    return _svg(figure)


def _popularity(shares: dict[str, list[float]]) -> str:
    figure, axes = _figure()
    titles = {
        "retrieval": "retriever",
        "system": "retriever + ranker",
        "item_knn": "item-knn",
        "actual": "what people chose",
    }
    colours = {
        "retrieval": COLOURS["retriever"],
        "system": COLOURS["ranker"],
        "item_knn": COLOURS["item-knn"],
        "actual": COLOURS["actual"],
    }
    for name, title in titles.items():
        if name in shares:
            style = "--" if name == "actual" else "-"
            axes.plot(range(1, 11), shares[name], marker=".", ls=style, color=colours[name], label=title)
    axes.set(xlabel="tenth of the catalogue, 1 = most popular", ylabel="share of recommendations")
    axes.set_xticks(range(1, 11))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False)
    return _svg(figure)


def _days(days: list[dict[str, Any]]) -> str:
    if not days:
        return ""
    figure, axes = _figure()
    dates = np.array([day["day"] for day in days], dtype="datetime64[D]")
    for name, colour in (("full", COLOURS["retriever"]), ("popularity", COLOURS["popularity"])):
        axes.plot(dates, [day[name]["recall@10"] for day in days], marker=".", color=colour, label=name)
    axes.set(ylabel="recall@10", ylim=(0, None))
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.legend(frameon=False)
    return _svg(figure)


def _latency(latency: dict[str, Any]) -> str:
    figure, axes = _figure()
    count, end = latency["histogram"], latency["histogram_end"]
    width = end / len(count)
    axes.bar([width * (i + 0.5) for i in range(len(count))], count, width * 0.95, color=COLOURS["retriever"])
    for name in ("p50", "p99"):
        axes.axvline(min(latency[name], end), color=COLOURS["ranker"], lw=1)
        axes.annotate(
            f" {name} {latency[name]:.1f}", (min(latency[name], end), max(count) * 0.95), color=COLOURS["ranker"]
        )
    axes.set(xlabel="milliseconds for a feed, in-process", ylabel="requests")
    return _svg(figure)
