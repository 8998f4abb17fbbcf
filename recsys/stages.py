"""The stages of a run: each reads one directory, writes another, and is skipped where its manifest is up to date.

A stage's key is the fingerprint of all that its result depends on: its sections of the config, the keys of the stages
before it, the content of its input files, the versions of the libraries and the source of this project.
"""

import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from features import manifest, pipeline
from features.errors import InputError
from features.manifest import (
    file_fingerprint,
    fingerprint,
    finished_directory,
    write_json,
    write_text,
)
from features.pipeline import Engine, Split
from features.schema import difference
from features.settings import Settings
from recsys import candidates, checkpoint, distributed, evaluate, export, sources
from recsys.config import RunConfig, baseline_configs
from recsys.config_file import check_dataset
from recsys.console import console
from recsys.dependencies import OF_SPLITS, SECTIONS, UPSTREAM, environment
from recsys.logbook import Logbook
from recsys.replay import logs
from recsys.replay.dispatch import Progress
from recsys.replay.kinds import log as replays
from recsys.replay.policies import Policy
from recsys.resume import Training
from recsys.roles import RankerConfig, RetrieverConfig
from recsys.summary import export_lines
from recsys.train import launch as launch_training

RESULT = "result.json"
RESOLVED = "config.toml"


@dataclass
class Run:
    """The stages of one config."""

    config: RunConfig
    path: Path
    """The config's file, for messages."""

    def __post_init__(self) -> None:
        self.environments = {stage: environment(stage) for stage in SECTIONS}
        self.sections = self.config.model_dump(mode="json")
        module, dataset = check_dataset({"dataset": self.config.dataset}, self.path)
        self.load_log: Callable[[], Any] = lambda: module.load(dataset)
        self.inputs = {str(path): file_fingerprint(path) for path in module.inputs(dataset)}

    @property
    def directory(self) -> Path:
        """All of the run."""
        return self.config.directory

    def examples(self, split: Split) -> Path:
        """Examples of a split."""
        return self.directory / "examples" / split

    def candidates(self, split: Split) -> Path:
        """What the retriever has found for questions of a split, where the ranker is trained on that."""
        return self.directory / "candidates" / split

    def ranked(self, split: Split) -> Path:
        """Examples that the ranker is trained on."""
        return self.candidates(split) / candidates.LISTS if self.config.lists else self.examples(split)

    def checkpoint(self, split: Split, role: str) -> Path:
        """Checkpoint of a model on a split."""
        return self.directory / "checkpoints" / split / role

    def bundle(self, split: Split) -> Path:
        """Bundle of a split."""
        return self.directory / "bundle" / split

    def report(self, name: str) -> Path:
        """Directory of a stage's result."""
        return self.directory / "reports" / name

    def places(self, stage: str) -> list[Path]:
        """The directories that a stage leaves."""
        name, *role = stage.split(" ")
        splits = self.config.prepare.splits
        match name:
            case "prepare":
                return [self.directory / "examples"]
            case "train":
                return [self.checkpoint(split, role[0]) for split in splits]
            case "candidates":
                return [self.candidates(split) for split in splits]
            case "export":
                return [self.bundle(split) for split in splits]
            case _:
                return [self.report(name)]

    def current(self, stage: str, place: Path) -> dict[str, Any] | None:
        """The manifest that a stage has left at `place`; None if there is none, or it is out of date."""
        facts = manifest.read(place)
        return facts if facts is not None and facts["key"] == self.key(stage) else None

    def finished(self) -> dict[Path, str]:
        """Every directory that is up to date, and its key."""
        return {
            place: self.key(stage) for stage in SECTIONS for place in self.places(stage) if self.current(stage, place)
        }

    def key(self, stage: str) -> str:
        """The fingerprint of everything that the stage's result depends on."""
        parts = {name: self.sections[name] for name in SECTIONS[stage]}
        if "run" in parts:
            parts["run"] = self.config.run.name
        if "launch" in parts:
            # How often to start again, and how long to wait, change no result.
            parts["launch"] = self.config.launch.nproc
        if "replay" in parts:
            # Nor does who asks for the feeds.
            parts["replay"] = {n: v for n, v in parts["replay"].items() if n not in ("workers", "engine")}
        if stage == "candidates":
            parts["ranker"] = self.config.ranker.holdout
            parts["recommend"] = parts["recommend"] | {"blend": self.config.recommend.blend.seen_again_after}
        upstream = [self.key(name) for name in self.upstream(stage)]
        return fingerprint(
            stage, parts, upstream, self.environments[stage], self.inputs if stage == "prepare" else None
        )

    def upstream(self, stage: str) -> tuple[str, ...]:
        """The stages whose results a stage reads."""
        return (*UPSTREAM[stage], *(("candidates",) if stage == "train ranker" and self.config.lists else ()))

    def prepare(self, engine: Engine = "local") -> None:
        """Log → examples.

        Args:
            engine: what prepares the parts of the log; the examples are the same.
        """
        out = self.directory / "examples"

        def work(facts: dict[str, Any]) -> None:
            log = self.load_log()
            facts |= {
                "inputs": self.inputs,
                "source": log.source,
                "has_clock": log.has_clock,
                "settings": self.settings,
                "declared": self._declared,
            }
            pipeline.prepare(
                log,
                self.config.prepare,
                self.config.features,
                out,
                facts,
                inputs=self.inputs,
                engine=engine,
                report=lambda line: console.print(line, style="dim", highlight=False),
            )

        self._stage("prepare", out, work)
        # What draws plots is slow to import; a page that is up to date need not wait for it.
        page = self.directory / "reports" / "data.html"
        if not page.exists() or page.stat().st_mtime_ns < (out / manifest.MANIFEST).stat().st_mtime_ns:
            from recsys import data_report

            data_report.write(self.directory, self.config.served_split)
            console.print(f"  data report: {page}", style="dim", highlight=False)

    @property
    def settings(self) -> str:
        """The fingerprint of all that examples depend on, but for the log: they can be extended while it stays."""
        sections = {name: self.sections[name] for name in SECTIONS["prepare"]}
        sections["prepare"] = {name: value for name, value in sections["prepare"].items() if name not in OF_SPLITS}
        return fingerprint(sections, self.environments["prepare"])

    @property
    def _declared(self) -> dict[str, Any]:
        """What makes the schema."""
        fields = {f"prepare.{name}": self.sections["prepare"][name] for name in ("counters", "label")}
        return {"features": self.sections["features"], **fields}

    def require_same_schema(self) -> None:
        """Refuse to overwrite examples of other features; the models in the run were trained on them.

        Raises:
            InputError: there are such examples.
        """
        out = self.directory / "examples"
        declared = (manifest.read(out) or {}).get("declared", {})
        for section, here in self._declared.items():
            there = declared.get(section, here)
            if here != there:
                raise InputError(
                    f"{out} was prepared with another schema: {difference(section, here, there)}; "
                    "give this run another run.name, or replace the examples with --rebuild"
                )

    def train(self, engine: Engine = "local", *, fresh: bool = False) -> None:
        """Examples → a retriever and a ranker for every split; between the two, what the ranker is to rank.

        Args:
            engine: what starts the processes.
            fresh: begin at the beginning, even where a training can be taken up, or is finished.
        """
        splits = self.config.prepare.splits
        for split in splits:
            self._train_role(split, "retriever", self.config.retriever, self.examples(split), engine, fresh=fresh)
        if self.config.lists:
            for split in splits:
                work = partial(self._candidates, split)
                self._stage("candidates", self.candidates(split), work, f"candidates {split}")
        for split in splits:
            self._train_role(split, "ranker", self.config.ranker, self.ranked(split), engine, fresh=fresh)

    def export(self) -> None:
        """Checkpoints → a bundle for every split."""
        for split in self.config.prepare.splits:
            self._stage("export", self.bundle(split), partial(self._export, split), f"export {split}")

    def evaluate(self) -> None:
        """Bundles → quality of retrieval and ranking."""

        def work(facts: dict[str, Any]) -> dict[str, Any]:
            result: dict[str, Any] = {}
            if "leave_one_out" in self.config.prepare.splits:
                result |= evaluate.evaluate_retrieval(
                    self.bundle("leave_one_out"),
                    self.examples("leave_one_out"),
                    self.config.recommend,
                    baseline_configs(self.config, self.path),
                    lambda name: console.print(f"  judging {name}", style="dim"),
                )
            served = self.config.served_split
            found = evaluate.evaluate_ranking(self.bundle(served), self.examples(served), self.config.recommend)
            return result | found | {"ranking_split": served}

        self._result("evaluate", work)

    def replay(self) -> None:
        """The served bundle and the tail of its log → quality in time, and latency; popularity beside it."""
        split = self.config.served_split

        def work(facts: dict[str, Any]) -> dict[str, Any]:
            full = Policy("full", self.bundle(split), self.examples(split), self.config.recommend)
            asked = [full, replace(full, name="popularity", baseline="popularity", rank=False)]
            found = replays.replay(
                self.config.replay,
                logs.of_split(self.examples(split)),
                asked,
                self.directory / "replay",
                Progress(console),
                self.config.run.name,
            )
            return {**found["policies"]["full"], "popularity": found["policies"]["popularity"], **found}

        self._result("replay", work)

    def probe(self, work: Callable[[Path, Path], dict[str, Any]]) -> None:
        """The served bundle → a feed over HTTP; `work` takes the resolved config and the bundle."""
        bundle = self.bundle(self.config.served_split)
        self._result("probe", lambda facts: work(self.directory / RESOLVED, bundle))

    def write_config(self) -> None:
        """Leave the config in the run with every default filled in and every override applied."""
        resolved = tomli_w.dumps(self.config.model_dump(mode="json", exclude_none=True))
        try:
            write_text(self.directory / RESOLVED, resolved)
        except OSError as error:
            raise InputError(f"{self.directory}: cannot be written ({error.strerror}); set run.directory") from None

    def results(self) -> dict[str, Any]:
        """Everything that the finished stages found, and how long each took."""
        found: dict[str, Any] = {"run": self.config.run.name, "directory": str(self.directory), "seconds": {}}
        memory = 0.0
        for stage in SECTIONS:
            facts = [facts for place in self.places(stage) if (facts := self.current(stage, place)) is not None]
            if facts:
                name, seconds = stage.split(" ")[0], sum(fact.get("seconds_taken", 0.0) for fact in facts)
                found["seconds"][name] = round(found["seconds"].get(name, 0.0) + seconds, 2)
                memory = max([memory, *(fact.get("peak_memory_mb", 0.0) for fact in facts)])
        found["peak_memory_mb"] = memory
        found["rows"] = (manifest.read(self.directory / "examples") or {}).get("rows")
        found["training"] = {
            f"{path.parent.name}.{path.name}": {
                name: facts[name]
                for name in ("epochs", "best_epoch", "seconds", "rows_per_second", "parameters", "plan", "chosen")
                if name in facts
            }
            for path in (*self.places("train retriever"), *self.places("train ranker"))
            if (facts := manifest.read(path)) is not None
        }
        found["export"] = {
            split: facts["export"]
            for split in self.config.prepare.splits
            if (facts := self.current("export", self.bundle(split))) is not None
        }
        for name in ("evaluate", "replay", "probe"):
            if self.current(name, self.report(name)) is not None:
                result = manifest.read_json(self.report(name) / RESULT)
                found |= result if name == "evaluate" else {name: result}
        return found

    def _train_role(
        self,
        split: Split,
        role: str,
        section: RetrieverConfig | RankerConfig,
        examples: Path,
        engine: Engine,
        *,
        fresh: bool,
    ) -> None:
        out = self.checkpoint(split, role)
        if fresh and distributed.is_first() and not distributed.is_restart():
            book = Logbook(self.directory, f"{split}/{role}")
            chosen = checkpoint.choice(out)
            for place in (out, checkpoint.unfinished(out), chosen, checkpoint.unfinished(chosen)):
                if place.exists():
                    book.write("discarded", cause="asked to begin anew", checkpoint=place.name)
                    shutil.rmtree(place)
        work = partial(self._train, section, examples, out, engine)
        self._stage(f"train {role}", out, work, f"train {split} {role}")

    def _train(
        self,
        section: RetrieverConfig | RankerConfig,
        examples: Path,
        out: Path,
        engine: Engine,
        facts: dict[str, Any],
    ) -> None:
        training = Training(
            section=section,
            sharding=self.config.sharding,
            tables=self.config.tables,
            examples=examples.resolve(),
            out=out.resolve(),
            run=self.directory.resolve(),
            facts=facts | {"data": self.key("prepare" if isinstance(section, RetrieverConfig) else self._data)},
        )
        launch = launch_training
        if engine == "ray":
            # Ray is slow to import.
            from recsys import ray_train

            launch = ray_train.launch
        if isinstance(section, RetrieverConfig) and section.train.refit:
            chosen = checkpoint.choice(training.out)
            if not distributed.from_first((manifest.read(chosen) or {}).get("key") == facts["key"]):
                launch(replace(training, out=chosen), self.config.launch)
            found = distributed.from_first(manifest.read(chosen))
            assert found is not None
            training = replace(training, refit=found["best_epoch"] + 1)
            training.facts["chosen"] = {name: found[name] for name in ("valid", "best_epoch", "epochs", "seconds")}
        launch(training, self.config.launch)

    @property
    def _data(self) -> str:
        """The stage that made the ranker's examples."""
        return "candidates" if self.config.lists else "prepare"

    @property
    def _sources(self) -> dict[str, Settings]:
        """The baselines whose scores are features."""
        known = baseline_configs(self.config, self.path)
        return {name: known[name] for name in sources.named(self.config.features)}

    def _candidates(self, split: Split, facts: dict[str, Any]) -> None:
        section, trained = self.config.retriever, self.checkpoint(split, "retriever")
        refused: InputError | None = None
        if distributed.is_first():
            prepared = manifest.read(self.directory / "examples")
            assert prepared is not None
            try:
                candidates.write(
                    self.examples(split),
                    (section, checkpoint.choice(trained) if section.train.refit else trained),
                    self.config.tables.managed,
                    self.config.features,
                    self._sources,
                    self.config.recommend,
                    self.config.ranker.holdout,
                    {name: self.sections[name] for name in ("prepare", "retriever", "tables")},
                    self.candidates(split),
                    facts | {"has_clock": prepared["has_clock"]},
                )
            except InputError as error:
                refused = error
        refused = distributed.from_first(refused)
        if refused is not None:
            raise refused

    def _export(self, split: Split, facts: dict[str, Any]) -> None:
        prepared = manifest.read(self.directory / "examples")
        assert prepared is not None
        sections = {
            name: self.sections[name] for name in ("run", "prepare", "retriever", "ranker", "tables", "recommend")
        }
        facts |= {"split": split, "has_clock": prepared["has_clock"]}
        retriever = (self.config.retriever, self.checkpoint(split, "retriever"))
        ranker = (self.config.ranker, self.checkpoint(split, "ranker"))
        out = self.bundle(split)
        found = export.export(
            self.examples(split),
            self.ranked(split),
            retriever,
            ranker,
            self._sources,
            self.config.tables.managed,
            self.config.export,
            sections,
            out,
            facts,
        )
        for line in export_lines(found):
            console.print(f"  {line}", style="dim", highlight=False, soft_wrap=True)

    def _result(self, stage: str, work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """A stage whose result is one JSON file."""
        out = self.report(stage)

        def write(facts: dict[str, Any]) -> None:
            with finished_directory(out, facts) as directory:
                write_json(directory / RESULT, work(facts))

        self._stage(stage, out, write)

    def _stage(self, stage: str, out: Path, work: Callable[[dict[str, Any]], Any], title: str | None = None) -> None:
        """Do `work` unless `out` is up to date; work writes `out` and its manifest from the facts that it is given."""
        key, title = self.key(stage), title or stage
        if distributed.from_first(self.current(stage, out) is not None):
            _say(f"[dim]{title}: up to date[/dim]")
            return
        self._require_upstream(stage)
        _say(f"[bold]{title}[/bold] …")
        started = time.perf_counter()
        facts: dict[str, Any] = {"stage": stage, "key": key, "environment": self.environments[stage]}
        work(facts)
        if not distributed.is_first():
            return
        taken = manifest.read(out)
        assert taken is not None, f"{stage} left no manifest at {out}"
        seconds = time.perf_counter() - started
        write_json(out / manifest.MANIFEST, taken | {"seconds_taken": seconds, "peak_memory_mb": peak_memory_mb()})
        _say(f"  done in {seconds:.1f} s")

    def _require_upstream(self, stage: str) -> None:
        for name in self.upstream(stage):
            verb = "train" if name == "candidates" else name.split(" ")[0]
            for place in self.places(name):
                facts = manifest.read(place)
                if facts is None:
                    raise InputError(f"{place}: nothing here yet; run `recsys {verb} {self.path}` first")
                if facts["key"] != self.key(name):
                    raise InputError(
                        f"{place} was made from another config, other data or other code; "
                        f"run `recsys {verb} {self.path}` again"
                    )


def _say(text: str) -> None:
    """A line from the first process, where several do the same."""
    if distributed.is_first():
        console.print(text)


def peak_memory_mb() -> float:
    """The most resident memory that this process or one of its children has had, 10⁶ bytes."""
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(kilobytes * 1024 / 1e6, 1)
