"""The S3-Rec form: one line a user, `user item item …`, oldest first, with an optional item-to-attributes JSON file.

There are no times: an event's timestamp is its position in the user's line. S3-Rec: Zhou et al., CIKM 2020,
https://arxiv.org/abs/2008.07873, whose files of the Amazon 5-core sets are in common use.
"""

import json
from pathlib import Path

import polars as pl

from features.errors import InputError
from features.events import RawLog
from features.settings import Settings


class Config(Settings):
    """Where the files are."""

    path: Path
    """The text file of sequences."""
    attributes: Path | None = None
    """JSON: item id → list of attribute ids; None for none."""
    attribute_names: Path | None = None
    """JSON: attribute id → name, for people to read; None shows the ids."""


def inputs(config: Config) -> list[Path]:
    """The files that `load` reads."""
    return [path for path in (config.path, config.attributes, config.attribute_names) if path is not None]


def load(config: Config) -> RawLog:
    """Read the sequences; items get `categories` from the attributes and a `title` that shows the first few."""
    lines = pl.Series("line", config.path.read_text(encoding="utf-8").splitlines(), dtype=pl.String)
    tokens = lines.str.strip_chars().str.split(" ")
    wrong = (tokens.list.len() < 2).arg_max() if (tokens.list.len() < 2).any() else None
    if wrong is not None:
        raise InputError(
            f"{config.path}, line {wrong + 1}: {lines[wrong]!r} is not 'user item item …'; mend or drop it"
        )
    events = (
        pl.DataFrame({"user_id": tokens.list.first(), "item_id": tokens.list.slice(1)})
        .with_columns(timestamp=pl.int_ranges(pl.col("item_id").list.len(), dtype=pl.Int64))
        .explode("item_id", "timestamp")
        .with_columns(pl.col("user_id", "item_id").cast(pl.Int64, strict=False))
    )
    if events["item_id"].null_count() or events["user_id"].null_count():
        raise InputError(f"{config.path}: ids must be whole numbers; use the dataset kind 'files' for other forms")
    items = None
    if config.attributes is not None:
        of_item = json.loads(config.attributes.read_text(encoding="utf-8"))
        names = json.loads(config.attribute_names.read_text(encoding="utf-8")) if config.attribute_names else {}
        categories = [[str(names.get(str(a), a)) for a in attributes] for attributes in of_item.values()]
        items = pl.DataFrame(
            {"item_id": [int(item) for item in of_item], "categories": categories},
            schema={"item_id": pl.Int64, "categories": pl.List(pl.String)},
        ).with_columns(title=pl.format("{} #{}", pl.col("categories").list.tail(2).list.join(", "), pl.col("item_id")))
    return RawLog(events=events, items=items, source=str(config.path), has_clock=False)
