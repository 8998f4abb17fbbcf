"""The S3-Rec form: one line a user, `user item item …`, oldest first, with an optional item-to-attributes JSON file.

There are no times: an event's timestamp is its position in the user's line. S3-Rec: Zhou et al., CIKM 2020,
https://arxiv.org/abs/2008.07873, whose files of the Amazon 5-core sets are in common use.
"""

from collections import Counter
from pathlib import Path
from typing import cast

import polars as pl

from features.datasets._inputs import read_object, read_text, require_files
from features.errors import InputError
from features.events import RawLog, in_one_part
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
    """The files that `load` reads.

    Raises:
        InputError: one does not exist.
    """
    return require_files(
        {
            "dataset.path": config.path,
            "dataset.attributes": config.attributes,
            "dataset.attribute_names": config.attribute_names,
        }
    )


def load(config: Config) -> RawLog:
    """Read the sequences; items get `categories` from the attributes and a `title` that shows the last two.

    Raises:
        InputError: a file is missing, or a line or an attribute is not of the form.
    """
    inputs(config)
    return RawLog(
        parts=in_one_part(_events(config.path), str(config.path)),
        items=_items(config),
        source=str(config.path),
        has_clock=False,
    )


def _events(path: Path) -> pl.DataFrame:
    lines = pl.Series("line", read_text(path).split("\n"), dtype=pl.String)
    users = pl.DataFrame({"line": lines, "ids": lines.str.extract_all(r"\S+")}).with_row_index("number", offset=1)
    users = users.filter(pl.col("ids").list.len() > 0).with_columns(
        ids=pl.col("ids").cast(pl.List(pl.Int64), strict=False), user=pl.col("ids").list.first()
    )
    for wrong, why in (
        (pl.col("ids").list.len() < 2, "is not 'user item item …'; mend or drop it"),
        (pl.col("ids").list.eval(pl.element().is_null()).list.any(), "has ids that are not whole numbers; mend it"),
        (~pl.col("user").is_first_distinct(), "is of a user who had a line before; make them one line"),
    ):
        bad = users.filter(wrong)
        if bad.height:
            raise InputError(f"{path}, line {bad['number'][0]}: {_short(bad['line'][0])} {why}")
    return (
        users.select(user_id=pl.col("ids").list.first(), item_id=pl.col("ids").list.slice(1))
        .with_columns(timestamp=pl.int_ranges(pl.col("item_id").list.len(), dtype=pl.Int64))
        .explode("item_id", "timestamp")
    )


def _short(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:39] + "…")


def _items(config: Config) -> pl.DataFrame | None:
    if config.attributes is None:
        return None
    names = (
        {key: str(name) for key, name in read_object(config.attribute_names).items()} if config.attribute_names else {}
    )
    # Two attributes of one name are still two.
    times = Counter(names.values())
    names = {key: name if times[name] == 1 else f"{name} ({key})" for key, name in names.items()}
    categories: dict[int, list[str]] = {}
    for item, attributes in read_object(config.attributes).items():
        if not (item.isdecimal() and isinstance(attributes, list)):
            raise InputError(f"{config.attributes}: {_short(item)} is not a whole number with a list; mend that entry")
        categories[int(item)] = [names.get(str(a), str(a)) for a in cast("list[object]", attributes)]
    return pl.DataFrame(
        {"item_id": list(categories), "categories": list(categories.values())},
        schema={"item_id": pl.Int64, "categories": pl.List(pl.String)},
    ).with_columns(title=pl.format("{} #{}", pl.col("categories").list.tail(2).list.join(", "), pl.col("item_id")))
