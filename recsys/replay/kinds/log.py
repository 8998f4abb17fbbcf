"""Policies side by side on a log, in one pass: what each would have shown just before every event, judged by what came.

recsys replay configs/replay/ml-1m.toml --workers 2

[replay]
kind = "log"
name = "ml-1m"
run = "configs/ml-1m/time.toml"
[replay.policies.full]
[replay.policies.retriever]
rank = false
"""

from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from features import manifest, registry
from features.errors import InputError
from features.manifest import write_json
from recsys import config as configs
from recsys.config_file import check_dataset
from recsys.replay import fit, logs, page, results, runner, through_http, workers
from recsys.replay.dispatch import Progress
from recsys.replay.logs import Tail
from recsys.replay.policies import Config as PolicyConfig
from recsys.replay.policies import Policy, find
from recsys.replay.settings import Config as Common
from recsys.replay.world import World

RESULT = "result.json"


class Config(Common):
    """The section [replay] of `kind = "log"`."""

    run: Path | None = None
    """Config of the run whose test part is the log, and whose served bundle answers where a policy names no other."""
    log: dict[str, Any] = Field(default_factory=dict)
    """A log of its own in place of the test part: as a run's section [dataset]."""
    disorder: Literal["sort", "refuse"] = "sort"
    """What becomes of a log of its own with rows out of order."""
    policies: dict[str, PolicyConfig] = Field(default_factory=dict)
    """Who is asked, by name; differences are of one less those after it."""
    through: Literal["process", "http"] = "process"
    """`http`: a running server is asked too, as the policy `server`; it is told all events."""
    http: through_http.Config = through_http.Config()
    """The server."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if not self.policies and self.through == "process":
            raise ValueError("policies is empty; name who is asked, as [replay.policies.full]")
        if self.run is None and not self.log:
            raise ValueError("neither run nor log is set; one of them says what is replayed")
        if self.through == "http" and (self.workers > 1 or self.engine != "local"):
            raise ValueError(
                "through = 'http' tells one server events in their order; set workers = 1, engine = 'local'"
            )
        if self.through == "http" and "server" in self.policies:
            raise ValueError("policies.server is the name of who is asked through http; take another")
        return self


def check(config: Config, path: Path) -> None:
    """Whether what the config names can be there.

    Raises:
        InputError: a run's config, a dataset or a baseline that there is not.
    """
    for run in {config.run, *(policy.run for policy in config.policies.values())} - {None}:
        assert run is not None
        configs.load(run, [])
    if config.log:
        check_dataset({"dataset": config.log}, path)
    for name, policy in config.policies.items():
        known = registry.known("recsys.baselines")
        if policy.baseline is not None and policy.baseline not in known:
            raise InputError(
                f"{path}: replay.policies.{name}.baseline = {policy.baseline!r} is none of {', '.join(known)}"
            )


def run(config: Config, path: Path, directory: Path, progress: Progress) -> dict[str, Any]:
    """Replay, judge, write the page.

    Raises:
        InputError: a bundle is not there yet, or does not fit the log.
    """
    found = [find(name, one, config.run, path) for name, one in config.policies.items()]
    tail = _log(config, path)
    for policy in found:
        fit.require(policy, tail, own=policy.examples is not None and policy.examples == _examples(config))
    server = through_http.Server(config.http) if config.through == "http" else None
    return replay(config, tail, found, directory, progress, path.stem, server)


def replay(
    config: Common,
    tail: Tail,
    found: list[Policy],
    directory: Path,
    progress: Progress,
    title: str,
    server: through_http.Server | None = None,
) -> dict[str, Any]:
    """Replay a log through policies whose files are there, and judge what they show.

    Args:
        config: how.
        tail: the log.
        found: who is asked.
        directory: where to write.
        progress: told how far it is.
        title: of the page.
        server: who is asked beside them.

    Returns:
        See `results.assemble`; `log`: what is known of the log; `verdict`, `report`.
    """
    asked: list[runner.Policy] = [*found, *([] if server is None else [server])]
    tables = [policy.items for policy in found] or [pl.DataFrame(schema={"item_id": tail.events.schema["item_id"]})]
    items = pl.concat([table.drop("index", strict=False) for table in tables], how="diagonal_relaxed")
    # A server has been told events, which it cannot be told again.
    task = runner.begin(directory, tail, items.drop_nulls("item_id"), asked, config, resume=server is None)
    events = tail.events.height if config.max_events is None else min(config.max_events, tail.events.height)
    if done := task.done():
        progress.say(f"  {done} of {task.stretches()} stretches have been replayed already")
    with progress.count("replay", events) as advance:
        workers.run(task, config, lambda events_done: advance(min(events_done, events)))
    names = [policy.name for policy in asked]
    reference = found[0] if found else None
    world = World.load(
        directory,
        reference and reference.snapshot,
        reference.people if reference else None,
        has_clock=tail.has_clock,
    )
    result = results.assemble(directory, names, world, config) | {"log": {"source": tail.source, **tail.counts}}
    result["verdict"] = page.verdict(result)
    result["report"] = str(page.write(directory, title, result, world, config))
    write_json(directory / RESULT, result)
    return result


def _examples(config: Config) -> Path | None:
    if config.log or config.run is None:
        return None
    of_run = configs.load(config.run, [])
    return of_run.directory / "examples" / of_run.served_split


def _log(config: Config, path: Path) -> Tail:
    if config.log:
        module, dataset = check_dataset({"dataset": config.log}, path)
        return logs.of_files(module.load(dataset), refuse_disorder=config.disorder == "refuse")
    examples = _examples(config)
    assert examples is not None
    if manifest.read(examples.parent) is None:
        raise InputError(f"{path}: {examples} is not there yet; `recsys prepare {config.run}` makes it")
    return logs.of_split(examples)
