"""What a config may ask of the planner for each table, and what is refused: it does not exist, or trains otherwise."""

from typing import Any, Literal, get_args

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from embeddings.estimates import CACHED, VIRTUAL, Kernel
from features.errors import InputError
from features.settings import Settings

Form = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"]
"""How a table is cut: not at all, by rows, by columns; or first given to a host, then cut by rows or by columns among
its ranks; or by columns among hosts and by rows within each. TorchRec's names."""
SEQUENCE_FORMS: tuple[Form, ...] = ("table_wise", "row_wise", "column_wise")
"""Those that TorchRec has for sequence tables (EmbeddingCollection)."""
COLUMN_FORMS: tuple[Form, ...] = ("column_wise", "table_column_wise", "grid_shard")
"""Those that cut rows into pieces."""
REPLICATED = "data_parallel"
ELEMENTWISE = ("sgd", "adagrad", "adam")
"""Sparse optimizers that look at no weight's neighbours, so that rows can be cut."""
ON_SSD = ("key_value", *VIRTUAL)
"""Kernels over fbgemm's key-value stores."""
KEY_VALUE_OPTIMIZERS = ("rowwise_adagrad", "partial_rowwise_adam", "adam")
"""Sparse optimizers that those have."""


class TableConfig(Settings):
    """One table: the section [sharding.tables.<name>], or the form alone."""

    form: Form | Literal["data_parallel"] | None = None
    """Its form. None: one of sharding.forms. `data_parallel`: a copy on every rank, trained by the dense optimizer."""
    kernel: Kernel | None = None
    """Where it is kept; None: what the planner finds best among the kernels that need no SSD."""
    min_partition: int | None = Field(default=None, gt=0, multiple_of=4)
    """Columns of a piece, at least, where columns are cut; None: 128."""
    cache_load_factor: float | None = Field(default=None, gt=0, lt=1)
    """Share of the rows that the cache on the device has room for, where the kernel has a cache; None: 0.2."""
    pooling: float = Field(default=1.0, gt=0)
    """Ids of each feature in an example, on average; for the estimates of time and traffic."""

    @model_validator(mode="after")
    def _check(self) -> "TableConfig":
        if self.form == REPLICATED and (self.kernel or self.cache_load_factor or self.min_partition):
            raise ValueError("a data_parallel table is whole and on the device; leave its other settings out")
        if self.cache_load_factor is not None and self.kernel not in CACHED:
            raise ValueError(f"cache_load_factor needs a kernel with a cache; set kernel to one of {', '.join(CACHED)}")
        if self.kernel in VIRTUAL and self.form != "row_wise":
            raise ValueError(f"{self.kernel} can be cut by rows alone; set form = 'row_wise'")
        return self


class Config(Settings):
    """The section [sharding]."""

    forms: tuple[Form, ...] = Field(default=("table_wise", "row_wise"), min_length=1)
    """What the planner may choose from for every table that is not in `tables`."""
    tables: dict[str, TableConfig] = Field(default_factory=dict)
    """Table → its form, or what else is to be said of it."""
    hbm_gb: float | None = Field(default=None, gt=0)
    """GPU memory of a rank, 10⁹ bytes; None: TorchRec's default, 34."""
    host_gb: float | None = Field(default=None, gt=0)
    """Host memory of a rank that the planner may fill, 10⁹ bytes; None: TorchRec's default, 137."""
    ssd_gb: float | None = Field(default=None, gt=0)
    """SSD of a rank that the planner may fill, 10⁹ bytes; None: TorchRec's default, 2,199."""
    reserve: float = Field(default=0.15, ge=0, lt=1)
    """Share of the GPU memory that is left to the dense layers and activations."""
    local_world_size: int | None = Field(default=None, gt=0)
    """Ranks of a host; None: LOCAL_WORLD_SIZE, as torchrun sets it, or all ranks where it is not set."""

    @field_validator("tables", mode="before")
    @classmethod
    def _form_alone(cls, tables: Any) -> Any:
        if not isinstance(tables, dict):
            return tables
        return {name: {"form": table} if isinstance(table, str) else table for name, table in tables.items()}


def check(config: Config, optimizer: str, model: nn.Module, device: torch.device) -> None:
    """Refuse what would fail, or train something else, before anything is trained.

    Args:
        config: what the planner may do.
        optimizer: the sparse one, as in `optim.Config.sparse`.
        model: whose tables are to be sharded.
        device: of training.

    Raises:
        InputError: a form that TorchRec does not have for the kind of table, a kernel that the device does not have, or
            columns cut under an optimizer that looks at whole rows.
    """
    constraints(model, config, device)
    for name in table_names(model):
        table = config.tables.get(name, TableConfig())
        forms = (table.form,) if table.form else config.forms
        cut = [form for form in forms if form in COLUMN_FORMS]
        if cut and optimizer not in ELEMENTWISE:
            raise InputError(
                f"{_where(name, table)} allows {cut[0]} for table '{name}', and optimizer.sparse = '{optimizer}' would "
                "keep one number for each piece of a row instead of one for the row: other mathematics, and a "
                f"checkpoint that no other layout can read; use one of {', '.join(ELEMENTWISE)}, or forms that keep "
                "rows whole"
            )
        if table.kernel in ON_SSD and optimizer not in KEY_VALUE_OPTIMIZERS:
            raise InputError(
                f"sharding.tables.{name}.kernel = '{table.kernel}' cannot be trained by optimizer.sparse = "
                f"'{optimizer}'; use one of {', '.join(KEY_VALUE_OPTIMIZERS)}"
            )


def constraints(model: nn.Module, config: Config, device: torch.device) -> dict[str, ParameterConstraints]:
    """Table → what the planner may do with it.

    Raises:
        InputError: what is asked for does not exist for this kind of table or device.
    """
    found: dict[str, ParameterConstraints] = {}
    for module in collections(model):
        tables = table_configs(module)
        whole = [table.name for table in tables if config.tables.get(table.name, TableConfig()).form == REPLICATED]
        sequence = isinstance(module, EmbeddingCollection)
        if sequence and whole and len(whole) < len(tables) and device.type == "cpu":
            raise InputError(
                f"sharding.tables.{whole[0]}.form = 'data_parallel': on CPU the tables of one EmbeddingCollection are "
                "either all data_parallel or none, for fbgemm's dense lookup pools sequences there; name all of "
                f"{', '.join(table.name for table in tables)}, or none"
            )
        for table in tables:
            limits = config.tables.get(table.name, TableConfig())
            if limits.kernel not in (None, "fused") and device.type == "cpu":
                raise InputError(
                    f"sharding.tables.{table.name}.kernel = '{limits.kernel}' needs a GPU beside the host's memory; "
                    "remove it, for on CPU every table is in host memory"
                )
            found[table.name] = ParameterConstraints(
                sharding_types=list(_forms(table, config)),
                compute_kernels=None if limits.kernel is None else [limits.kernel],
                min_partition=limits.min_partition,
                pooling_factors=[limits.pooling] * len(table.feature_names),
                cache_params=None
                if limits.cache_load_factor is None
                else CacheParams(load_factor=limits.cache_load_factor),
            )
    return found


def _forms(table: BaseEmbeddingConfig, config: Config) -> tuple[str, ...]:
    """What a table may become."""
    limits = config.tables.get(table.name, TableConfig())
    asked: tuple[str, ...] = (limits.form,) if limits.form else config.forms
    have, why = (*get_args(Form), REPLICATED), ""
    if isinstance(table, EmbeddingConfig):
        have = (*SEQUENCE_FORMS, REPLICATED)
        why = "is a sequence table, and TorchRec's EmbeddingCollection knows no such form"
    elif isinstance(table, EmbeddingBagConfig) and table.pooling == PoolingType.MEAN:
        have = tuple(form for form in have if form != "grid_shard")
        why = "is pooled by the mean, and TorchRec's grid_shard adds up the means of the pieces that ranks hold"
    found = tuple(form for form in asked if form in have)
    if not found:
        raise InputError(
            f"{_where(table.name, limits)} = '{', '.join(asked)}': '{table.name}' {why}; use one of {', '.join(have)}"
        )
    return found


def _where(table: str, limits: TableConfig) -> str:
    return f"sharding.tables.{table}.form" if limits.form else "sharding.forms"


def collections(model: nn.Module) -> list[EmbeddingBagCollection | EmbeddingCollection]:
    """What holds tables, before sharding, in the order of the modules."""
    return [module for module in model.modules() if isinstance(module, EmbeddingBagCollection | EmbeddingCollection)]


def table_configs(module: EmbeddingBagCollection | EmbeddingCollection) -> list[BaseEmbeddingConfig]:
    """The tables of a collection."""
    pooled = isinstance(module, EmbeddingBagCollection)
    return list(module.embedding_bag_configs() if pooled else module.embedding_configs())


def table_names(model: nn.Module) -> list[str]:
    """Names of all tables."""
    return [table.name for module in collections(model) for table in table_configs(module)]


def replicated_tables(config: Config) -> list[str]:
    """Tables that every rank has a copy of."""
    return [name for name, table in config.tables.items() if table.form == REPLICATED]
