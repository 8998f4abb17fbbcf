"""What a finished run says of itself: remembered in `run.json`, shown as a table.

This file imports nothing heavy, so that a run that is up to date can say so at once.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from features import manifest
from features.manifest import file_fingerprint, fingerprint, source_fingerprint, write_json
from recsys.config_file import check_dataset, read_toml

FILE = "run.json"
LIBRARIES = ("feedline", "torch", "torchrec", "polars", "pyarrow", "numpy", "scipy", "ray", "fastapi", "lmdb")
PACKAGES = ("features", "embeddings", "recsys", "serving")


def remember(
    directory: Path, path: Path, overrides: list[str], stages: dict[Path, str], results: dict[str, Any]
) -> None:
    """Write the results of a run that has just finished, under the fingerprint of all that it was made from.

    Args:
        directory: of the run.
        path: its config.
        overrides: of the command line.
        stages: directory of each stage → the key in its manifest.
        results: what it found.
    """
    left = {str(place.relative_to(directory)): key for place, key in stages.items()}
    write_json(directory / FILE, {"key": _key(read_toml(path, overrides), path), "stages": left, "results": results})


def recall(path: Path, overrides: list[str]) -> dict[str, Any] | None:
    """The results of an earlier run of the same config on the same data by the same code; None if there is none."""
    tree = read_toml(path, overrides)
    section = tree.get("run", {})
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        return None
    file = Path(str(section.get("directory", "runs"))) / section["name"] / FILE
    if not file.exists():
        return None
    remembered = manifest.read_json(file)
    for place, key in remembered["stages"].items():
        facts = manifest.read(file.parent / place)
        if facts is None or facts["key"] != key:
            return None
    return remembered["results"] if remembered["key"] == _key(tree, path) else None


def page(directory: Path) -> Path:
    """Where the report of a run is."""
    return directory / "reports" / "report.html"


def _key(tree: dict[str, Any], path: Path) -> str:
    module, dataset = check_dataset(tree, path)
    inputs = {str(file): file_fingerprint(file) for file in module.inputs(dataset)}
    return fingerprint(tree, inputs, versions(), source_fingerprint(PACKAGES))


def versions() -> dict[str, str]:
    """The libraries that results depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


POINTWISE = ("auc", "gauc", "logloss", "ne", "calibration")
NUMBERS = ("rmse", "r2", "spearman")
"""Metrics of tasks that are yes or no, and of those that are numbers."""


def show(results: dict[str, Any], page: Path, console: Console | None = None) -> None:
    """The one table that a run ends with, on stdout."""
    console = console or Console()
    if "retrieval" in results:
        console.print(next_item_table(results))
        console.print(verdict(results))
    for names, tasks in ranking_tables(results):
        table = Table(title="Ranker, test part", title_justify="left")
        for name in ("task", *names):
            table.add_column(name, justify="left" if name == "task" else "right")
        for task, found in tasks.items():
            table.add_row(task, *(f"{found[name]:.4f}" for name in names))
        console.print(table)
    replay = results["replay"]
    latency = replay["latency_ms"]
    console.print(
        f"Replay of {replay['events']:,} events: recall@10 {replay['recall@10']:.4f}, ndcg@10 {replay['ndcg@10']:.4f} "
        f"(popularity {replay['popularity']['recall@10']:.4f}, {replay['popularity']['ndcg@10']:.4f}); "
        f"a feed in {latency['p50']:.1f} ms at the median, {latency['p99']:.1f} ms at p99."
    )
    for split, found in results["export"].items():
        console.print(f"Bundle {split}: {'; '.join(export_lines(found))}.", highlight=False)
    if "probe" in results:
        probe = results["probe"]
        same = "the same as" if probe["identical"] else "DIFFERENT from"
        console.print(
            f"\n[bold]A feed over HTTP[/bold], {same} the recommender's own. {probe['sentence']}", highlight=False
        )
        for place, item in enumerate(probe["feed"], start=1):
            console.print(f"  {place:2}. {item['title']}", highlight=False)
        console.print(f"Over HTTP in {probe['latency_ms']['p50']:.1f} ms at the median.\n")
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in results["seconds"].items())
    console.print(f"Time: {took}; peak memory {results['peak_memory_mb'] / 1000:.1f} GB.")
    console.print(f"Report: {page}")
    console.print(f"System card: {page.with_name('card.html')}")


def ranking_tables(results: dict[str, Any]) -> list[tuple[tuple[str, ...], dict[str, dict[str, float]]]]:
    """(metrics, task → what was found) of the tasks that are yes or no, and of those that are numbers."""
    tables = [
        (names, {task: found for task, found in results["ranking"].items() if names[0] in found})
        for names in (POINTWISE, NUMBERS)
    ]
    return [table for table in tables if table[1]]


def export_lines(found: dict[str, Any]) -> list[str]:
    """What a bundle's tables take, and what their form costs, in words."""
    size, whole = (f"{found[name] / 1e6:,.2f} MB" for name in ("bytes", "fp32_bytes"))
    if found["ratio"] == 1:
        return [f"tables of {size} in fp32, as they were trained"]
    lines = [
        f"tables of {size}, {found['ratio']:.1f} times less than {whole} in fp32; weights are off by "
        f"{found['relative_error']:.2%} (RMS), at most by {found['largest_error']:.2g}"
    ]
    for role, metrics in found["quality"].items():
        names = ("ndcg@10", "recall@10") if role == "retriever" else ("ne", "logloss", "auc")
        changes = (f"{name} {metrics['fp32'][name]:.5f} → {metrics['stored'][name]:.5f}" for name in names)
        lines.append(f"{role} on the validation part, fp32 → as written: {', '.join(changes)}")
    return lines


COLUMNS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr", "coverage@10")


def systems(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Title → metrics of everything that was judged on the next item, baselines first."""
    baselines = {name.replace("_", "-"): found for name, found in results["baselines"].items()}
    exhaustive = {"retriever, exhaustive": results["exhaustive"]} if "exhaustive" in results else {}
    return {**baselines, **exhaustive, "retriever": results["retrieval"], "retriever + ranker": results["system"]}


def next_item_table(results: dict[str, Any]) -> Table:
    """Every system by every metric, the best of each column in bold."""
    table = Table(
        title=f"Next item, leave-one-out, whole catalogue, {results['questions']:,} people", title_justify="left"
    )
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    rows = systems(results)
    best = {name: max(found[name] for found in rows.values()) for name in COLUMNS}
    for title, found in rows.items():
        cells = [
            f"[bold]{found[name]:.4f}[/bold]" if found[name] == best[name] else f"{found[name]:.4f}" for name in COLUMNS
        ]
        table.add_row(title, *cells)
    return table


def verdict(results: dict[str, Any], metric: str = "ndcg@10") -> str:
    """One sentence: how the retriever stands beside the best baseline."""
    name, found = max(results["baselines"].items(), key=lambda pair: pair[1][metric])
    own, best, title = results["retrieval"][metric], found[metric], name.replace("_", "-")
    if own == best:
        return f"The retriever and the best baseline, {title}, have the same {metric}, {own:.4f}."
    if own > best:
        return f"The retriever is ahead of the best baseline, {title}: {metric} {own:.4f} against {best:.4f}."
    return f"{title} is still ahead of the retriever, which has {1 - own / best:.0%} less {metric}."
