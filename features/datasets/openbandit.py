"""Open Bandit Dataset (ZOZO; Saito et al., NeurIPS 2021 Datasets and Benchmarks, https://arxiv.org/abs/2008.07146).

A fashion shop's front page showed three items at a time in three campaigns, filled by one of two policies: uniformly
at random, or Thompson sampling (`bts`). Every row has the probability with which its policy chose the item for its
place, which makes it a measuring stick for off-policy estimates: what one policy's log says of the other can be held
against the other's own.

Two layouts are read: the original archive's (`random/all/all.csv` beside `item_context.csv`), and flat Parquet files
(`random_all.parquet`, `item_context_all.parquet`).
"""

from pathlib import Path
from typing import Literal

import polars as pl

from features.errors import InputError
from features.events import RawLog, in_one_part
from features.settings import Settings

PEOPLE = [f"user_feature_{number}" for number in range(4)]
"""All that is known of a person: hashed features. Those who share them cannot be told apart."""

COLUMNS = ["timestamp", "item_id", "position", "click", "propensity_score", *PEOPLE]
"""What is read of the log; affinities of every person to every item are left."""


class Config(Settings):
    """Which of the six logs."""

    path: Path
    """The folder of the data set."""
    campaign: Literal["all", "men", "women"] = "all"
    """Which items were shown."""
    policy: Literal["random", "bts"] = "random"
    """Which policy chose them."""


def inputs(config: Config) -> list[Path]:
    """The log and the table of items.

    Raises:
        InputError: one of them is not there.
    """
    root = config.path
    if not root.exists():
        raise InputError(f"{root}: no such file; set dataset.path to the folder of the Open Bandit Dataset")
    folder = root / config.policy / config.campaign
    flat = [root / f"{config.policy}_{config.campaign}.parquet", root / f"item_context_{config.campaign}.parquet"]
    original = [folder / f"{config.campaign}.csv", folder / "item_context.csv"]
    for layout in (flat, original):
        if all(path.is_file() for path in layout):
            return layout
    raise InputError(
        f"{root}: neither {flat[0].name} nor {original[0].relative_to(root)}; give its folder as dataset.path"
    )


def load(config: Config) -> RawLog:
    """Impressions as events: `action` is click or impression, `position` counts from 0, rows of one time are a request.

    A person is the hashed features that they are known by; `users` has these one by one.

    Raises:
        InputError: a file is missing, cannot be read or lacks a column.
    """
    log, context = inputs(config)
    rows = _read(log, COLUMNS)
    time = pl.col("timestamp")
    if rows.schema["timestamp"] == pl.String:
        time = time.str.replace(r"(\+00:00)?$", "").str.to_datetime(
            "%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False
        )
    person = pl.concat_str(pl.col(name).str.head(8) for name in PEOPLE)
    events = rows.with_columns(user_id=person, moment=time).select(
        "user_id",
        "item_id",
        timestamp=pl.col("moment").dt.epoch("ms"),
        action=pl.when(pl.col("click") == 1).then(pl.lit("click")).otherwise(pl.lit("impression")),
        # Several requests may fall into a millisecond, none into a microsecond.
        request_id=pl.col("moment").rank("dense").cast(pl.Int64) - 1,
        position=pl.col("position") - 1,
        propensity=pl.col("propensity_score"),
    )
    people = rows.select(person.alias("user_id"), *PEOPLE).unique("user_id", keep="first", maintain_order=True)
    items = _read(context, ["item_id"])
    source = f"{config.path}: {config.policy}, {config.campaign}"
    return RawLog(parts=in_one_part(events, source), items=items, users=people, source=source)


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    """A table with at least these columns; the log has them alone."""
    try:
        scan = pl.scan_parquet(path) if path.suffix == ".parquet" else pl.scan_csv(path)
        found = scan.collect_schema().names()
        if missing := [name for name in columns if name not in found]:
            raise InputError(
                f"{path}: column '{missing[0]}' is missing (found: {', '.join(found[:8])}); take a fresh copy"
            )
        # The first column of the archive's tables has no name: it numbers the rows.
        kept = columns if len(columns) > 1 else [name for name in found if name]
        return scan.select(kept).collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); take a fresh copy") from None
