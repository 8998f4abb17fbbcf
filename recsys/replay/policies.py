"""Policies: what answers a request in a replay. A bundle, a bundle's retriever alone, a baseline.

[replay.policies.full]
run = "configs/ml-1m/time.toml"
[replay.policies.item_knn]
baseline = "item_knn"
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import model_validator

from features import manifest
from features.errors import InputError
from features.settings import Settings
from recsys import bundle as bundles
from recsys import config as configs
from recsys import inference
from recsys.baselines import popularity
from recsys.bundle import Bundle
from recsys.evaluate import fit_baselines
from recsys.inference import Request
from recsys.replay.in_order import InOrder, TurnStore
from recsys.scorer import Scorer


class Config(Settings):
    """The section [replay.policies.<name>]."""

    run: Path | None = None
    """Config of the run whose served bundle answers; None: `replay.run`."""
    bundle: Path | None = None
    """A bundle, in place of a run's."""
    baseline: str | None = None
    """A file in `recsys/baselines` that answers in place of the bundle's models."""
    rank: bool = True
    """Whether what was retrieved is ranked; a baseline's never is."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.run is not None and self.bundle is not None:
            raise ValueError("run and bundle are both set; one of them says what answers")
        return self


@dataclass(frozen=True)
class Policy:
    """A policy whose files have been found; any process can load it."""

    name: str
    bundle: Path
    examples: Path | None
    """The split that baselines are counted over; None: not known."""
    recommend: inference.Config
    baseline: str | None = None
    settings: Settings | None = None
    """Of the baseline."""
    rank: bool = True

    @property
    def key(self) -> dict[str, Any]:
        """What its answers depend on."""
        facts = manifest.read(self.bundle) or {}
        return {
            "name": self.name,
            "bundle": facts.get("key"),
            "recommend": self.recommend.model_dump(mode="json"),
            "baseline": [self.baseline, self.settings and self.settings.model_dump(mode="json")],
            "rank": self.rank,
        }

    @property
    def items(self) -> pl.DataFrame:
        """The bundle's catalogue."""
        return pl.read_parquet(self.bundle / "items.parquet")

    @property
    def users(self) -> pl.DataFrame:
        """Whom the bundle knows."""
        return pl.read_parquet(self.bundle / "users.parquet")

    @property
    def people(self) -> pl.DataFrame:
        """What is known of anybody, of those too whom the bundle has not met."""
        return self.users if self.examples is None else pl.read_parquet(self.examples.parent / "users.parquet")

    @property
    def snapshot(self) -> Path:
        """What had happened when its test part began."""
        return self.bundle / "snapshot"

    def load(self) -> InOrder:
        """The recommender, its store filled with the bundle's snapshot."""
        bundle = _bundle(self.bundle)
        store = TurnStore(retain=bundle.config["prepare"]["retain"])
        recommender = InOrder(bundle, store, self.recommend, self._scorer(bundle), rank=self.rank)
        recommender.seed()
        # The first request waits for much that later ones find ready.
        recommender.recommend(Request(user_id=self.users["user_id"][-1], k=1))
        return recommender

    def _scorer(self, bundle: Bundle) -> Scorer | None:
        if self.baseline == "popularity" and self.settings is None:
            return popularity.from_counts(bundles.item_counts(bundle))
        if self.baseline is None or self.settings is None or self.examples is None:
            return None
        return fit_baselines(self.examples, bundle.items, {self.baseline: self.settings})[self.baseline]


@cache
def _bundle(directory: Path) -> Bundle:
    """A process loads each bundle once."""
    return bundles.load(directory)


def find(name: str, config: Config, run: Path | None, path: Path) -> Policy:
    """Where the files of a policy are.

    Args:
        name: of the policy.
        config: its section.
        run: the run that is asked where the section names none.
        path: the replay's config, for messages.

    Raises:
        InputError: there is no such bundle, with the command that makes it; or no such baseline.
    """
    field = f"{path}: replay.policies.{name}"
    if config.bundle is not None:
        if manifest.read(config.bundle) is None:
            raise InputError(f"{field}: {config.bundle} holds no bundle; make it with `recsys export`, or name another")
        if config.baseline not in (None, "popularity"):
            raise InputError(
                f"{field}: baseline = {config.baseline!r} is counted over a run's log; set run in place of bundle"
            )
        sections = manifest.read_json(config.bundle / "config.json")
        recommend = inference.Config.model_validate(sections["recommend"])
        return Policy(name, config.bundle, None, recommend, config.baseline, rank=_ranks(config))
    run = config.run or run
    if run is None:
        raise InputError(f"{field}: neither run nor bundle is set; name one, or set replay.run")
    of_run = configs.load(run, [])
    split = of_run.served_split
    bundle = of_run.directory / "bundle" / split
    if manifest.read(bundle) is None:
        raise InputError(f"{field}: {bundle} is not there yet; `recsys run {run}` makes it")
    settings = None if config.baseline is None else configs.baseline_configs(of_run, run)[config.baseline]
    examples = of_run.directory / "examples" / split
    return Policy(name, bundle, examples, of_run.recommend, config.baseline, settings, _ranks(config))


def _ranks(config: Config) -> bool:
    return config.rank and config.baseline is None
