"""In which numbers the weights of tables are kept: 16 bits take half of the memory, where kernels train them.

[tables]
precision = "fp16"

[tables.overrides]
category = "fp32"
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig
from torchrec.modules.embedding_configs import data_type_to_dtype
from torchrec.types import DataType

from features.errors import InputError
from features.settings import Settings

Precision = Literal["fp32", "fp16", "bf16"]


class Config(Settings):
    """The section [tables]."""

    precision: Precision = "fp32"
    """Of the weights. Optimizer state and what a lookup returns are float32 whatever this is. fp16 trains on GPUs."""
    overrides: dict[str, Precision] = Field(default_factory=dict)
    """Table → a precision of its own."""
    stochastic_rounding: bool = True
    """Whether an update of a 16-bit weight is rounded up or down by chance, right on average. Without it an update
    of less than half the distance between two neighbouring numbers is lost, and so is every one after it."""

    def of(self, table: str) -> Precision:
        """The precision of a table."""
        return self.overrides.get(table, self.precision)


def set_precision(model: nn.Module, config: Config) -> None:
    """Give the tables of a built model their precision, before optimizers are fused and the model is sharded.

    Args:
        model: its tables are EmbeddingCollections or EmbeddingBagCollections, on the meta device; changed in place.
        config: what is wanted.
    """
    for table, lookup in _tables(model):
        assert not hasattr(lookup.weight, "_optimizer_classes"), f"{table.name} has its optimizer already"
        table.data_type = DataType[config.of(table.name).upper()]
        lookup.weight = nn.Parameter(lookup.weight.detach().to(data_type_to_dtype(table.data_type)))


def fused_params(config: Config) -> dict[str, Any]:
    """What the sharders are to be given as `fused_params`; the kernel of a table learns the rest from its weight."""
    return {"stochastic_rounding": config.stochastic_rounding}


def check(config: Config, device: torch.device) -> None:
    """Refuse what the device's kernels cannot train, or would train wrongly without a word.

    Raises:
        InputError: with the field, its value, the reason and the fix.
    """
    wanted = {"tables.precision": config.precision}
    wanted |= {f"tables.overrides.{table}": precision for table, precision in config.overrides.items()}
    for field, precision in wanted.items():
        if precision == "bf16":
            raise InputError(
                f"{field} = 'bf16': the kernels that look tables up and update them have none for bfloat16 weights, "
                "on CPU or GPU; use fp32, or fp16 on a GPU"
            )
        if precision == "fp16" and device.type == "cpu" and config.stochastic_rounding:
            raise InputError(
                f"{field} = 'fp16': on CPU updates are rounded to the nearest number, never by chance, so that small "
                "ones are lost; use fp32, or accept it by tables.stochastic_rounding = false"
            )


def _tables(
    model: nn.Module,
) -> Iterator[tuple[EmbeddingBagConfig | EmbeddingConfig, nn.EmbeddingBag | nn.Embedding]]:
    """Every table's config and the module that holds its weight."""
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            configs, lookups = module.embedding_bag_configs(), module.embedding_bags
        elif isinstance(module, EmbeddingCollection):
            configs, lookups = module.embedding_configs(), module.embeddings
        else:
            continue
        for config in configs:
            yield config, lookups[config.name]  # pyright: ignore[reportReturnType]
