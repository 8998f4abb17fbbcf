"""Tables for answering requests: fp32, or rows of 8 or 4 bits with a scale and a bias each, read where they lie.

`with_tables` puts tables, which may be memory-mapped files, in the place of a model's collections. The model knows
nothing of it: what it calls has the arguments and results of `EmbeddingBagCollection` and `EmbeddingCollection`. Only
the rows that a batch asks for are read; no table is unpacked.

A row of D weights is D bytes, a float32 scale and a float32 bias (int8), or D/2 bytes, a float16 scale and bias
(int4): fbgemm's fused row-wise form, which torch's `quantized` operators look up on CPU, with sums in float32.
R rows, D columns, W bytes of a row, N ids in all (jagged), B bags.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from features.errors import InputError

Form = Literal["fp32", "int8", "int4"]


def check_dim(table: str, dim: int, form: Form) -> None:
    """Refuse a width that has no such form.

    Raises:
        InputError: rows of 4 bits need a multiple of 4 columns.
    """
    if form == "int4" and dim % 4:
        raise InputError(
            f"table {table} has {dim} columns, and int4 needs a multiple of 4; change its dim, or set "
            f'export.overrides.{table} = "int8"'
        )


def quantize(rows_RD: Tensor, form: Form) -> Tensor:
    """float32 [R, D] → the rows as stored: the same, or uint8 [R, W]."""
    match form:
        case "fp32":
            return rows_RD
        case "int8":
            return torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows_RD)
        case "int4":
            return torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(rows_RD, 4)


def dequantize(stored_RW: Tensor, form: Form) -> Tensor:
    """The rows as stored → float32 [R, D]; of fp32 the same tensor, not a copy."""
    match form:
        case "fp32":
            return stored_RW
        case "int8":
            return torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(stored_RW)
        case "int4":
            return torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(stored_RW, 4)


class StoredTable(nn.Module):
    """A table in one of the forms, on CPU, perhaps a memory-mapped file."""

    def __init__(self, form: Form, rows: Tensor) -> None:
        """Take the rows as they are: float32 [R, D], or uint8 [R, W]."""
        super().__init__()
        self.form: Form = form
        self.rows: Tensor
        # Not persistent: the bundle, and not the state dict of a model, is where it is kept.
        self.register_buffer("rows", rows, persistent=False)

    def pooled(self, ids_N: Tensor, offsets: Tensor, weights_N: Tensor | None, *, mean: bool) -> Tensor:
        """The mean or the (weighted) sum of the rows of each bag, 0 for an empty one; float32 [B, D].

        Args:
            ids_N: of all bags; int64.
            offsets: where each bag begins, and the end; int64 [B + 1].
            weights_N: float32, for a sum.
            mean: whether to divide the sum by the number of ids.
        """
        if self.form == "fp32":
            return nn.functional.embedding_bag(
                ids_N,
                self.rows,
                offsets,
                mode="mean" if mean else "sum",
                per_sample_weights=weights_N,
                include_last_offset=True,
            )
        lookup = _LOOKUPS[self.form]
        x_BD = lookup(self.rows, ids_N, offsets, per_sample_weights=weights_N, include_last_offset=True)
        return x_BD / offsets.diff().clamp(min=1).unsqueeze(1) if mean else x_BD

    def gathered(self, ids_N: Tensor) -> Tensor:
        """The row of each id; float32 [N, D]."""
        if self.form == "fp32":
            return nn.functional.embedding(ids_N, self.rows)
        # Gathering packed rows first, to unpack them after, takes 2 to 12 times as long as bags of one.
        return self.pooled(ids_N.contiguous(), torch.arange(len(ids_N) + 1), None, mean=False)

    def whole(self) -> Tensor:
        """All rows; float32 [R, D]: a copy, unless they are fp32."""
        return dequantize(self.rows, self.form)


_LOOKUPS = {
    "int8": torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
    "int4": torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
}


class StoredBags(nn.Module):
    """Stored tables with the call of an EmbeddingBagCollection."""

    def __init__(self, like: EmbeddingBagCollection, stored: Mapping[str, StoredTable]) -> None:
        super().__init__()
        self.configs = like.embedding_bag_configs()
        self.is_weighted = like.is_weighted()
        self.tables = nn.ModuleDict({config.name: stored[config.name] for config in self.configs})
        names = get_embedding_names_by_table(self.configs)
        self.keys = [name for names_of_table in names for name in names_of_table]
        self.widths = [config.embedding_dim for config in self.configs for _ in config.feature_names]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pool the bags of every feature."""
        by_name = features.to_dict()
        pooled: list[Tensor] = []
        for config, table in zip(self.configs, self.tables.values(), strict=True):
            assert isinstance(table, StoredTable)
            mean = config.pooling == PoolingType.MEAN
            for name in config.feature_names:
                bags = by_name[name]
                weights_N = bags.weights() if self.is_weighted else None
                pooled.append(table.pooled(bags.values(), bags.offsets(), weights_N, mean=mean))
        return KeyedTensor(keys=self.keys, values=torch.cat(pooled, dim=1), length_per_key=self.widths)

    def means(
        self, features: KeyedJaggedTensor, bags: Collection[str], shared: Collection[str], together: int
    ) -> dict[str, Tensor]:
        """What `embeddings.tables.means` makes of the sums, and of the shared features a row a request.

        Args:
            features: of the candidates of requests.
            bags: features that may have more ids than one.
            shared: features that are the same for the candidates of a request.
            together: candidates of a request, which follow each other.
        """
        found: dict[str, Tensor] = {}
        ends, names = features.offset_per_key(), features.keys()
        place = {name: number for number, name in enumerate(names)}
        length_FB, weights = features.lengths().view(len(names), -1), features.weights_or_none()
        for config, table in zip(self.configs, self.tables.values(), strict=True):
            assert isinstance(table, StoredTable)
            for name in config.feature_names:
                mine = slice(ends[place[name]], ends[place[name] + 1])
                ids_N, step = features.values()[mine], together if name in shared else 1
                if name not in bags:
                    found[name] = table.gathered(ids_N[::step])
                    continue
                lengths_B = length_FB[place[name]]
                starts_B, lengths_R = (lengths_B.cumsum(0) - lengths_B)[::step], lengths_B[::step]
                weights_N = None if weights is None else weights[mine]
                if step > 1:
                    slices = zip(starts_B.tolist(), lengths_R.tolist(), strict=True)
                    first_N = torch.cat([torch.arange(start, start + length) for start, length in slices])
                    ids_N, weights_N = ids_N[first_N], None if weights_N is None else weights_N[first_N]
                offsets = torch.cat([lengths_R.new_zeros(1), lengths_R.cumsum(0)])
                found[name] = table.pooled(ids_N, offsets, weights_N, mean=weights_N is None)
        return found


class StoredSequences(nn.Module):
    """Stored tables with the call of an EmbeddingCollection."""

    def __init__(self, like: EmbeddingCollection, stored: Mapping[str, StoredTable]) -> None:
        super().__init__()
        self.configs = like.embedding_configs()
        self.tables = nn.ModuleDict({config.name: stored[config.name] for config in self.configs})
        self.names = get_embedding_names_by_table(self.configs)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look the ids of every feature up."""
        by_name = features.to_dict()
        found: dict[str, JaggedTensor] = {}
        for config, table, names in zip(self.configs, self.tables.values(), self.names, strict=True):
            assert isinstance(table, StoredTable)
            for feature, name in zip(config.feature_names, names, strict=True):
                ids = by_name[feature]
                found[name] = JaggedTensor(values=table.gathered(ids.values()), lengths=ids.lengths())
        return found


def table_names(model: nn.Module) -> dict[str, str]:
    """The name of each table's weight in the state dict of a model as it is built → the table's name."""
    return {
        f"{path}.{name}": name.split(".")[1]
        for path, module in model.named_modules()
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection)
        for name, _ in module.named_parameters()
    }


def with_tables(model: nn.Module, stored: Mapping[str, StoredTable]) -> nn.Module:
    """Put stored tables in the place of a model's collections; the model itself, changed.

    Args:
        model: as it is built, with its tables on any device.
        stored: name of the table's weight in the model's state dict → the table.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, EmbeddingBagCollection):
            tables = {c.name: stored[f"{path}.embedding_bags.{c.name}.weight"] for c in module.embedding_bag_configs()}
            model.set_submodule(path, StoredBags(module, tables))
        elif isinstance(module, EmbeddingCollection):
            tables = {c.name: stored[f"{path}.embeddings.{c.name}.weight"] for c in module.embedding_configs()}
            model.set_submodule(path, StoredSequences(module, tables))
    return model


def whole_table(collection: nn.Module, table: str) -> Tensor:
    """All rows of a local table of an EmbeddingCollection, or of what stands in its place; float32 [R, D]."""
    if isinstance(collection, StoredSequences):
        stored = collection.tables[table]
        assert isinstance(stored, StoredTable)
        return stored.whole()
    return collection.get_parameter(f"embeddings.{table}.weight")
