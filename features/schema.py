"""What the features of a run are: declared in its TOML, resolved by fitting, fingerprinted wherever they travel.

[[features]]
name = "genres"
kind = "bag"
source = "item.categories"
transform = "lookup"
table = "genre"
dim = 16
"""

from typing import Any, Literal, cast

from pydantic import Field, model_validator

from features import registry
from features.errors import InputError
from features.labels import FittedTask
from features.manifest import fingerprint
from features.settings import Settings

Kind = Literal["sparse", "bag", "dense", "vector"]

RESERVED = ("index", "row", "user_code", "item_code", "user_index", "item_index", "timestamp", "label")
"""Columns that stand beside the features in examples and feature tables."""

WEIGHTS = "__weights"
"""What the column of a bag's weights is called, after the feature's name."""


RETRIEVED = "retrieved."
"""Begins the sources, and the columns of request frames, that say what a retriever has found."""


class FeatureSpec(Settings):
    """One feature of the ranker."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Its name in examples, tables and reports."""
    kind: Kind
    """`sparse`: one id; `bag`: any number of ids, pooled; `dense`: one number; `vector`: a fixed number of them."""
    source: str = Field(pattern=r"^(user|item|request|history|feature|retrieved)\.[a-z][a-z0-9_]*$")
    """`user.…` and `item.…`: a column of that table; `request.…`: a column of the example as of its time; `history.…`:
    a column of the item table for each item of the history; `feature.…`: another sparse feature, encoded;
    `retrieved.…`: what the retriever says of the item (`recsys.candidates`)."""
    transform: str
    """The file in `features/transforms` that computes it."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the transform."""
    table: str | None = None
    """Embedding table of a sparse or bag feature; features may share one. Default: the feature's name."""
    dim: int = Field(default=16, gt=0)
    """Columns of the embedding table."""
    weights: str | None = Field(default=None, pattern=r"^(user|item|request)\.[a-z][a-z0-9_]*$")
    """Of a bag: a list of numbers of the same length, by which its ids are weighted. Default: all weigh the same."""
    rows: int | None = Field(default=None, gt=0)
    """Rows of the embedding table; known after fitting."""
    width: int | None = Field(default=None, gt=0)
    """Numbers of a vector; known after fitting."""

    @model_validator(mode="after")
    def _check(self) -> "FeatureSpec":
        if self.name in RESERVED:
            raise ValueError(f"name {self.name!r} is a column that every example has; choose another")
        if self.transform not in registry.known("features.transforms"):
            names = ", ".join(registry.known("features.transforms"))
            raise ValueError(f"transform {self.transform!r} is not known; use one of: {names}")
        if self.kind in ("dense", "vector") and self.table is not None:
            raise ValueError(f"a {self.kind} feature has no table; remove table or change kind")
        if self.weights is not None:
            if self.kind != "bag":
                raise ValueError(f"weights are for bags, not for {self.kind} features; remove weights or change kind")
            if self.weights.split(".")[0] != self.source.split(".")[0]:
                raise ValueError(f"weights = {self.weights!r} are not beside {self.source}; take both from one table")
        return self

    @property
    def retrieved(self) -> bool:
        """Whether it is known of what a retriever has found alone, and of no row of the log."""
        return self.source.startswith(RETRIEVED)

    @property
    def table_name(self) -> str:
        """The embedding table that it reads."""
        return self.table or self.name


class Schema(Settings):
    """The resolved features of a split: what examples hold, what a model is built for, what a bundle answers."""

    features: tuple[FeatureSpec, ...]
    label: str
    """Name of the label, the ranker's first task."""
    tasks: tuple[FittedTask, ...] = ()
    """Its other ones."""
    items: int = Field(ge=0)
    """Items in the vocabulary; indices are 1 … items, 0 is out of vocabulary."""
    users: int = Field(ge=0)
    """Users in the vocabulary, likewise."""
    fitted: str = ""
    """Fingerprint of the vocabularies and of what the transforms learned: what an index or a scaled number means."""

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        names = [feature.name for feature in self.features]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"feature names are used twice: {', '.join(sorted(twice))}; rename one")
        for feature in self.embedded:
            first = next(other for other in self.embedded if other.table_name == feature.table_name)
            if (first.dim, first.rows) != (feature.dim, feature.rows):
                raise ValueError(
                    f"features {first.name} and {feature.name} share table {first.table_name} but not its shape "
                    f"({first.rows} × {first.dim}, {feature.rows} × {feature.dim}); "
                    "give both the same dim and transform"
                )
        return self

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Names of what the ranker predicts, in the order of its outputs."""
        return (self.label, *(task.name for task in self.tasks))

    @property
    def binary(self) -> tuple[bool, ...]:
        """Whether each of them is yes or no; the others are numbers."""
        return (True, *(task.binary for task in self.tasks))

    @property
    def embedded(self) -> tuple[FeatureSpec, ...]:
        """Sparse and bag features, in order: the keys of the batch's KeyedJaggedTensor."""
        return tuple(feature for feature in self.features if feature.kind in ("sparse", "bag"))

    @property
    def dense(self) -> tuple[FeatureSpec, ...]:
        """Dense and vector features, in order: the columns of the batch's dense tensor."""
        return tuple(feature for feature in self.features if feature.kind in ("dense", "vector"))

    @property
    def dense_width(self) -> int:
        """Columns of the batch's dense tensor."""
        return sum(feature.width or 1 for feature in self.dense)

    @property
    def weighted(self) -> bool:
        """Whether some bag's ids have weights."""
        return any(feature.weights is not None for feature in self.features)

    @property
    def fingerprint(self) -> str:
        """Changes whenever anything that a model depends on changes."""
        return fingerprint(self.model_dump(mode="json"))

    def require_equal(self, other: "Schema", mine: str, theirs: str) -> None:
        """Refuse to mix things made for different schemas.

        Raises:
            InputError: naming the first difference between `mine` and `theirs` (descriptions of the two).
        """
        if self.fingerprint == other.fingerprint:
            return
        ours, others = self.model_dump(mode="json"), other.model_dump(mode="json")
        pairs = [(key, ours[key], others[key]) for key in ("label", "tasks", "items", "users", "fitted")]
        named = {f.name: f.model_dump(mode="json") for f in other.features}
        for feature in self.features:
            pairs.append((f"feature {feature.name}", feature.model_dump(mode="json"), named.pop(feature.name, None)))
        pairs += [(f"feature {name}", None, spec) for name, spec in named.items()]
        what, a, b = next((pair for pair in pairs if pair[1] != pair[2]), ("order of features", "", ""))
        if isinstance(a, dict) and isinstance(b, dict):
            mine_of, theirs_of = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
            field = next(key for key in mine_of if mine_of[key] != theirs_of[key])
            what, a, b = f"{what}, {field}", mine_of[field], theirs_of[field]
        raise InputError(
            f"{mine} and {theirs} have different schemas: {what} is {a} against {b}; run `recsys export` again"
        )


Declaration = dict[str, Any] | list[dict[str, Any]]
"""A section of a config as JSON: its fields, or the fields of each of its named entries."""


def difference(section: str, mine: Declaration, theirs: Declaration) -> str:
    """Where two declarations of [prepare] or [[features]] that are not equal differ first, in words."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        field = next(name for name in {**mine, **theirs} if mine.get(name, ...) != theirs.get(name, ...))
        here, there = (repr(fields[field]) if field in fields else "unknown" for fields in (mine, theirs))
        return f"{section}, {field} is {here} against {there}"
    assert isinstance(mine, list)
    assert isinstance(theirs, list)
    of_mine, of_theirs = ({entry["name"]: entry for entry in entries} for entries in (mine, theirs))
    for name in dict.fromkeys([*of_mine, *of_theirs]):
        if name not in of_theirs:
            return f"{section} {name} is new"
        if name not in of_mine:
            return f"{section} {name} is gone"
        if of_mine[name] != of_theirs[name]:
            return difference(f"{section} {name}", of_mine[name], of_theirs[name])
    return f"the order of {section} is another"
