"""One TOML a run: sections owned by the packages that read them, every field overridable on the command line.

recsys run configs/quickstart/ml-100k.toml --retriever.train.epochs 3
"""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from embeddings import collisions
from embeddings.catalogue import content_table
from embeddings.sharding import Config as ShardingConfig
from embeddings.tables import Config as TablesConfig
from features import pipeline, registry
from features.errors import InputError
from features.schema import RETRIEVED, FeatureSpec
from features.settings import Settings
from recsys import inference, sources
from recsys.config_file import check_dataset, read_toml, validate
from recsys.distributed import Config as LaunchConfig
from recsys.export import Config as ExportConfig
from recsys.modules import target_attention
from recsys.replay.settings import Config as ReplayConfig
from recsys.roles import NEXT, RankerConfig, RetrieverConfig


class RunSection(Settings):
    """The section [run]."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run."""
    directory: Path = Path("runs")
    """Where runs are; all of this one is in `<directory>/<name>`."""
    probe: bool = False
    """Whether `recsys run` also starts the server, asks it for a feed and compares that with the recommender's own."""


class RunConfig(Settings):
    """A run."""

    run: RunSection
    """Name and place."""
    dataset: dict[str, Any]
    """`kind`, a file in `features/datasets`, and what its Config has."""
    prepare: pipeline.Config = pipeline.Config()
    """Splits, labels, histories."""
    features: tuple[FeatureSpec, ...] = Field(min_length=1)
    """The ranker's features."""
    retriever: RetrieverConfig = RetrieverConfig()
    """The retriever and its training."""
    ranker: RankerConfig = RankerConfig()
    """The ranker and its training."""
    sharding: ShardingConfig = ShardingConfig()
    """What the planner may do."""
    tables: TablesConfig = TablesConfig()
    """Precision of the tables' weights, and tables whose ids have no bound."""
    launch: LaunchConfig = LaunchConfig()
    """Processes."""
    export: ExportConfig = ExportConfig()
    """How a bundle's tables are written."""
    baselines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Baseline → what its Config has; every file in `recsys/baselines` is measured, set here or not."""
    recommend: inference.Config = inference.Config()
    """Retrieve, rank, blend."""
    replay: ReplayConfig = ReplayConfig()
    """Replay of the held-out tail."""
    serve: dict[str, Any] = Field(default_factory=dict)
    """The server's section, checked by `serving`."""

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        rows = min(self.retriever.train.batch_size, self.ranker.train.batch_size)
        if rows < self.launch.nproc:
            raise ValueError(
                f"a train.batch_size of {rows} cannot be shared by launch.nproc = {self.launch.nproc}; raise it"
            )
        tables = {"item", *(feature.table_name for feature in self.features if feature.kind != "dense")}
        embedded = {feature.name for feature in self.features if feature.kind in ("sparse", "bag")}
        tables |= {content_table(name) for name in self.retriever.items.content if name in embedded}
        attention = self.ranker.model.get("attention")
        if attention is not None:
            tables.add(target_attention.Config.model_validate(attention).table(self.features))
        named = [
            ("sharding.tables", self.sharding.tables),
            ("tables.overrides", self.tables.overrides),
            ("export.overrides", self.export.overrides),
        ]
        for section, names in named:
            for name in names:
                if name not in tables:
                    raise ValueError(f"{section}.{name} names no table; known: {', '.join(sorted(tables))}")
        self._check_lists()
        tasks = [self.label, *(task.name for task in self.prepare.tasks)]
        self.recommend.blend.weights_of(tasks)
        self.ranker.loss.weights_of(tasks)
        forms = {name: table.form for name, table in self.sharding.tables.items()}
        collisions.check(self.tables.managed, self.features, forms, self.launch.nproc)
        return self

    def _check_lists(self) -> None:
        if not self.lists:
            if self.ranker.loss.kind == "listwise":
                raise ValueError(
                    "ranker.loss.kind = 'listwise' is of candidates, and no feature is of what was retrieved; declare "
                    "one, such as source = 'retrieved.score', or set it to 'pointwise'"
                )
            return
        loss = self.ranker.loss
        if loss.kind == "listwise" and (loss.learned or loss.weights):
            raise ValueError("ranker.loss: kind = 'listwise' is of one task; take out learned and weights")
        if loss.kind == "listwise" and not self.export.calibrate:
            raise ValueError(
                "ranker.loss.kind = 'listwise' learns an order, and probabilities only with [export] calibrate = true; "
                "set it"
            )
        if self.prepare.tasks:
            raise ValueError(
                f"prepare.tasks.{self.prepare.tasks[0].name}: of candidates nothing is known but which came next; take "
                "the tasks out, or the features that are 'retrieved.…'"
            )
        known = [*sources.OWN, *registry.known("recsys.baselines")]
        of_candidates = {spec.name for spec in self.features if spec.retrieved}
        for spec in self.features:
            read = {spec.source.removeprefix("feature.")} | {
                name
                for value in spec.params.values()
                for name in (value if isinstance(value, list) else [value])
                if isinstance(name, str)
            }
            if not spec.retrieved and any(name in of_candidates or name.startswith(RETRIEVED) for name in read):
                raise ValueError(
                    f"feature {spec.name}: it is made of what was retrieved, of which no others can be made; take "
                    "it out"
                )
            if spec.retrieved and spec.source.removeprefix(RETRIEVED) not in known:
                names = ", ".join(f"{RETRIEVED}{name}" for name in known)
                raise ValueError(f"feature {spec.name}: source = {spec.source!r} is none of {names}")

    @property
    def label(self) -> str:
        """The ranker's first task."""
        return NEXT if self.lists else self.prepare.label.name

    @property
    def lists(self) -> bool:
        """Whether the ranker is trained on what is retrieved, which it is where a feature asks for that."""
        return any(spec.retrieved for spec in self.features)

    @property
    def directory(self) -> Path:
        """All of the run."""
        return self.run.directory / self.run.name

    @property
    def served_split(self) -> pipeline.Split:
        """The split whose bundle is served and replayed: by time where there is one, for it knows no future."""
        return "time" if "time" in self.prepare.splits else "leave_one_out"


def load(path: Path, overrides: list[str]) -> RunConfig:
    """Read, merge and check a run's config.

    Raises:
        InputError: with the file, the field, its value and the fix.
    """
    return checked(read_toml(path, overrides), path)


def checked(tree: dict[str, Any], path: Path, prefix: str = "") -> RunConfig:
    """A run's config from its sections, with what they name in other files.

    Args:
        tree: the sections.
        path: where they come from, for messages.
        prefix: what stands before a section's name there.

    Raises:
        InputError: with the file, the field, its value and the fix.
    """
    config = validate(RunConfig, tree, str(path), prefix)
    check_dataset(tree, path)
    for role, section in (("retriever", config.retriever), ("ranker", config.ranker)):
        module = registry.load("recsys.models", section.kind, f"{path}: {prefix}{role}.kind")
        if role != module.ROLE:
            raise InputError(f"{path}: {prefix}{role}.kind = {section.kind!r} is a {module.ROLE}; choose a {role}")
        model = validate(module.Config, section.model, str(path), f"{prefix}{role}.model.")
        longest = getattr(model, "max_history", config.prepare.max_history)
        if longest < config.prepare.max_history:
            raise InputError(
                f"{path}: {prefix}{role}.model.max_history = {longest} is less than prepare.max_history = "
                f"{config.prepare.max_history}; set both to the same"
            )
    baseline_configs(config, path)
    return config


def baseline_configs(config: RunConfig, path: Path) -> dict[str, Settings]:
    """The checked Config of every baseline."""
    known = registry.known("recsys.baselines")
    for name in config.baselines:
        if name not in known:
            raise InputError(f"{path}: unknown key baselines.{name}; known here: {', '.join(known)}")
    return {
        name: validate(
            registry.load("recsys.baselines", name, "baselines").Config,
            config.baselines.get(name, {}),
            str(path),
            f"baselines.{name}.",
        )
        for name in known
    }
