"""A replay's own config: a TOML whose section [replay] names a kind, a file in `recsys/replay/kinds/`.

recsys replay configs/replay/ml-1m.toml --replay.k 20

A kind has `Config`, the section but for `kind`, `name` and `directory`, and `run(config, path, directory, progress)`,
which writes its files to `directory` and returns what `--json` prints. Of that, `verdict` is what has come out in a
sentence, `report` the page that says it. A kind that has `check(config, path)` looks there at what its fields name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from features import registry
from features.errors import InputError
from features.settings import Settings
from recsys.config_file import read_toml, validate
from recsys.console import console

KINDS = "recsys.replay.kinds"


class Place(Settings):
    """What every section [replay] has beside the fields of its kind."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the replay."""
    directory: Path = Path("runs")
    """Where runs are; all of this one is in `<directory>/replay-<name>`."""


@dataclass(frozen=True)
class Replay:
    """A replay that can be done."""

    module: ModuleType
    """Its kind."""
    config: Settings
    path: Path
    place: Place

    @property
    def directory(self) -> Path:
        """All that it writes."""
        return self.place.directory / f"replay-{self.place.name}"


@dataclass(frozen=True)
class Progress:
    """Tells a person at the terminal how far it is."""

    console: Console

    def say(self, line: str) -> None:
        """A line."""
        self.console.print(line, style="dim", highlight=False)

    @contextmanager
    def count(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar; what is yielded is told how many are done so far."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.update(task, completed=done)


def is_replay(path: Path, overrides: list[str]) -> bool:
    """Whether the file is the config of a replay, and not of a run."""
    section = read_toml(path, overrides).get("replay", {})
    return isinstance(section, dict) and "kind" in section


def load(path: Path, overrides: list[str]) -> Replay:
    """Read and check a replay's config.

    Raises:
        InputError: with the file, the field, its value and the fix.
    """
    tree = read_toml(path, overrides)
    for name in tree:
        if name != "replay":
            raise InputError(f"{path}: unknown key {name}; the config of a replay has a section [replay] alone")
    section = dict(tree["replay"])
    module = registry.load(KINDS, section.pop("kind"), f"{path}: replay.kind")
    own = {name: section.pop(name) for name in Place.model_fields if name in section}
    place = validate(Place, own, str(path), "replay.")
    config = validate(module.Config, section, str(path), "replay.")
    if hasattr(module, "check"):
        module.check(config, path)
    return Replay(module, config, path, place)


def run(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Do what the config says."""
    replay = load(path, overrides)
    return replay.module.run(replay.config, path, replay.directory, Progress(console))
