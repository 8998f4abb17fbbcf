"""`recsys plan CONFIG`: where the tables would go, and why; of a run, or of a model that only a cluster could hold.

A run's models are planned as they would be trained, from the schema of the prepared examples, without training.
A config with the section [cluster] is planned by `embeddings.capacity`.
"""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from embeddings import capacity, clusters, optim, precision, sharding
from embeddings.explain import explain
from features.encoder import load_schema
from features.errors import InputError
from features.manifest import MANIFEST
from features.schema import Schema
from recsys import candidates
from recsys.config import RunConfig
from recsys.config_file import read_toml, validate
from recsys.roles import build_task

TIERS = {"hbm": "GPU memory", "ddr": "host memory", "ssd": "SSD"}
SHOWN = 16
"""Ranks that are printed."""


def is_cluster(path: Path, overrides: list[str]) -> bool:
    """Whether a config describes a cluster instead of a run."""
    return "cluster" in read_toml(path, overrides)


def load(path: Path, overrides: list[str]) -> capacity.Config:
    """Read, merge and check the config of a cluster.

    Raises:
        InputError: with the file, the field, its value and the fix.
    """
    return validate(capacity.Config, read_toml(path, overrides), str(path), "")


def plan_cluster(config: capacity.Config, world: int | None, local: int | None) -> dict[str, Any]:
    """Plan a model on a cluster; what is not given is as the config says.

    Raises:
        InputError: the ranks do not make whole hosts.
    """
    given = {"world_size": world, "local_world_size": local}
    cluster = config.cluster.model_dump() | {name: value for name, value in given.items() if value is not None}
    config = config.model_copy(update={"cluster": validate(capacity.Cluster, cluster, "plan", "cluster.")})
    return clusters.report(config, config.cluster.world_size)


def _schema_of_lists(config: RunConfig, path: Path) -> Schema:
    lists = config.directory / "candidates" / config.served_split / candidates.LISTS
    if not lists.exists():
        raise InputError(f"{lists}: the ranker's features are fitted on these; run `recsys train {path}` first")
    return load_schema(lists)


def plan_run(config: RunConfig, path: Path, world: int | None, local: int | None, device: str | None) -> dict[str, Any]:
    """Plan the models of a run on its served split; what is not given is as for training.

    Raises:
        InputError: there are no examples yet, or a table cannot be had as the config asks.
    """
    examples = config.directory / "examples" / config.served_split
    if not (config.directory / "examples" / MANIFEST).exists():
        raise InputError(f"{examples}: nothing here yet; run `recsys prepare {path}` first")
    schema = load_schema(examples)
    world = config.launch.nproc if world is None else world
    if world < 1 or (local is not None and local < 1):
        raise InputError(f"--world-size {world}, --local-world-size {local}: a plan needs at least one rank; raise it")
    shards = config.sharding if local is None else config.sharding.model_copy(update={"local_world_size": local})
    local = sharding.local_size(shards, world)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    facts: dict[str, Any] = {"run": config.run.name, "split": config.served_split}
    for role, section in (("retriever", config.retriever), ("ranker", config.ranker)):
        if role == "ranker" and config.lists:
            schema = _schema_of_lists(config, path)
        task = build_task(section, schema, torch.device("meta"), config.tables.managed)
        sparse = section.optimizer.sparse
        sharding.check(shards, sparse, task, torch.device(device))
        precision.set_precision(task, config.tables)
        optim.fuse(sharding.fused_parameters(task, shards), section.optimizer)
        facts[role] = explain(task, shards, sparse, world, local, device, section.train.batch_size)
    return facts


def show_run(facts: dict[str, Any], console: Console | None = None) -> None:
    """A table for each model, and the ranks; on stdout."""
    console = console or Console()
    for role in ("retriever", "ranker"):
        found = facts[role]
        where = f"{found['world_size']:,} {found['device']} ranks, {found['local_world_size']} to a host"
        if not found["fits"]:
            console.print(f"[bold]{role.capitalize()}[/bold]: does not fit {where}.")
            for line in _remedies(found["remedies"]):
                console.print(f"  {line}", highlight=False)
            continue
        table = Table(title=f"{role.capitalize()}, {where}", title_justify="left")
        plain = {row["kernel"] for row in found["tables"]} <= {"fused", "dense"}
        for name in ("table", "form", "ranks"):
            table.add_column(name, no_wrap=name != "ranks")
        for name in ("rows × dim", "memory", "est. ms"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("instead")
        for row in found["tables"]:
            table.add_row(
                row["name"],
                row["form"] if plain else f"{row['form']}\n{row['kernel']}",
                _ranks(row["ranks"], found["world_size"]),
                f"{row['rows']:,} × {row['dim']}",
                size(sum(row["bytes"].values())),
                "" if row["ms"] is None else f"{row['ms']:.4f}",
                row["why"],
            )
        console.print(table)
        ranks = Table(title="Each rank", title_justify="left")
        tiers = [tier for tier in TIERS if any(rank[tier] for rank in found["ranks"])]
        for name in ("rank", *(TIERS[tier] for tier in tiers), "est. ms"):
            ranks.add_column(name, justify="right")
        for number, rank in enumerate(found["ranks"][:SHOWN]):
            ranks.add_row(str(number), *(size(rank[tier]) for tier in tiers), f"{rank['ms']:.4f}")
        console.print(ranks)
        if len(found["ranks"]) > SHOWN:
            console.print(f"… and {len(found['ranks']) - SHOWN:,} more; --json has them all.")
    console.print(
        "Instead: the next best for this table, and how long a step's slowest rank would take beside the plan's.\n"
        "Times are the planner's estimates: they rank plans, and are not step times.",
        style="dim",
    )


def _remedies(found: dict[str, Any]) -> list[str]:
    """What would make it fit, a line each."""
    lines: list[str] = []
    if found["world_size"]:
        lines.append(f"more ranks: --world-size {found['world_size']:,} is the smallest that fits")
    if found["memory"]:
        lines.append(f"more memory for each rank: --{found['memory']['field']} {found['memory']['value']:.4g}")
    if found["forms"]:
        tables = ", ".join(f"{table} {form}" for table, form in found["forms"].items())
        lines.append(f"other forms, in sharding.tables or sharding.forms: {tables}")
    return lines or ["nothing that was tried: neither ranks, nor memory, nor forms; make the tables smaller"]


def _ranks(ranks: list[int], world: int) -> str:
    if len(ranks) == world and world > 1:
        return "all"
    return ", ".join(map(str, ranks[:4])) + (" …" if len(ranks) > 4 else "")


def show_cluster(facts: dict[str, Any], console: Console | None = None) -> None:
    """Groups, tiers and the smallest cluster; on stdout."""
    console = console or Console()
    world = facts["world_size"]
    table = Table(
        title=f"{facts['parameters']:,} parameters in {facts['tables']:,} tables on {world:,} ranks",
        title_justify="left",
    )
    for name in ("group", "form, kernel"):
        table.add_column(name, no_wrap=True)
    for name in ("weights", "GPU", "host", "SSD"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in facts["groups"]:
        table.add_row(
            f"{group['name']} × {group['tables']:,}",
            f"{group['form']}\n{group['kernel']}",
            f"{group['parameters']:.2e}",
            *(size(group["bytes"][tier]) if group["bytes"][tier] else "" for tier in TIERS),
        )
    console.print(table)
    tiers = Table(title="Tables, optimizer state, caches, a batch's inputs and outputs", title_justify="left")
    for name in ("", "in all", "fullest rank", "of", "fullest beside mean"):
        tiers.add_column(name, justify="right" if name else "left")
    for tier, name in TIERS.items():
        balance = facts["balance"][tier]
        tiers.add_row(
            name,
            size(facts["bytes"][tier]),
            size(facts["largest_rank"][tier]),
            size(facts["usable_per_rank"][tier]),
            "" if balance is None else f"{balance:.2f}",
        )
    console.print(tiers)
    if not facts["fits"]:
        short = [f"{TIERS[tier]} (with {size(facts['largest_rank'][tier])} a rank it would)" for tier in facts["short"]]
        console.print(
            f"[bold]Does not fit[/bold]: short of {', '.join(short)}." if short else "[bold]Does not fit[/bold]."
        )
    console.print(smallest(facts["smallest"], facts["local_world_size"]), highlight=False)
    console.print(f"Planned in {facts['plan_seconds']:.1f} s, {facts['seconds']:.1f} s with the search.")


def smallest(found: dict[str, Any], local: int) -> str:
    """The sentence about the smallest cluster."""
    if found["bound"] is None:
        return "No cluster of such ranks holds it: a tier that it needs has no room."
    if found["world_size"] is None:
        return "No cluster of such ranks was found that holds it."
    least = f"Smallest cluster of such ranks: {found['world_size']:,}, for which a plan was found."
    if found["world_size"] == found["bound"]:
        return f"{least} Fewer cannot do: their memory is less than tables and state alone."
    return (
        f"{least} {found['world_size'] - local:,} were refused; tables and state alone would fill {found['bound']:,}."
    )


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
