"""Tables whose ids have no bound: frequent ids have rows of their own, rare ones share, and rows change hands.

[tables.managed.user_hash]
rows = 100_000
policy = "lfu"

A feature of such a table has ids of 63 bits (`transform = "hashing"`, `params = { unbounded = true }`). `resolve` gives
its features the rows that the model is built with; `manage` replaces the model's collections by ones that are called
and answer alike; `embeddings.collision_sharding` shards them; `freeze` makes what answers requests.

    task = build_task(config, collisions.resolve(schema, managed), torch.device("meta"))
    collisions.manage(task, managed)

They are trained sharded, also on one rank: TorchRec's unsharded modules do not reset rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import ManagedCollisionCollection

from embeddings.id_map import POLICIES, IdMap, rows_of
from features.errors import InputError
from features.schema import FeatureSpec, Schema
from features.settings import Settings
from features.transforms.hashing import UNBOUNDED

Pooled = KeyedTensor | dict[str, JaggedTensor]
"""What a collection of bags or of sequences answers."""


class ManagedTable(Settings):
    """The section [tables.managed.<table>]."""

    rows: int = Field(gt=0)
    """Rows at least; made up to a multiple of `buckets`. One of each bucket is shared by the ids that have none."""
    policy: Literal["lfu", "lru", "distance_lfu"] = "distance_lfu"
    """Which ids keep their rows: those that came most often, latest, or often and not long ago."""
    decay: float = Field(default=1.0, gt=0)
    """Exponent of the age, in steps, by which `lru` and `distance_lfu` weigh."""
    eviction_interval: int = Field(default=100, gt=0)
    """Training steps between the moments when rows change hands."""
    min_count: int = Field(default=1, gt=0)
    """How often an id must come between two such moments to be given a row."""
    buckets: int = Field(default=240, gt=0)
    """Parts that ranks share evenly, so that it must be a multiple of the number of ranks; a checkpoint keeps it."""

    @model_validator(mode="after")
    def _check(self) -> "ManagedTable":
        if self.rows < 2 * self.buckets:
            raise ValueError(
                f"rows = {self.rows} in buckets = {self.buckets} leave less than 2 rows a bucket; change one"
            )
        return self

    @property
    def rows_of_bucket(self) -> int:
        """Rows of a bucket."""
        return -(-self.rows // self.buckets)

    def id_map(self, device: torch.device) -> IdMap:
        """An empty map for the whole table."""
        policy = POLICIES[self.policy](**({} if self.policy == "lfu" else {"decay_exponent": self.decay}))
        return IdMap(policy, self.eviction_interval, self.min_count, self.buckets, self.rows_of_bucket, device)


Managed = Mapping[str, ManagedTable]
"""The section [tables.managed]: table → how its rows are given to ids that have no bound."""


def check(managed: Managed, features: Sequence[FeatureSpec], forms: Mapping[str, str | None], ranks: int) -> None:
    """Refuse what does not go together before anything is computed.

    Args:
        managed: the managed tables.
        features: as declared.
        forms: of the tables that [sharding.tables] gives one.
        ranks: training processes.

    Raises:
        ValueError: a managed table without unbounded ids, or such ids without a managed table, or one that cannot be
            sharded as it is told to be.
    """
    unbounded = {feature.table_name for feature in features if feature.params.get("unbounded")}
    for table, section in managed.items():
        if table not in unbounded:
            known = ", ".join(sorted(unbounded)) or "none"
            raise ValueError(
                f"tables.managed.{table} names no table of unbounded ids (found: {known}); "
                "give its features transform = 'hashing' and params = { unbounded = true }"
            )
        if forms.get(table) not in (None, "row_wise"):
            raise ValueError(
                f"sharding.tables.{table} = {forms[table]!r}, but managed tables are row_wise; remove that line"
            )
        if section.buckets % ranks:
            raise ValueError(
                f"tables.managed.{table}.buckets = {section.buckets} is not a multiple of launch.nproc = {ranks}; "
                "change one"
            )
    for table in sorted(unbounded - set(managed)):
        raise ValueError(f"table {table} has unbounded ids; say in [tables.managed.{table}] how many rows they share")


def resolve(schema: Schema, managed: Managed) -> Schema:
    """The schema that a model is built for: features of managed tables with the rows of their tables.

    Raises:
        InputError: a feature has unbounded ids and its table is not managed, or the other way round.
    """
    features: list[FeatureSpec] = []
    for feature in schema.features:
        table = managed.get(feature.table_name) if feature.kind in ("sparse", "bag") else None
        if (feature.rows == UNBOUNDED) != (table is not None):
            raise InputError(
                f"feature {feature.name} has {'un' if table is None else ''}bounded ids, and [tables.managed] "
                f"{'does not name' if table is None else 'names'} its table {feature.table_name}; change one"
            )
        rows = feature.rows if table is None else table.buckets * table.rows_of_bucket
        features.append(feature.model_copy(update={"rows": rows}))
    return schema.model_copy(update={"features": tuple(features)})


class Collection(nn.Module):
    """An EmbeddingBagCollection or EmbeddingCollection some of whose tables are managed; called and answering alike."""

    def __init__(
        self,
        managed: ManagedCollisionEmbeddingBagCollection | ManagedCollisionEmbeddingCollection,
        plain: EmbeddingBagCollection | EmbeddingCollection | None,
    ) -> None:
        super().__init__()
        self.managed = managed
        self.plain = plain

    def forward(self, features: KeyedJaggedTensor) -> Pooled:
        """Pooled vectors, or vectors by feature; of managed tables and the others, found by name."""
        answer, _ = self.managed(features)
        return answer if self.plain is None else _joined(answer, self.plain(features))


class FrozenMap(nn.Module):
    """Which row each id has, for good; its buffers, int64 [rows] each, may be memory-mapped."""

    sorted_id: Tensor
    sorted_row: Tensor

    def __init__(self, trained: IdMap) -> None:
        super().__init__()
        assert trained.first_row == 0, "only whole maps are frozen"
        self.buckets, self.rows_of_bucket = trained.total_buckets, trained.rows_of_bucket
        sorted_id, sorted_row = torch.sort(trained.row_id, stable=True)
        self.register_buffer("sorted_id", sorted_id)
        self.register_buffer("sorted_row", sorted_row)

    def forward(self, id_N: Tensor) -> Tensor:
        """Ids → rows; the shared row of its bucket for an id that has none; int64 [N]."""
        return rows_of(id_N, self.sorted_id, self.sorted_row, self.buckets, self.rows_of_bucket)


class FrozenTables(nn.Module):
    """The managed tables of a collection, with their weights under the names that they were trained under."""

    def __init__(self, trained: ManagedCollisionEmbeddingBagCollection | ManagedCollisionEmbeddingCollection) -> None:
        super().__init__()
        collisions = trained._managed_collision_collection
        maps = cast("Mapping[str, IdMap]", collisions._managed_collision_modules)
        self._embedding_module = trained._embedding_module
        self.maps = nn.ModuleDict({table: FrozenMap(each) for table, each in maps.items()})
        self.table_of = dict(collisions._feature_to_table)

    def forward(self, features: KeyedJaggedTensor) -> Pooled:
        """Vectors of the features of these tables."""
        ids = features.permute([place for place, key in enumerate(features.keys()) if key in self.table_of])
        keys = ids.keys()
        row_N = torch.cat([self.maps[self.table_of[key]](ids[key].values()) for key in keys])
        return self._embedding_module(
            KeyedJaggedTensor(keys=keys, values=row_N, lengths=ids.lengths(), weights=ids.weights_or_none())
        )


class FrozenCollection(nn.Module):
    """What a `Collection` in eval mode answers, without anything that only training needs."""

    def __init__(self, trained: Collection) -> None:
        super().__init__()
        self.managed = FrozenTables(trained.managed)
        self.plain = trained.plain

    def forward(self, features: KeyedJaggedTensor) -> Pooled:
        """As `Collection`."""
        answer = self.managed(features)
        return answer if self.plain is None else _joined(answer, self.plain(features))


def manage(model: nn.Module, managed: Managed, maps: torch.device | None = None) -> None:
    """Put managed tables into a model built for a resolved schema, in place, before it is sharded or loaded.

    Args:
        model: has collections, and is none.
        managed: the managed tables.
        maps: where the maps of ids are to be; None: beside their tables.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, EmbeddingBagCollection | EmbeddingCollection):
                setattr(parent, name, _managed(child, managed, maps))


def freeze(model: nn.Module) -> None:
    """Replace what `manage` put into an unsharded model by what only answers, in place; tables are not copied.

    A model on the meta device gets the places that the state of a frozen one is loaded into.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Collection):
                setattr(parent, name, FrozenCollection(child))


def answering(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the state of a managed model, what is to be read from a checkpoint before it is frozen: no counts."""
    maps = "._managed_collision_modules."
    return {name: tensor for name, tensor in state.items() if maps not in name or name.endswith(".row_id")}


def _managed(
    child: EmbeddingBagCollection | EmbeddingCollection, managed: Managed, maps: torch.device | None
) -> nn.Module:
    """A collection with its managed tables managed; itself where it has none."""
    tables = child.embedding_bag_configs() if isinstance(child, EmbeddingBagCollection) else child.embedding_configs()
    chosen = [table for table in tables if table.name in managed]
    others = [table for table in tables if table.name not in managed]
    if not chosen:
        return child
    device = maps or next(child.parameters()).device
    # Without preprocessing, which ids need none and which would lose the weights of bags.
    collisions = ManagedCollisionCollection(
        {table.name: managed[table.name].id_map(device) for table in chosen}, chosen, need_preprocess=False
    )
    whole, rest = _of_tables(child, chosen), _of_tables(child, others) if others else None
    if isinstance(whole, EmbeddingBagCollection):
        return Collection(ManagedCollisionEmbeddingBagCollection(whole, collisions), rest)
    return Collection(ManagedCollisionEmbeddingCollection(whole, collisions), rest)


def _of_tables(
    child: EmbeddingBagCollection | EmbeddingCollection, tables: list[Any]
) -> EmbeddingBagCollection | EmbeddingCollection:
    """A collection like another, of some of its tables."""
    if isinstance(child, EmbeddingBagCollection):
        return EmbeddingBagCollection(tables=tables, is_weighted=child.is_weighted(), device=child.device)
    return EmbeddingCollection(tables=tables, need_indices=child.need_indices(), device=child.device)


def _joined(first: Any, second: Any) -> Pooled:
    """Two answers as one; what is still under way is waited for."""
    if isinstance(first, KeyedTensor) or hasattr(first, "length_per_key"):
        return KeyedTensor(
            keys=[*first.keys(), *second.keys()],
            length_per_key=[*first.length_per_key(), *second.length_per_key()],
            values=torch.cat([first.values(), second.values()], dim=1),
        )
    return {**dict(first.items()), **dict(second.items())}
