"""A/B tests in simulation: does the order of policies on a held-out log foretell their order before people?

    recsys replay configs/replay/simulated.toml

Every policy is fitted on the log of a simulated world and judged on its held-out tail. Then it meets a copy of the
world's people, who click by their true preferences, round after round: `with_feedback` what it shows and what is
clicked is the log on which it is fitted again before the next round; `without_feedback` it stays as it was, and
nothing that happens reaches it. Visits and chances are the same for all policies, so that they differ by their feeds.
The same config gives the same result.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import Field

from features import pipeline, registry
from features.datasets import synthetic
from features.datasets.synthetic import World
from features.errors import InputError, one_of
from features.manifest import fingerprint, write_json
from features.settings import Settings
from recsys import config as configs
from recsys.config import RunConfig
from recsys.inference import Recommender
from recsys.replay.dispatch import Progress
from recsys.replay.simulation import holdout, page, policies, population, results
from recsys.replay.simulation.policies import KNOWING, SPLIT, TRAINED, Policy

RESULT = "result.json"
SMALLEST = 0.02
"""Share of a log that is held out where nothing is judged on it: as little as makes a split."""


class Config(Settings):
    """The section [replay] of the kind `simulated`."""

    world: synthetic.Config = synthetic.Config()
    """The world; its log is what policies are first fitted and judged on, its `slate` the length of all feeds."""
    seeds: int = Field(default=3, gt=0)
    """Worlds: that of `world.seed` and the following ones."""
    rounds: int = Field(default=4, gt=0)
    """Rounds after the log, each followed by fitting all policies again on what has happened."""
    feeds: int = Field(default=500, gt=1)
    """Requests of a round."""
    hours: float = Field(default=24.0, ge=0.1)
    """Length of a round, hours."""
    system: dict[str, Any]
    """[replay.system]: the sections of a run that policies have in common, `features` and `prepare` at least."""
    policies: dict[str, Policy] = Field(min_length=2)
    """Policies by name."""
    draws: int = Field(default=1000, ge=100)
    """Draws of the bootstrap."""


def check(config: Config, path: Path) -> None:
    """Whether policies are of kinds that there are, and their sections hold.

    Raises:
        InputError: with the file, the field, its value and the fix.
    """
    kinds = [*KNOWING, *TRAINED, *registry.known("recsys.baselines")]
    for name, policy in config.policies.items():
        if policy.kind not in kinds:
            raise one_of(f"{path}: replay.policies.{name}.kind", policy.kind, kinds)
        run_of(config, name, path)
    judged = [name for name, policy in config.policies.items() if not policy.reference]
    if len(judged) < 2:
        raise InputError(
            f"{path}: replay.policies: {len(judged)} of them is no reference; there is no order of less than 2"
        )


def run_of(config: Config, name: str, path: Path) -> RunConfig:
    """What a policy would be as a run.

    Raises:
        InputError: one of its sections does not hold.
    """
    tree = _merged(config.system, config.policies[name].set)
    for section in ("run", "dataset", "replay"):
        if section in tree:
            raise InputError(f"{path}: unknown key replay.system.{section}; the simulation sets it: take it out")
    tree |= {"run": {"name": name}, "dataset": {"kind": "synthetic", **config.world.model_dump(mode="json")}}
    return configs.checked(tree, path, "replay.system.")


def run(config: Config, path: Path, directory: Path, progress: Progress) -> dict[str, Any]:
    """Play all seeds; writes `result.json` and `report.html`.

    Args:
        config: the section.
        path: its file.
        directory: where to.
        progress: told what is going on.

    Returns:
        `policies.<name>` with `offline` and `online.{without_feedback,with_feedback}`; `agreement` of the two by
        condition and offline metric, see `results.summary`; `verdict`, `report`, `seconds`.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    directory.mkdir(parents=True, exist_ok=True)
    steps = config.seeds * len(config.policies) * (2 + config.rounds)
    played: list[results.Seed] = []
    with progress.count("simulated rounds", steps) as advance:
        for number in range(config.seeds):
            seed = config.world.seed + number
            progress.say(f"seed {seed}")
            done = number * len(config.policies) * (2 + config.rounds)
            played.append(
                _Seed(config, path, directory / "work", seed).play(lambda more, done=done: advance(done + more))
            )
    shutil.rmtree(directory / "work")
    found = results.summary(config.policies, played, config.world.slate, config.draws, config.world.seed)
    found |= {
        "rounds": config.rounds,
        "seeds": config.seeds,
        "feeds": config.feeds,
        "seconds": round(time.perf_counter() - started, 1),
    }
    found["report"] = str(page.write(directory, found))
    write_json(directory / RESULT, found)
    return found


class _Seed:
    """One world, and all policies in it."""

    def __init__(self, config: Config, path: Path, work: Path, seed: int) -> None:
        self.config, self.path, self.work = config, path, work
        self.world = World(config.world.model_copy(update={"seed": seed}))
        self.log = self.world.events()
        self.runs = {name: run_of(config, name, path) for name in config.policies}
        shutil.rmtree(work, ignore_errors=True)

    def play(self, advance: Any) -> results.Seed:
        """Offline, then round after round."""
        names = list(self.config.policies)
        coming = [
            population.visits(self.world, number, self.config.feeds, self.config.hours)
            for number in range(self.config.rounds)
        ]
        offline: dict[str, holdout.Judged] = {}
        online: dict[str, dict[str, list[population.Outcome]]] = {condition: {} for condition in results.CONDITIONS}
        held: holdout.Holdout | None = None
        done = 0
        for name in names:
            examples = self._prepared(name)
            held = held or holdout.cut(self.world, self.log, examples)
            recommender = self._fit(name, examples)
            offline[name] = holdout.judge(recommender, held)
            advance(done := done + 1)
            without = [population.play(self.world, recommender, one, learns=False) for one in coming]
            online["without_feedback"][name] = without
            advance(done := done + 1)
            online["with_feedback"][name] = []
            log = self.log
            for number, one in enumerate(coming):
                if number:
                    recommender = self._fit_again(name, log)
                outcome = population.play(self.world, recommender, one, learns=True)
                log = pl.concat([log, outcome.log])
                online["with_feedback"][name].append(outcome)
                advance(done := done + 1)
        assert held is not None
        return results.Seed(held, offline, online)

    def _prepared(self, name: str) -> Path:
        """Examples of the world's own log, made once for all policies that have the same."""
        run = self.runs[name]
        out = self.work / fingerprint(run.model_dump(mode="json", include={"prepare", "features"}))
        if not out.exists():
            policies.prepare(self.world, self.log, self._timed(run), out)
        return out / SPLIT

    def _fit(self, name: str, examples: Path) -> Recommender:
        policy, run = self.config.policies[name], self._timed(self.runs[name])
        return policies.fit(self.world, policy, run, self.path, examples, self.work / "policy")

    def _fit_again(self, name: str, log: pl.DataFrame) -> Recommender:
        """A policy fitted on all that has happened, which it knows when it answers."""
        run = self._timed(self.runs[name])
        least = {"valid_share": SMALLEST, "test_share": SMALLEST}
        run = run.model_copy(update={"prepare": run.prepare.model_copy(update=least)})
        out = self.work / "again"
        shutil.rmtree(out, ignore_errors=True)
        examples = policies.prepare(self.world, log, run, out)
        recommender = policies.fit(
            self.world, self.config.policies[name], run, self.path, examples, self.work / "policy"
        )
        recommender.observe(policies.test_events(examples))
        return recommender

    def _timed(self, run: RunConfig) -> RunConfig:
        """With the split by time alone."""
        splits: tuple[pipeline.Split, ...] = (SPLIT,)
        return run.model_copy(update={"prepare": run.prepare.model_copy(update={"splits": splits})})


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `over` has instead, section by section."""
    found = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = _merged(found[name], value) if both else value
    return found
